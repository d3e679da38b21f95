//! What the services' REST interfaces share.
//!
//! [`serve_api`] wraps a router so that every answer carries `X-Request-ID`,
//! every error has the form `{error: {code, message}, request_id}`, bodies and
//! times are bounded, and each request leaves one log line and its metrics.
//! Routes and their meaning belong to the services.

mod error;
mod extract;
mod layer;
mod metrics;

pub use self::{
    error::ApiError,
    extract::{Bearer, Json, Path},
    layer::{ApiLimits, RequestId, serve_api},
    metrics::ApiMetrics,
};
