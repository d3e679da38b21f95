//! What the gateway says about itself: metrics for machines, one access record per request,
//! session or raw connection for people.

pub mod access;
mod durations;
mod metrics;
mod requests;

pub use metrics::{ConnectionGauge, Metrics};
