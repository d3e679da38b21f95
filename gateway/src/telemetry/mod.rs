//! What the gateway says about itself: metrics for machines, one access record per request,
//! session or raw connection for people.
//!
//! Counting and recording a request costs the thread that serves it a move into
//! a ring and additions to counters of its own ([`AccessLog`], `requests`).

pub mod access;
mod access_line;
mod access_log;
mod durations;
mod metrics;
mod requests;
mod tally;
mod text;

pub use access_log::AccessLog;
pub use metrics::{CERTIFICATE, ConnectionGauge, Metrics, ROUTES, SshBytes, UpstreamGauge};
pub use text::Text;
