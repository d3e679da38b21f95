//! The layer around every REST request: id, bounds, error form, log, metrics.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRequestParts, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use futures_util::FutureExt as _;
use uuid::Uuid;

use super::{ApiError, ApiMetrics};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Characters of a path that reach the log.
const LOGGED_PATH_CHARS_MAX: usize = 256;

/// The bounds of a REST interface.
#[derive(Clone, Copy, Debug)]
pub struct ApiLimits {
    /// Largest request body, in bytes; more is 413.
    pub body_bytes_max: usize,
    /// From the request's head to the answer, the body's arrival included; then 408
    /// (which also covers a service that is too slow: the client sees one thing).
    pub request_timeout: Duration,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            body_bytes_max: 64 * 1024,
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// The id of a request: the client's `X-Request-ID` if it is
/// `[A-Za-z0-9._-]{1,128}`, else one of our own. Also an extractor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestId(pub String);

impl RequestId {
    fn of(request: &Request) -> Self {
        let mut given = request.headers().get_all(REQUEST_ID).iter();
        match (
            given.next().and_then(|value| value.to_str().ok()),
            given.next(),
        ) {
            (Some(id), None) if is_valid(id) => Self(id.to_owned()),
            _ => Self(Uuid::now_v7().simple().to_string()),
        }
    }
}

fn is_valid(id: &str) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl<S: Send + Sync> FromRequestParts<S> for RequestId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| ApiError::internal("a request without an id: the api layer is missing"))
    }
}

/// Wraps the finished router of a service; call it last.
pub fn serve_api(router: Router, metrics: ApiMetrics, limits: ApiLimits) -> Router {
    router
        .fallback(async || ApiError::not_found("no such resource"))
        .layer(DefaultBodyLimit::max(limits.body_bytes_max))
        .layer(middleware::from_fn_with_state((metrics, limits), around))
}

async fn around(
    State((metrics, limits)): State<(ApiMetrics, ApiLimits)>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let id = RequestId::of(&request);
    request.extensions_mut().insert(id.clone());
    let method = request.method().clone();
    let path: String = request
        .uri()
        .path()
        .chars()
        .take(LOGGED_PATH_CHARS_MAX)
        .collect();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |matched| matched.as_str().to_owned());

    // A panic is a bug of ours: it costs its own request and nothing else.
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
    let response = match tokio::time::timeout(limits.request_timeout, answer).await {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => ApiError::internal("a handler panicked").into_response(),
        Err(_elapsed) => ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            "the request took too long",
        )
        .into_response(),
    };
    let response = finish(response, &id);

    let duration = started.elapsed();
    let status = response.status().as_u16();
    metrics.record(&route, &method, status, duration);
    tracing::info!(
        request_id = id.0, %method, path, status, duration_us = duration.as_micros() as u64,
        "request"
    );
    response
}

/// Gives errors their form and every answer its request id.
fn finish(mut response: Response, id: &RequestId) -> Response {
    let error = response.extensions_mut().remove::<ApiError>();
    let mut response = match error {
        Some(error) => error.render(&id.0),
        None => match plain_error(response.status()) {
            // axum's own answers (405, rejections) are bare text.
            Some(error) if !is_json(&response) => {
                let headers = std::mem::take(response.headers_mut());
                let mut rendered = error.render(&id.0);
                if let Some(allow) = headers.get(axum::http::header::ALLOW) {
                    rendered
                        .headers_mut()
                        .insert(axum::http::header::ALLOW, allow.clone());
                }
                rendered
            }
            _ => response,
        },
    };
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn plain_error(status: StatusCode) -> Option<ApiError> {
    let (code, message) = match status.as_u16() {
        404 => ("not_found", "no such resource"),
        405 => (
            "method_not_allowed",
            "this resource does not take this method",
        ),
        413 => ("body_too_large", "the body is too large"),
        400..=499 => ("bad_request", "the request cannot be answered"),
        500..=599 => ("internal", "internal error"),
        _ => return None,
    };
    Some(ApiError::new(status, code, message))
}

fn is_json(response: &Response) -> bool {
    response
        .headers()
        .get(axum::http::header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_of_clients_are_kept_only_when_harmless() {
        for good in ["a", "A-z_0.9", &"x".repeat(128)] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", "a b", "a\"b", "é", "a/b", &"x".repeat(129)] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
