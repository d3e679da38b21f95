//! One TCP connection to an upstream, within its deadline, never to ourselves.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::{Names, Socket};
use crate::listener::Refused;
use crate::shared::Shared;

/// How to reach an upstream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// `host:port`, to be resolved.
    Name(Arc<str>),
    /// An address.
    Socket(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Socket(address) => address.fmt(f),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address leads back to one of our own listeners.
    #[error("{0} is one of the gateway's own listeners")]
    Loop(SocketAddr),
    /// There are as many connections to upstreams as there may be.
    #[error(transparent)]
    Limit(Refused),
    /// Refused, unreachable, out of sockets.
    #[error("connecting to {address}")]
    Refused {
        /// Whom.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The deadline passed.
    #[error("connecting took too long")]
    TimedOut,
    /// The name has no address.
    #[error("resolving the upstream's name")]
    Unresolved(#[source] io::Error),
}

/// Connects to `address` within `timeout`, without Nagle's delay.
///
/// Cancellation safe: dropping the future gives the connection up.
pub async fn connect(
    address: SocketAddr,
    timeout: Duration,
    shared: &Shared,
) -> Result<Socket, ConnectError> {
    connect_by(address, Instant::now() + timeout, shared).await
}

async fn connect_by(
    address: SocketAddr,
    deadline: Instant,
    shared: &Shared,
) -> Result<Socket, ConnectError> {
    if shared.gate.is_own(address) {
        shared.metrics.connection_refused("loop");
        return Err(ConnectError::Loop(address));
    }
    let permit = shared.gate.admit_upstream().map_err(|refused| {
        shared.metrics.connection_refused(refused.label());
        ConnectError::Limit(refused)
    })?;
    let refused = |source| ConnectError::Refused { address, source };
    let stream = timeout_at(deadline, TcpStream::connect(address))
        .await
        .map_err(|_| ConnectError::TimedOut)?
        .map_err(refused)?;
    stream.set_nodelay(true).map_err(refused)?;
    Ok(Socket::new(stream, permit))
}

/// Connects to whatever `address` stands for within `timeout`; of several addresses the first that answers.
///
/// Each address may use its share of the time that is left.
pub(crate) async fn connect_any(
    address: &Address,
    timeout: Duration,
    shared: &Shared,
    names: &Names,
) -> Result<(Socket, SocketAddr), ConnectError> {
    let deadline = Instant::now() + timeout;
    let addresses = match address {
        Address::Socket(address) => {
            let stream = connect_by(*address, deadline, shared).await?;
            return Ok((stream, *address));
        }
        Address::Name(name) => names
            .resolve(name, deadline)
            .await
            .map_err(ConnectError::Unresolved)?,
    };
    let mut failure = ConnectError::TimedOut;
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for &address in addresses.iter() {
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / left.max(1);
        match connect_by(address, now + share, shared).await {
            Ok(stream) => return Ok((stream, address)),
            // The others would be refused too.
            Err(error @ ConnectError::Limit(_)) => return Err(error),
            Err(error) => failure = error,
        }
        left -= 1;
    }
    Err(failure)
}
