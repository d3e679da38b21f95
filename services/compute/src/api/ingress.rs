//! Ingress rules: asked for here, decided by the gateway.

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use edd_daemon::api::{ApiError, Json, Path};
use serde::Serialize;

use super::{Api, Caller, Cause, container_id, containers::RuleBody, invalid, no_container};
use crate::{
    input::Port,
    store::{IngressRule, RuleChange},
};

/// A rule as the API shows it.
#[derive(Debug, Serialize)]
pub(crate) struct RuleAnswer {
    port: u16,
    target_port: u16,
    /// `active` once the gateway confirmed it.
    status: &'static str,
}

#[derive(Debug, Serialize)]
pub(crate) struct ListAnswer {
    ingress: Vec<RuleAnswer>,
}

impl From<IngressRule> for RuleAnswer {
    fn from(rule: IngressRule) -> Self {
        Self {
            port: rule.port,
            target_port: rule.target_port,
            status: if rule.confirmed { "active" } else { "pending" },
        }
    }
}

/// `GET /compute/containers/{id}/ingress`.
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
    Path(id): Path<String>,
) -> Result<Json<ListAnswer>, ApiError> {
    let id = container_id(&id)?;
    let container = api
        .store
        .container(user.id, id.as_str())
        .await?
        .ok_or_else(no_container)?;
    let rules = api.store.rules_of(&container.id).await?;
    Ok(Json(ListAnswer {
        ingress: rules.into_iter().map(RuleAnswer::from).collect(),
    }))
}

/// `POST /compute/containers/{id}/ingress`: 201 for a new port; 200 for another
/// target of a known one, and for what was asked for before.
pub(crate) async fn request(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
    Cause(cause): Cause,
    Path(id): Path<String>,
    Json(body): Json<RuleBody>,
) -> Result<Response, ApiError> {
    let id = container_id(&id)?;
    let pair = body.check(&api).map_err(invalid)?;
    let change = api
        .store
        .request_rule(user.id, id.as_str(), pair, &cause)
        .await?;
    let (status, rule) = match change.ok_or_else(no_container)? {
        RuleChange::Created(rule) => (StatusCode::CREATED, rule),
        RuleChange::Replaced(rule) | RuleChange::Unchanged(rule) => (StatusCode::OK, rule),
    };
    api.announced();
    Ok((status, Json(RuleAnswer::from(rule))).into_response())
}

/// `DELETE /compute/containers/{id}/ingress/{port}`: 204.
pub(crate) async fn withdraw(
    State(api): State<Arc<Api>>,
    Caller(user): Caller,
    Cause(cause): Cause,
    Path((id, port)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let id = container_id(&id)?;
    let no_rule = || ApiError::not_found("no such ingress rule");
    // Any number names a rule or none: a range that was changed must not keep
    // old rules from being deleted.
    let port: u16 = port.parse().map_err(|_| no_rule())?;
    let port = Port::check(i64::from(port), &(0..=u16::MAX)).map_err(|_| no_rule())?;
    if !api
        .store
        .withdraw_rule(user.id, id.as_str(), port, &cause)
        .await?
    {
        return Err(no_rule());
    }
    api.announced();
    Ok(StatusCode::NO_CONTENT)
}
