//! Containers: creation, list, start, stop, switches, end.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use edd_daemon::{
    api::{ApiError, Json, Path},
    cli::parse_duration,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::{
    Api, Caller, Cause, container_id, ingress::RuleAnswer, invalid, no_container, owner_gone,
    quota, rfc3339,
};
use crate::{
    auth::User,
    gateways::Reachable,
    input::{
        InputError, Port, PortPair, check_image, check_instance_type, check_name, check_number,
    },
    store::{Container, Creation, NewContainer, Status, Toggle},
};

const DEFAULT_IMAGE: &str = "edd-guest";
const DEFAULT_INSTANCE_TYPE: &str = "nano";
const DEFAULT_MEMORY_MB: i64 = 512;
const DEFAULT_STORAGE_GB: i64 = 5;
/// How long a creation waits for the gateways, unless it says so.
const WAIT_DEFAULT: Duration = Duration::from_secs(10);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Keys that can be named for one container.
const KEYS_MAX: usize = 100;

#[derive(Debug, Deserialize)]
pub(crate) struct CreateBody {
    name: String,
    image: Option<String>,
    memory_mb: Option<i64>,
    storage_gb: Option<i64>,
    instance_type: Option<String>,
    ssh_key_ids: Option<Vec<i64>>,
    ssh_enabled: Option<bool>,
    ingress: Option<Vec<RuleBody>>,
}

/// A wanted ingress rule.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct RuleBody {
    port: i64,
    target_port: i64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SshBody {
    ssh_enabled: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct HttpsBody {
    https_enabled: bool,
}

/// A container as the API shows it.
#[derive(Debug, Serialize)]
pub(crate) struct ContainerAnswer {
    id: String,
    name: String,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    hostname: String,
    ssh_command: String,
    ssh_enabled: bool,
    https_enabled: bool,
    ssh_key_ids: Vec<i64>,
    ingress: Vec<RuleAnswer>,
    image: String,
    memory_mb: i32,
    storage_gb: i32,
    instance_type: String,
    external_ip: Option<String>,
    created_at: String,
    started_at: Option<String>,
    stopped_at: Option<String>,
    /// Whether every gateway serves it; only said when that was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    routable: Option<bool>,
}

/// What the answer to a creation waits for.
#[derive(Debug, Deserialize)]
pub(crate) struct Wait {
    /// `routable`: until every gateway serves it.
    wait: Option<String>,
    /// How long at most.
    timeout: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ListAnswer {
    containers: Vec<ContainerAnswer>,
}

impl RuleBody {
    pub(super) fn check(self, api: &Api) -> Result<PortPair, InputError> {
        PortPair::check(self.port, self.target_port, &api.ports)
    }
}

impl CreateBody {
    fn check(self, api: &Api, owner: User) -> Result<NewContainer, InputError> {
        let image = self.image.as_deref().unwrap_or(DEFAULT_IMAGE);
        let instance_type = self
            .instance_type
            .as_deref()
            .unwrap_or(DEFAULT_INSTANCE_TYPE);
        let memory_mb = self.memory_mb.unwrap_or(DEFAULT_MEMORY_MB);
        let storage_gb = self.storage_gb.unwrap_or(DEFAULT_STORAGE_GB);
        let mut ssh_key_ids = self.ssh_key_ids.unwrap_or_default();
        ssh_key_ids.sort_unstable();
        ssh_key_ids.dedup();
        check_number(
            "the number of ssh_key_ids",
            ssh_key_ids.len() as i64,
            0,
            KEYS_MAX as i64,
        )?;
        Ok(NewContainer {
            name: check_name(&self.name)?,
            image: check_image(image)?,
            memory_mb: check_number("memory_mb", memory_mb, 16, 1024 * 1024)?,
            storage_gb: check_number("storage_gb", storage_gb, 1, 65_536)?,
            instance_type: check_instance_type(instance_type)?,
            ssh_enabled: self.ssh_enabled.unwrap_or(false),
            ssh_key_ids,
            ingress: match self.ingress {
                Some(rules) => check_rules(api, &rules)?,
                // What a web server in a container needs to be seen.
                None => vec![PortPair {
                    port: Port::https(),
                    target_port: api.lifecycle.runtime().facts().http_port,
                }],
            },
            user_id: owner.id,
            owner_username: owner.username,
        })
    }
}

/// Each port once.
fn check_rules(api: &Api, rules: &[RuleBody]) -> Result<Vec<PortPair>, InputError> {
    let mut checked: Vec<PortPair> = Vec::new();
    for rule in rules {
        let pair = rule.check(api)?;
        // There are no more ports than the range has, so this stays short.
        if checked.iter().any(|other| other.port == pair.port) {
            return Err(InputError::PortTwice(pair.port.get()));
        }
        checked.push(pair);
    }
    Ok(checked)
}

impl Wait {
    /// Until when to wait; none: not at all.
    fn check(&self, api: &Api) -> Result<Option<Instant>, ApiError> {
        let refused = |reason: String| ApiError::bad_request("invalid_value", reason);
        match self.wait.as_deref() {
            None => return Ok(None),
            Some("routable") if api.gateways.is_empty() => {
                let reason = "wait=routable: compute does not know the gateways (--gateways)";
                return Err(refused(reason.to_owned()));
            }
            Some("routable") => {}
            Some(other) => return Err(refused(format!("wait: {other:?} is not routable"))),
        }
        let timeout = match &self.timeout {
            Some(text) => parse_duration(text).map_err(|e| refused(format!("timeout: {e}")))?,
            None => WAIT_DEFAULT,
        };
        Ok(Some(Instant::now() + timeout.min(WAIT_MAX)))
    }
}

impl Api {
    /// Whether every gateway serves a container before `deadline`.
    async fn is_routable(
        &self,
        owner: &User,
        id: &str,
        deadline: Instant,
    ) -> Result<bool, ApiError> {
        let Some(container) = self.store.container(owner.id, id).await? else {
            return Ok(false);
        };
        let address = container.external_ip.and_then(|ip| ip.parse().ok());
        let (Status::Running, Some(address)) = (container.status, address) else {
            return Ok(false);
        };
        let rules = self.store.rules_of(id).await?;
        let ports: Vec<u16> = rules.iter().map(|rule| rule.port).collect();
        // Also keys whose events the gateways have yet to hear of: who posts one and then asks for
        // a container can log in.
        let ssh_keys: Option<Vec<i64>> = match container.ssh_enabled {
            true => {
                let keys = self.store.keys_of(owner.id).await?;
                Some(keys.into_iter().map(|key| key.id).collect())
            }
            false => None,
        };
        let wanted = Reachable {
            id,
            address,
            ports: &ports,
            ssh_keys: ssh_keys.as_deref(),
        };
        Ok(self.gateways.serve(&wanted, deadline).await)
    }

    async fn answer(&self, container: Container) -> Result<ContainerAnswer, ApiError> {
        let rules = self.store.rules_of(&container.id).await?;
        let ssh_key_ids = self.store.keys_of_container(&container.id).await?;
        Ok(ContainerAnswer {
            hostname: format!("{}.compute.{}", container.id, self.platform_domain),
            ssh_command: self.ssh_command(&container.id),
            name: container.name,
            status: container.status,
            failure: container.failure,
            ssh_enabled: container.ssh_enabled,
            https_enabled: container.https_enabled,
            ssh_key_ids,
            ingress: rules.into_iter().map(RuleAnswer::from).collect(),
            image: container.image,
            memory_mb: container.memory_mb,
            storage_gb: container.storage_gb,
            instance_type: container.instance_type,
            external_ip: container.external_ip,
            created_at: rfc3339(container.created_at),
            started_at: container.started_at.map(rfc3339),
            stopped_at: container.stopped_at.map(rfc3339),
            routable: None,
            id: container.id,
        })
    }

    /// `<id>` logs in as root; where only one user can log in, his name leads.
    fn ssh_command(&self, id: &str) -> String {
        let user = match self.lifecycle.runtime().facts().login_user {
            Some(user) => format!("{user}."),
            None => String::new(),
        };
        let port = match self.public_ssh_port {
            22 => String::new(),
            port => format!("-p {port} "),
        };
        format!("ssh {port}{user}{id}@{}", self.platform_domain)
    }

    /// A new answer, after something changed.
    async fn answer_now(&self, user: &User, id: &str) -> Result<Json<ContainerAnswer>, ApiError> {
        let container = self
            .store
            .container(user.id, id)
            .await?
            .ok_or_else(no_container)?;
        Ok(Json(self.answer(container).await?))
    }
}

/// `GET /compute/containers`: the caller's, oldest first.
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
) -> Result<Json<ListAnswer>, ApiError> {
    let mut containers = Vec::new();
    for container in api.store.containers_of(user.id).await? {
        containers.push(api.answer(container).await?);
    }
    Ok(Json(ListAnswer { containers }))
}

/// `POST /compute/containers`: 201 at once, `pending`; it runs a moment later.
///
/// With `?wait=routable` it is answered once every gateway serves the container, or after
/// `timeout` (10 s, at most 60 s); `routable` says which. It exists in either case.
pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
    Cause(cause): Cause,
    Query(wait): Query<Wait>,
    Json(body): Json<CreateBody>,
) -> Result<Response, ApiError> {
    let deadline = wait.check(&api)?;
    let owner = user.clone();
    let new = body.check(&api, user).map_err(invalid)?;
    let created = api
        .store
        .create_container(&new, api.containers_per_user, &cause)
        .await?;
    let container = match created {
        Creation::Created(container) => *container,
        Creation::OwnerGone => return Err(owner_gone()),
        Creation::TooMany => return Err(quota("containers", api.containers_per_user)),
        Creation::UnknownKey(id) => {
            return Err(ApiError::bad_request(
                "unknown_key",
                format!("no such SSH key: {id}"),
            ));
        }
    };
    api.announced();
    let settling = api.lifecycle.settle(container.id.clone());
    let location = format!("/compute/containers/{}", container.id);
    let answer = match deadline {
        None => Json(api.answer(container).await?),
        Some(deadline) => {
            let id = container.id;
            // It is settled in the background all the same.
            let _ = timeout_at(deadline, settling).await;
            let routable = api.is_routable(&owner, &id, deadline).await?;
            let mut answer = api.answer_now(&owner, &id).await?;
            answer.0.routable = Some(routable);
            answer
        }
    };
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], answer).into_response())
}

/// `GET /compute/containers/{id}`.
pub(crate) async fn show(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
    Path(id): Path<String>,
) -> Result<Json<ContainerAnswer>, ApiError> {
    let id = container_id(&id)?;
    api.answer_now(&user, id.as_str()).await
}

/// `DELETE /compute/containers/{id}`: 204 once its processes are gone.
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
    Cause(cause): Cause,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id = container_id(&id)?;
    if !api
        .store
        .delete_container(user.id, id.as_str(), &cause)
        .await?
    {
        return Err(no_container());
    }
    api.announced();
    settled(&api, id.as_str()).await;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /compute/containers/{id}/start`: `pending` at once, or as it is.
pub(crate) async fn start(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
    Path(id): Path<String>,
    Cause(cause): Cause,
) -> Result<Json<ContainerAnswer>, ApiError> {
    let id = container_id(&id)?;
    let container = api
        .store
        .ask_start(user.id, id.as_str(), &cause)
        .await?
        .ok_or_else(no_container)?;
    drop(api.lifecycle.settle(container.id.clone()));
    Ok(Json(api.answer(container).await?))
}

/// `POST /compute/containers/{id}/stop`: answered once its processes are gone.
pub(crate) async fn stop(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
    Cause(cause): Cause,
    Path(id): Path<String>,
) -> Result<Json<ContainerAnswer>, ApiError> {
    let id = container_id(&id)?;
    let stopped = api.store.ask_stop(user.id, id.as_str(), &cause).await?;
    stopped.ok_or_else(no_container)?;
    api.announced();
    settled(&api, id.as_str()).await;
    api.answer_now(&user, id.as_str()).await
}

/// `PUT /compute/containers/{id}/ssh`.
pub(crate) async fn set_ssh(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
    Cause(cause): Cause,
    Path(id): Path<String>,
    Json(body): Json<SshBody>,
) -> Result<Json<ContainerAnswer>, ApiError> {
    toggle(&api, &user, &id, Toggle::Ssh(body.ssh_enabled), &cause).await
}

/// `PUT /compute/containers/{id}/https`.
pub(crate) async fn set_https(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
    Cause(cause): Cause,
    Path(id): Path<String>,
    Json(body): Json<HttpsBody>,
) -> Result<Json<ContainerAnswer>, ApiError> {
    toggle(&api, &user, &id, Toggle::Https(body.https_enabled), &cause).await
}

async fn toggle(
    api: &Api,
    user: &User,
    id: &str,
    toggle: Toggle,
    cause: &edd_events::envelope::Cause,
) -> Result<Json<ContainerAnswer>, ApiError> {
    let id = container_id(id)?;
    let toggled = api
        .store
        .toggle(user.id, id.as_str(), toggle, cause)
        .await?;
    let container = toggled.ok_or_else(no_container)?;
    api.announced();
    Ok(Json(api.answer(container).await?))
}

/// Goes on when the client hangs up: it is a task of its own.
async fn settled(api: &Api, id: &str) {
    if let Err(error) = api.lifecycle.settle(id.to_owned()).await {
        tracing::error!(id, %error, "settling a container panicked");
    }
}
