//! The way to the upstreams: names to addresses, connections, and those kept for reuse.
//!
//! Everything here belongs to one data-plane thread and is never shared, so
//! there is no lock. What travels over a connection is not known here: the pool
//! keeps whatever the HTTP engine gives it.

use std::fmt;
use std::sync::Arc;

use edd_route::ContainerId;

mod connect;
mod h1;
#[allow(dead_code, unused_imports, reason = "routes are about to name such targets")]
pub(crate) mod h2;
mod pool;
mod resolve;
mod socket;
pub mod tls;

pub(crate) use connect::connect_any;
pub use connect::{Address, ConnectError, connect};
pub(crate) use h1::H1;
pub use pool::{Idle, IdlePool, Reusable};
pub(crate) use resolve::Names;
pub use socket::Socket;

/// Whose connections are interchangeable.
///
/// Never an address alone: an address changes hands, the start of a container
/// does not. The rule's port is part of it, so that the end of one rule does
/// not cut a connection that serves another.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum UpstreamKey {
    /// One run of a container, by one of its rules.
    Container {
        /// Which container.
        id: ContainerId,
        /// Which start of it.
        start: u64,
        /// The rule's public port.
        port: u16,
        /// The rule's target port.
        target_port: u16,
    },
    /// A static route's target, `host:port`.
    Static(Arc<str>),
}

impl fmt::Display for UpstreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container {
                id, target_port, ..
            } => write!(f, "{id}:{target_port}"),
            Self::Static(target) => f.write_str(target),
        }
    }
}

/// What one thread knows of the upstreams. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    pub(crate) h1: IdlePool<UpstreamKey, H1<Socket>>,
    pub(crate) names: Names,
}
