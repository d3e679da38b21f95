//! The way to the upstreams: which of several, names to addresses, connections,
//! and those kept for reuse.
//!
//! What one request needs belongs to its data-plane thread: [`Pool`] and the
//! tries of a request. What is known of a target is the process's ([`Fleet`]):
//! the threads read it by atomics, the control runtime resolves and checks.

use std::fmt;

use edd_route::ContainerId;

use crate::listener::Gate;

mod attempts;
#[cfg(test)]
mod attempts_tests;
mod balance;
mod breaker;
mod budget;
mod check;
mod connect;
mod dns;
mod fleet;
mod h1;
pub(crate) mod h2;
mod io;
mod names;
mod pool;
pub(crate) mod proxy_out;
mod socket;
pub mod tls;
mod trouble;

pub(crate) use attempts::{Choice, Destination, Failed, NoTarget, Upstreams, Way};
pub(crate) use connect::{Behalf, open};
pub use connect::{ConnectError, connect};
pub use fleet::{Fleet, Reach, StaticKey};
pub(crate) use h1::H1;
pub use io::Io;
pub use pool::{Idle, IdlePool, Reusable};
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
    /// A static route's target.
    Static(StaticKey),
}

impl fmt::Display for UpstreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container {
                id, target_port, ..
            } => write!(f, "{id}:{target_port}"),
            Self::Static(key) => f.write_str(key.target.label()),
        }
    }
}

/// What one thread knows of the upstreams. Clones share it.
#[derive(Clone, Debug)]
pub struct Pool {
    // Boxed: they go from hand to hand.
    pub(crate) h1: IdlePool<UpstreamKey, Box<H1<Io>>>,
    pub(crate) h2: h2::Connections,
    pub(crate) upstreams: Upstreams,
}

impl Pool {
    /// Empty; idle connections make room when `gate` asks for it.
    pub fn under(gate: &Gate) -> Self {
        Self {
            h1: IdlePool::under(gate.clone()),
            h2: h2::Connections::default(),
            upstreams: Upstreams::default(),
        }
    }
}
