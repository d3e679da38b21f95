//! The dead letters of all streams: list, show, replay, drop.
//!
//! The only part of the admin endpoint that changes anything. There is no
//! log-in, so a browser on this machine must not be made to do it by a foreign
//! page: requests that browsers mark with `Origin` or `Sec-Fetch-Site` are
//! refused.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use edd_events::dead_letter::{Filter, LetterError, LetterRef, Letters, PAGE_MAX, Page};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Admin;

/// Letters of a page when nothing is said.
const PAGE_DEFAULT: usize = 100;

#[derive(Deserialize)]
pub(super) struct Wanted {
    stream: Option<String>,
    subject: Option<String>,
    reason: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Replayed {
    /// The event's new place, `STREAM:SEQUENCE`.
    event: LetterRef,
}

/// Why not, in the form of all APIs of the cloud.
pub(super) struct Refusal(StatusCode, &'static str, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, code, message) = self;
        (
            status,
            Json(json!({"error": {"code": code, "message": message}})),
        )
            .into_response()
    }
}

impl From<LetterError> for Refusal {
    fn from(error: LetterError) -> Self {
        let (status, code) = match &error {
            LetterError::Missing(_) => (StatusCode::NOT_FOUND, "not_found"),
            LetterError::Expired(_) => (StatusCode::GONE, "expired"),
            LetterError::Nameless(..) => (StatusCode::CONFLICT, "not_replayable"),
            LetterError::NotRemoved { .. } => (StatusCode::CONFLICT, "not_removed"),
            LetterError::Nats(_) | LetterError::Unheard(_) | LetterError::Undeleted(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
            }
        };
        Self(status, code, error.to_string())
    }
}

pub(super) async fn list(
    State(admin): State<Admin>,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Page>, Refusal> {
    let Query(wanted) = wanted.map_err(|error| bad(error.body_text()))?;
    let after = wanted.after.as_deref().map(parse).transpose()?;
    let limit = wanted.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(bad(format!("limit: from 1 to {PAGE_MAX}")));
    }
    let filter = Filter {
        stream: wanted.stream,
        subject: wanted.subject,
        reason: wanted.reason,
    };
    let page = letters(&admin)?
        .list(&filter, after.as_ref(), limit)
        .await?;
    Ok(Json(page))
}

pub(super) async fn show(
    State(admin): State<Admin>,
    Path(letter): Path<String>,
) -> Result<Json<serde_json::Value>, Refusal> {
    let letter = letters(&admin)?.get(&parse(&letter)?).await?;
    Ok(Json(letter.to_json()))
}

pub(super) async fn replay(
    State(admin): State<Admin>,
    Path(letter): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Replayed>, Refusal> {
    no_browser(&headers)?;
    let at = parse(&letter)?;
    let sequence = letters(&admin)?.replay(&at).await?;
    tracing::info!(letter = %at, sequence, "dead letter replayed");
    Ok(Json(Replayed {
        event: LetterRef {
            stream: at.stream,
            sequence,
        },
    }))
}

pub(super) async fn discard(
    State(admin): State<Admin>,
    Path(letter): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Refusal> {
    no_browser(&headers)?;
    let at = parse(&letter)?;
    letters(&admin)?.discard(&at).await?;
    tracing::info!(letter = %at, "dead letter dropped");
    Ok(StatusCode::NO_CONTENT)
}

fn letters(admin: &Admin) -> Result<Letters, Refusal> {
    admin.letters.borrow().clone().ok_or_else(|| {
        let message = "events are off: no --nats-url".to_owned();
        Refusal(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    })
}

fn parse(letter: &str) -> Result<LetterRef, Refusal> {
    letter.parse().map_err(bad)
}

fn bad(message: String) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, "bad_request", message)
}

fn no_browser(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key("origin") || headers.contains_key("sec-fetch-site") {
        let message = "not from a web page".to_owned();
        return Err(Refusal(StatusCode::FORBIDDEN, "forbidden", message));
    }
    Ok(())
}
