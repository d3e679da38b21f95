//! What the handlers of every service share, beside `edd_daemon::api`.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};
use edd_daemon::api::{ApiError, RequestId};
use edd_events::envelope;

/// What the events of this request refer to: its id, and its trace.
#[derive(Clone, Debug)]
pub struct Cause(pub envelope::Cause);

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

/// A span of our own in the trace of a W3C trace parent of version 00; anything
/// else starts no trace here.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    envelope::child_trace(value)
}

/// Milliseconds since the epoch as RFC 3339, in whole seconds.
pub fn rfc3339(unix_ms: i64) -> String {
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
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_well_formed_traces_are_continued() {
        let parse = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", HeaderValue::from_str(value).unwrap());
            traceparent(&headers)
        };
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let own = parse(good).unwrap();
        assert_eq!(own.get(..36), good.get(..36), "the same trace");
        assert_ne!(own, good, "another span");
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
