//! Connections to upstreams.

/// Idle upstream connections of one thread.
#[derive(Debug, Default)]
pub struct Pool {}
