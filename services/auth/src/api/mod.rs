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
    http::{HeaderValue, header, request::Parts},
    routing::{delete, get, post},
};
use edd_daemon::api::{ApiError, Bearer};
use edd_events::outbox::Waker;
use edd_service::api::{Cause, rfc3339};
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

/// Answers that hold a secret are kept by nobody on the way.
const NO_STORE: [(header::HeaderName, HeaderValue); 1] =
    [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];

fn password_error(error: PasswordError) -> ApiError {
    match error {
        PasswordError::Busy => ApiError::unavailable("too many log-ins at a time, try again")
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("1")),
        PasswordError::Hash(_) | PasswordError::Internal => ApiError::internal(error),
    }
}
