//! Registration, change and deletion of users.

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use edd_daemon::api::{ApiError, Json, Path};
use serde::{Deserialize, Serialize};

use super::{
    Api, Caller, Cause, NO_STORE, password_error,
    sessions::{LoggedIn, NewSession},
};
use crate::{
    identity::{DisplayName, Username},
    password::Password,
    store::{Deletion, NewUser, Registration, User},
    token::Token,
};

/// No `Debug`: it holds a password.
#[derive(Deserialize)]
pub(crate) struct RegisterBody {
    username: String,
    password: String,
    display_name: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct RenameBody {
    display_name: String,
}

/// A user as the API shows it.
#[derive(Serialize)]
pub(crate) struct UserAnswer {
    user_id: i64,
    public_id: String,
    username: String,
    display_name: String,
}

impl From<User> for UserAnswer {
    fn from(user: User) -> Self {
        Self {
            user_id: user.id,
            public_id: user.public_id,
            username: user.username,
            display_name: user.display_name,
        }
    }
}

/// `POST /api/register`: creates a user and logs it in, 201.
pub(crate) async fn register(
    State(api): State<Arc<Api>>,
    Cause(cause): Cause,
    Json(body): Json<RegisterBody>,
) -> Result<Response, ApiError> {
    let username = Username::parse(&body.username)
        .map_err(|error| ApiError::bad_request("invalid_username", error.to_string()))?;
    let password = Password::parse(body.password)
        .map_err(|error| ApiError::bad_request("invalid_password", error.to_string()))?;
    let display_name = match body.display_name {
        Some(name) => display_name(&name)?,
        None => DisplayName::from(username.clone()),
    };
    let taken = || ApiError::conflict("username_taken", "this user name is taken");
    // Asked before the hash, which is dear; asked again with the row.
    if api.store.is_taken(&username).await? {
        return Err(taken());
    }
    let password_hash = api.passwords.hash(password).await.map_err(password_error)?;
    let token = Token::random();
    let new = NewUser {
        // Else the role would go to whoever takes the name of a deleted admin.
        never_used: api.admins.contains(&username),
        username,
        display_name,
        password_hash,
    };
    match api.store.register(new, token.hash(), &cause).await? {
        Registration::UsernameTaken => Err(taken()),
        Registration::Created(user, session) => {
            api.announced();
            tracing::info!(
                user_id = user.id,
                username = user.username,
                "user registered"
            );
            let answer = Json(LoggedIn::new(user.into(), NewSession { token, session }));
            Ok((StatusCode::CREATED, NO_STORE, answer).into_response())
        }
    }
}

/// `PUT /api/users/{id}`: changes the display name, of oneself or by an admin.
pub(crate) async fn rename(
    State(api): State<Arc<Api>>,
    Caller(caller): Caller,
    Path(id): Path<i64>,
    Cause(cause): Cause,
    Json(body): Json<RenameBody>,
) -> Result<Json<UserAnswer>, ApiError> {
    if caller.user.id != id && !api.is_admin(&caller) {
        return Err(ApiError::forbidden(
            "only the user itself or an admin may change it",
        ));
    }
    let name = display_name(&body.display_name)?;
    let renamed = api.store.rename(id, &name, &cause).await?;
    let user = renamed.ok_or_else(|| ApiError::not_found("no such user"))?;
    api.announced();
    Ok(Json(user.into()))
}

/// `DELETE /api/users/{id}`: oneself, or an admin; 204, also when the user was
/// deleted before. An id that never was a user is 404.
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    Caller(caller): Caller,
    Path(id): Path<i64>,
    Cause(cause): Cause,
) -> Result<StatusCode, ApiError> {
    // The same answer whether the user exists or not: ids are not to be probed.
    if caller.user.id != id && !api.is_admin(&caller) {
        return Err(ApiError::forbidden(
            "only the user itself or an admin may delete it",
        ));
    }
    match api.store.delete_user(id, &cause).await? {
        Deletion::Deleted => {
            api.announced();
            tracing::info!(user_id = id, by = caller.user.id, "user deleted");
            Ok(StatusCode::NO_CONTENT)
        }
        Deletion::GoneBefore => Ok(StatusCode::NO_CONTENT),
        Deletion::Unknown => Err(ApiError::not_found("no such user")),
    }
}

fn display_name(text: &str) -> Result<DisplayName, ApiError> {
    DisplayName::parse(text)
        .map_err(|error| ApiError::bad_request("invalid_display_name", error.to_string()))
}
