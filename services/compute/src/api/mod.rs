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
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    routing::{delete, get, post, put},
};
use edd_daemon::api::{ApiError, Bearer, RequestId};
use edd_events::{envelope, outbox::Waker};

use crate::{
    auth::{Auth, User},
    input::{ContainerId, InputError},
    lifecycle::Lifecycle,
    store::Store,
};

/// What the handlers need.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) auth: Auth,
    pub(crate) containers_per_user: u32,
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

/// What the events of this request refer to: its id, and its trace.
pub(crate) struct Cause(pub(crate) envelope::Cause);

impl<S: Send + Sync> FromRequestParts<S> for Cause {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let RequestId(id) = RequestId::from_request_parts(parts, state).await?;
        Ok(Self(envelope::Cause {
            correlation_id: Some(id),
            causation_id: None,
            traceparent: traceparent(&parts.headers),
        }))
    }
}

/// A W3C trace parent of version 00; anything else starts no trace here.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    let lengths: Vec<usize> = value.split('-').map(str::len).collect();
    let valid = lengths == [2, 32, 16, 2]
        && value.starts_with("00-")
        && value
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    valid.then(|| value.to_owned())
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

/// Milliseconds since the epoch as RFC 3339, in whole seconds.
fn rfc3339(unix_ms: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(unix_ms.div_euclid(1000))
        .ok()
        .and_then(|at| {
            at.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_traces_are_continued() {
        let parse = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", HeaderValue::from_str(value).unwrap());
            traceparent(&headers)
        };
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(parse(good).as_deref(), Some(good));
        for bad in [
            "",
            "00",
            &good[1..],
            &good.replace('4', "G"),
            &good.replace("00-", "ff-"),
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(1_700_000_000_123), "2023-11-14T22:13:20Z");
    }
}
