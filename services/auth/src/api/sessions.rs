//! Log-in, log-out and the session in use.

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use edd_daemon::api::{ApiError, Json};
use serde::{Deserialize, Serialize};

use super::{
    Api, Caller, Cause, NO_STORE, client::ClientAddress, password_error, rfc3339, users::UserAnswer,
};
use crate::{
    password::Password,
    store::{Authenticated, Session},
    token::Token,
};

/// No `Debug`: it holds a password.
#[derive(Deserialize)]
pub(crate) struct LoginBody {
    username: String,
    password: String,
}

/// A session just created, with the token that is shown once.
pub(crate) struct NewSession {
    pub(crate) token: Token,
    pub(crate) session: Session,
}

/// The answer to a registration and a log-in.
#[derive(Serialize)]
pub(crate) struct LoggedIn {
    token: String,
    session_id: String,
    expires_at: String,
    #[serde(flatten)]
    user: UserAnswer,
}

impl LoggedIn {
    pub(crate) fn new(user: UserAnswer, NewSession { token, session }: NewSession) -> Self {
        Self {
            token: token.reveal().to_owned(),
            expires_at: rfc3339(session.expires_at_ms),
            session_id: session.id,
            user,
        }
    }
}

/// The answer to `GET /api/session`.
#[derive(Serialize)]
pub(crate) struct SessionAnswer {
    session_id: String,
    expires_at: String,
    is_admin: bool,
    #[serde(flatten)]
    user: UserAnswer,
}

/// `POST /api/login`: a token for a user name and password.
///
/// A wrong password, an unknown user and a name that no user can have answer
/// alike, after the same work.
pub(crate) async fn log_in(
    State(api): State<Arc<Api>>,
    ClientAddress(address): ClientAddress,
    Cause(cause): Cause,
    Json(body): Json<LoginBody>,
) -> Result<Response, ApiError> {
    let refused = || {
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            "invalid_credentials",
            "the user name or the password is wrong",
        )
    };
    let attempt = api
        .limiter
        .attempt(address, &body.username)
        .map_err(|wait| ApiError::too_many_requests(wait.as_secs().max(1)))?;
    // No password of such a length was ever accepted, whoever the user is.
    let password = Password::parse(body.password).map_err(|_| refused())?;
    let (user_id, hash) = api.store.credentials(&body.username).await?.unzip();
    let fits = api
        .passwords
        .verify(password, hash.clone())
        .await
        .map_err(password_error)?;
    let (true, Some(user_id), Some(hash)) = (fits, user_id, hash) else {
        tracing::info!(%address, "log-in refused");
        return Err(refused());
    };
    let token = Token::random();
    let created = api
        .store
        .log_in(user_id, &hash, token.hash(), &cause)
        .await?;
    if created.is_none() {
        return Err(refused());
    }
    api.limiter.succeeded(attempt);
    api.announced();
    // Read back by the token itself: what is answered is what the token opens.
    let Authenticated { user, session } = api
        .store
        .authenticate(token.hash())
        .await?
        .ok_or_else(refused)?;
    tracing::info!(user_id, session_id = session.id, "logged in");
    let answer = LoggedIn::new(user.into(), NewSession { token, session });
    Ok((NO_STORE, Json(answer)).into_response())
}

/// `POST /api/logout`: ends the session of the token, 204.
pub(crate) async fn log_out(
    State(api): State<Arc<Api>>,
    Caller(Authenticated { session, .. }): Caller,
    Cause(cause): Cause,
) -> Result<StatusCode, ApiError> {
    if api.store.log_out(&session, &cause).await? {
        api.announced();
        tracing::info!(
            user_id = session.user_id,
            session_id = session.id,
            "logged out"
        );
    }
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /api/session`: whose token this is.
pub(crate) async fn show(
    State(api): State<Arc<Api>>,
    Caller(caller): Caller,
) -> impl axum::response::IntoResponse {
    let is_admin = api.is_admin(&caller);
    let Authenticated { user, session } = caller;
    let answer = SessionAnswer {
        session_id: session.id,
        expires_at: rfc3339(session.expires_at_ms),
        is_admin,
        user: user.into(),
    };
    (NO_STORE, Json(answer))
}
