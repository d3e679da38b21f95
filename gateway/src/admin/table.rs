//! The live table as JSON.

use axum::Json;
use axum::extract::State;
use edd_route::{ContainerSpec, KeySpec, StaticRouteSpec};
use serde::Serialize;

use super::Admin;

/// `/api/v1/routes`.
#[derive(Serialize)]
pub(super) struct Routes {
    revision: u64,
    routes: Vec<Route>,
}

#[derive(Serialize)]
struct Route {
    host: String,
    path: String,
    target: String,
    strip_prefix: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deny: Vec<String>,
    origin: String,
}

/// `/api/v1/containers`.
#[derive(Serialize)]
pub(super) struct Containers {
    revision: u64,
    containers: Vec<Container>,
}

#[derive(Serialize)]
struct Container {
    id: String,
    owner: i64,
    name: String,
    host: String,
    running: bool,
    address: Option<String>,
    ssh_enabled: bool,
    https_enabled: bool,
    rules: Vec<Rule>,
    /// Of its owner.
    ssh_keys: Vec<String>,
    origin: String,
    run_origin: Option<String>,
}

#[derive(Serialize)]
struct Rule {
    port: u16,
    target_port: u16,
    origin: String,
}

pub(super) async fn routes(State(admin): State<Admin>) -> Json<Routes> {
    let table = admin.shared.table();
    Json(Routes {
        revision: table.revision,
        routes: table.static_specs().map(route).collect(),
    })
}

pub(super) async fn containers(State(admin): State<Admin>) -> Json<Containers> {
    let table = admin.shared.table();
    let mut specs: Vec<_> = table.containers().map(|found| found.to_spec()).collect();
    specs.sort_by(|a, b| a.id.cmp(&b.id));
    let containers = specs.into_iter().map(|spec| {
        let keys = table.keys(spec.owner).iter().map(|key| &key.spec);
        container(keys, &table.settings.container_suffix, spec)
    });
    Json(Containers {
        revision: table.revision,
        containers: containers.collect(),
    })
}

fn route(spec: &StaticRouteSpec) -> Route {
    let nets = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect();
    Route {
        host: spec.host.clone(),
        path: spec.path.clone(),
        target: spec.target.clone(),
        strip_prefix: spec.strip_prefix,
        timeout_ms: spec
            .timeout
            .and_then(|timeout| u64::try_from(timeout.as_millis()).ok()),
        allow: nets(&spec.allow),
        deny: nets(&spec.deny),
        origin: spec.origin.to_string(),
    }
}

fn container<'k>(
    keys: impl Iterator<Item = &'k KeySpec>,
    suffix: &str,
    spec: ContainerSpec,
) -> Container {
    Container {
        host: format!("{}{suffix}", spec.id),
        owner: spec.owner.0,
        running: spec.running.is_some(),
        address: spec.running.as_ref().map(|run| run.address.to_string()),
        run_origin: spec.running.as_ref().map(|run| run.origin.to_string()),
        ssh_enabled: spec.ssh_enabled,
        https_enabled: spec.https_enabled,
        rules: spec
            .rules
            .into_iter()
            .map(|rule| Rule {
                port: rule.port,
                target_port: rule.target_port,
                origin: rule.origin.to_string(),
            })
            .collect(),
        ssh_keys: keys.map(|key| key.fingerprint.clone()).collect(),
        origin: spec.origin.to_string(),
        id: spec.id.into(),
        name: spec.name,
    }
}
