//! The REST interface (contract.md section 8): routes and what they share.
//!
//! Requests come in checked by `edd_daemon::api`; each handler turns its body
//! into checked types, asks `store`, and answers. Tokens and passwords are never
//! logged: they have no readable debug form.

mod client;
mod sessions;
mod users;

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Router,
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, header, request::Parts},
    routing::{delete, get, post},
};
use edd_daemon::api::{ApiError, Bearer, RequestId};
use edd_events::{envelope, outbox::Waker};
use ipnet::IpNet;

use crate::{
    identity::Username,
    limit::LoginLimiter,
    password::{PasswordError, Passwords},
    store::{Authenticated, Store},
    token::Token,
};

/// What the handlers need.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) admins: BTreeSet<Username>,
    pub(crate) limiter: LoginLimiter,
    pub(crate) passwords: Passwords,
    pub(crate) store: Store,
    pub(crate) trusted_proxies: Vec<IpNet>,
    /// Tells the relay that there is something in the outbox.
    pub(crate) waker: Option<Waker>,
}

impl Api {
    fn announced(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }

    fn is_admin(&self, who: &Authenticated) -> bool {
        self.admins
            .iter()
            .any(|admin| admin.as_str() == who.user.username)
    }
}

/// The routes.
pub(crate) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/api/register", post(users::register))
        .route("/api/login", post(sessions::log_in))
        .route("/api/logout", post(sessions::log_out))
        .route("/api/session", get(sessions::show))
        .route("/api/users/{id}", delete(users::delete).put(users::rename))
        .with_state(api)
}

/// Who sent this request, by a valid token. Anything else is 401.
pub(crate) struct Caller(pub(crate) Authenticated);

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let Bearer(text) = Bearer::from_request_parts(parts, api).await?;
        let unknown = || ApiError::unauthorized("the token is not valid");
        let token = Token::parse(&text).ok_or_else(unknown)?;
        api.store
            .authenticate(token.hash())
            .await?
            .map(Self)
            .ok_or_else(unknown)
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

/// Answers that hold a secret are kept by nobody on the way.
const NO_STORE: [(header::HeaderName, HeaderValue); 1] =
    [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];

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

fn password_error(error: PasswordError) -> ApiError {
    match error {
        PasswordError::Busy => ApiError::unavailable("too many log-ins at a time, try again")
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("1")),
        PasswordError::Hash(_) | PasswordError::Internal => ApiError::internal(error),
    }
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
