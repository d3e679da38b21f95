//! The live table as JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use edd_route::explain::TargetState;
use edd_route::{ContainerSpec, KeySpec, ProxyHeader, StaticRouteSpec};
use serde::Serialize;

use super::history::{self, At};
use super::{Admin, Refused};
use crate::upstream::Fleet;

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
    /// All of them, as routes.yaml writes them.
    target: String,
    targets: Vec<TargetState>,
    strip_prefix: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout_ms: Option<u64>,
    retries: u8,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fail_on: Vec<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<Health>,
    /// The file, without its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deny: Vec<String>,
    origin: String,
}

#[derive(Serialize)]
struct Health {
    path: String,
    interval_ms: u64,
    timeout_ms: u64,
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

pub(super) async fn routes(
    State(admin): State<Admin>,
    Query(at): Query<At>,
) -> Result<Json<Routes>, Refused> {
    if let Some(then) = history::table(&admin, &at).await? {
        return Ok(Json(Routes {
            revision: then.revision,
            routes: then.static_specs().map(route).collect(),
        }));
    }
    let table = admin.shared.table();
    Ok(Json(Routes {
        revision: table.revision,
        routes: table
            .static_specs()
            .map(|spec| Route {
                targets: targets(&admin.shared.fleet, spec),
                ..route(spec)
            })
            .collect(),
    }))
}

pub(super) async fn containers(
    State(admin): State<Admin>,
    Query(at): Query<At>,
) -> Result<Json<Containers>, Refused> {
    let then = history::table(&admin, &at).await?;
    let table = then.map_or_else(|| admin.shared.table(), Arc::new);
    let mut specs: Vec<_> = table.containers().map(|found| found.to_spec()).collect();
    specs.sort_by(|a, b| a.id.cmp(&b.id));
    let containers = specs.into_iter().map(|spec| {
        let keys = table.keys(spec.owner).iter().map(|key| &key.spec);
        container(keys, &table.settings.container_suffix, spec)
    });
    Ok(Json(Containers {
        revision: table.revision,
        containers: containers.collect(),
    }))
}

fn route(spec: &StaticRouteSpec) -> Route {
    let nets = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect();
    Route {
        host: spec.host.clone(),
        path: spec.path.clone(),
        target: spec.targets_text(),
        targets: Vec::new(),
        strip_prefix: spec.strip_prefix,
        timeout_ms: spec.timeout.map(millis),
        connect_timeout_ms: spec.connect_timeout.map(millis),
        idle_timeout_ms: spec.idle_timeout.map(millis),
        retries: spec.retries,
        fail_on: spec.fail_on.clone(),
        health: spec.health.as_ref().map(|health| Health {
            path: health.path.clone(),
            interval_ms: millis(health.interval),
            timeout_ms: millis(health.timeout),
        }),
        ca: spec.ca.as_ref().map(|ca| ca.file.clone()),
        proxy_protocol: spec.proxy_protocol.map(|version| match version {
            ProxyHeader::V2 => "v2",
        }),
        allow: nets(&spec.allow),
        deny: nets(&spec.deny),
        origin: spec.origin.to_string(),
    }
}

/// A route's targets and how they are.
pub(super) fn targets(fleet: &Fleet, spec: &StaticRouteSpec) -> Vec<TargetState> {
    let states = fleet.states(spec).into_iter();
    let targets = spec.targets.iter().zip(states);
    targets
        .map(|(target, state)| TargetState {
            state: Some(state),
            ..TargetState::new(target)
        })
        .collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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
