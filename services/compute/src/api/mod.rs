//! The REST interface (contract.md section 8): routes and what they share.
//!
//! Requests come in checked by `edd_daemon::api`; each handler turns its body
//! into checked types, asks `store`, wakes the relay, lets `lifecycle` follow,
//! and answers. What belongs to somebody else answers like what does not exist.

mod containers;
mod ingress;
mod keys;

use std::{ops::RangeInclusive, sync::Arc};

use axum::{
    Router,
    extract::FromRequestParts,
    http::{HeaderValue, StatusCode, header, request::Parts},
    routing::{delete, get, post, put},
};
use edd_daemon::api::{ApiError, Bearer};
use edd_events::outbox::Waker;
use edd_service::api::{Cause, rfc3339};

use crate::{
    auth::{Auth, User},
    gateways::Gateways,
    input::{ContainerId, InputError},
    lifecycle::Lifecycle,
    store::Store,
};

/// What the handlers need.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) auth: Auth,
    pub(crate) containers_per_user: u32,
    pub(crate) gateways: Gateways,
    pub(crate) keys_per_user: u32,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) platform_domain: String,
    /// Ports of rules besides 80 and 443.
    pub(crate) ports: RangeInclusive<u16>,
    pub(crate) public_ssh_port: u16,
    pub(crate) store: Store,
    /// Tells the relay that there is something in the outbox.
    pub(crate) waker: Option<Waker>,
}

impl Api {
    fn announced(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

/// The routes.
pub(crate) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route(
            "/compute/containers",
            get(containers::list).post(containers::create),
        )
        .route(
            "/compute/containers/{id}",
            get(containers::show).delete(containers::delete),
        )
        .route("/compute/containers/{id}/start", post(containers::start))
        .route("/compute/containers/{id}/stop", post(containers::stop))
        .route("/compute/containers/{id}/ssh", put(containers::set_ssh))
        .route("/compute/containers/{id}/https", put(containers::set_https))
        .route(
            "/compute/containers/{id}/ingress",
            get(ingress::list).post(ingress::request),
        )
        .route(
            "/compute/containers/{id}/ingress/{port}",
            delete(ingress::withdraw),
        )
        .route("/compute/ssh-keys", get(keys::list).post(keys::create))
        .route("/compute/ssh-keys/{id}", delete(keys::delete))
        .with_state(api)
}

/// Who sent this request, by a valid token: else 401, or 503 if nobody can say.
pub(crate) struct Caller(pub(crate) User);

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let Bearer(token) = Bearer::from_request_parts(parts, api).await?;
        let unknown = || ApiError::unauthorized("the token is not valid");
        let user = match api.auth.user(&token).await {
            Ok(Some(user)) => user,
            Ok(None) => return Err(unknown()),
            Err(no_answer) => {
                return Err(ApiError::unavailable(format!("{no_answer}, try again"))
                    .with_header(header::RETRY_AFTER, HeaderValue::from_static("1")));
            }
        };
        // The answer may be older than the end of its user.
        if api.store.is_deleted_user(user.id).await? {
            return Err(unknown());
        }
        Ok(Self(user))
    }
}

fn no_container() -> ApiError {
    ApiError::not_found("no such container")
}

/// Ids of another grammar name nothing, and reach neither database nor subject.
fn container_id(text: &str) -> Result<ContainerId, ApiError> {
    ContainerId::parse(text).ok_or_else(no_container)
}

fn owner_gone() -> ApiError {
    ApiError::unauthorized("the token is not valid")
}

fn quota(what: &str, max: u32) -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "quota_exceeded",
        format!("no more than {max} {what} per user"),
    )
}

fn invalid(error: InputError) -> ApiError {
    let code = match &error {
        InputError::Key(_) => "invalid_key",
        InputError::Port { .. } | InputError::PortTwice(_) => "invalid_port",
        InputError::Number {
            what: "target_port",
            ..
        } => "invalid_port",
        _ => "invalid_value",
    };
    ApiError::bad_request(code, error.to_string())
}
