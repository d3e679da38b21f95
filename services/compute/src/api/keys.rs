//! SSH keys of users.

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use edd_daemon::api::{ApiError, Json, Path};
use serde::{Deserialize, Serialize};

use super::{Api, Caller, Cause, invalid, owner_gone, quota, rfc3339};
use crate::{
    input::{PublicKey, check_name},
    store::{KeyCreation, SshKey},
};

#[derive(Debug, Deserialize)]
pub(crate) struct CreateBody {
    name: String,
    public_key: String,
}

/// A key as the API shows it.
#[derive(Debug, Serialize)]
pub(crate) struct KeyAnswer {
    id: i64,
    name: String,
    public_key: String,
    fingerprint: String,
    created_at: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct ListAnswer {
    ssh_keys: Vec<KeyAnswer>,
}

impl From<SshKey> for KeyAnswer {
    fn from(key: SshKey) -> Self {
        Self {
            id: key.id,
            name: key.name,
            public_key: key.public_key,
            fingerprint: key.fingerprint,
            created_at: rfc3339(key.created_at),
        }
    }
}

/// `GET /compute/ssh-keys`: the caller's, oldest first.
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
) -> Result<Json<ListAnswer>, ApiError> {
    let keys = api.store.keys_of(user.id).await?;
    Ok(Json(ListAnswer {
        ssh_keys: keys.into_iter().map(KeyAnswer::from).collect(),
    }))
}

/// `POST /compute/ssh-keys`: 201; 409 for a key that the caller has.
pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
    Cause(cause): Cause,
    Json(body): Json<CreateBody>,
) -> Result<Response, ApiError> {
    let name = check_name(&body.name).map_err(invalid)?;
    let key = PublicKey::parse(&body.public_key).map_err(invalid)?;
    match api
        .store
        .create_key(user.id, &name, &key, api.keys_per_user, &cause)
        .await?
    {
        KeyCreation::Created(key) => {
            api.announced();
            Ok((StatusCode::CREATED, Json(KeyAnswer::from(key))).into_response())
        }
        KeyCreation::Duplicate => Err(ApiError::conflict(
            "duplicate_key",
            "you have registered this key before",
        )),
        KeyCreation::OwnerGone => Err(owner_gone()),
        KeyCreation::TooMany => Err(quota("SSH keys", api.keys_per_user)),
    }
}

/// `DELETE /compute/ssh-keys/{id}`: 204.
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
    Cause(cause): Cause,
    Path(id): Path<i64>,
) -> Result<StatusCode, ApiError> {
    if !api.store.delete_key(user.id, id, &cause).await? {
        return Err(ApiError::not_found("no such SSH key"));
    }
    api.announced();
    Ok(StatusCode::NO_CONTENT)
}
