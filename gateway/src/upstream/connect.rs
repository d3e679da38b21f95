//! One connection to an upstream, within its deadline, never to ourselves.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use edd_route::UserId;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::fleet::{Reach, Target};
use super::{Choice, Failed, Io, Socket, Way, proxy_out};
use crate::listener::Refused;
use crate::shared::Shared;

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
    /// The handshake failed, most often for its certificate.
    #[error("TLS with {address}")]
    Tls {
        /// Whom.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The name has no address.
    #[error("resolving the upstream's name")]
    Unresolved(#[source] io::Error),
    /// The target cannot be spoken to as it is configured.
    #[error("{0}")]
    Unusable(String),
}

impl ConnectError {
    /// What it means for another try.
    pub(crate) fn failed(&self) -> Failed {
        match self {
            Self::Limit(_) => Failed::Ours,
            Self::TimedOut => Failed::ConnectTimedOut,
            Self::Loop(_)
            | Self::Refused { .. }
            | Self::Tls { .. }
            | Self::Unresolved(_)
            | Self::Unusable(_) => Failed::Connect,
        }
    }
}

/// On whose behalf a connection is made, where the upstream is told.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Behalf {
    /// A client's, and the address that it connected to.
    Client(SocketAddr, SocketAddr),
    /// The gateway's own.
    Gateway,
}

/// Connects to `address`, where a container of `owner` is, within `timeout`, without Nagle's
/// delay.
///
/// Cancellation safe: dropping the future gives the connection up.
pub async fn connect(
    address: SocketAddr,
    owner: UserId,
    timeout: Duration,
    shared: &Shared,
) -> Result<Socket, ConnectError> {
    let deadline = Instant::now() + timeout;
    connect_by(address, Some(owner), deadline, shared.fleet.reach()).await
}

/// An upstream that vanishes is noticed, as clients are that do (see `listener::bind`).
async fn connect_by(
    address: SocketAddr,
    owner: Option<UserId>,
    deadline: Instant,
    reach: &Reach,
) -> Result<Socket, ConnectError> {
    if reach.gate.is_own(address) {
        reach.metrics.connection_refused("loop");
        return Err(ConnectError::Loop(address));
    }
    let room_by = deadline.min(Instant::now() + ROOM_WAIT);
    let has_idle = || reach.metrics.has_idle_upstream();
    let permit = reach.gate.admit_upstream_by(owner, room_by, has_idle).await;
    let permit = permit.map_err(|refused| {
        reach.metrics.connection_refused(refused.label());
        ConnectError::Limit(refused)
    })?;
    let refused = |source| ConnectError::Refused { address, source };
    let stream = timeout_at(deadline, TcpStream::connect(address))
        .await
        .map_err(|_| ConnectError::TimedOut)?
        .map_err(refused)?;
    stream.set_nodelay(true).map_err(refused)?;
    SockRef::from(&stream)
        .set_tcp_keepalive(&KEEPALIVE)
        .map_err(refused)?;
    Ok(Socket::new(stream, permit))
}

/// Connects to the target that was chosen, within `timeout`. Cancellation safe.
pub(crate) async fn open(
    choice: &Choice<'_>,
    behalf: Behalf,
    timeout: Duration,
    reach: &Reach,
) -> Result<(Io, SocketAddr), ConnectError> {
    match choice.way() {
        Way::Address(address, owner) => {
            let deadline = Instant::now() + timeout;
            let socket = connect_by(address, Some(owner), deadline, reach).await?;
            Ok((Io::Plain(socket), address))
        }
        Way::Target(target) => dial(target, behalf, timeout, reach).await,
    }
}

/// Connects to a static target within `timeout`: resolves, connects, announces
/// the client, shakes hands, as the target wants it.
///
/// Of several addresses the first that answers; each may use its share of the
/// time that is left. Cancellation safe.
pub(crate) async fn dial(
    target: &Target,
    behalf: Behalf,
    timeout: Duration,
    reach: &Reach,
) -> Result<(Io, SocketAddr), ConnectError> {
    let deadline = Instant::now() + timeout;
    let (mut socket, address) = connect_any(target, deadline, reach).await?;
    if target.announces() {
        let header = match behalf {
            Behalf::Client(client, listener) => proxy_out::header(client, listener),
            Behalf::Gateway => proxy_out::local(),
        };
        timeout_at(deadline, socket.write_all(&header))
            .await
            .map_err(|_| ConnectError::TimedOut)?
            .map_err(|source| ConnectError::Refused { address, source })?;
    }
    let Some(tls) = target.tls() else {
        return Ok((Io::Plain(socket), address));
    };
    let tls = tls.map_err(|error| ConnectError::Unusable(error.to_owned()))?;
    let stream = timeout_at(deadline, tls.connect(socket))
        .await
        .map_err(|_| ConnectError::TimedOut)?
        .map_err(|source| ConnectError::Tls { address, source })?;
    Ok((Io::Tls(Box::new(stream)), address))
}

async fn connect_any(
    target: &Target,
    deadline: Instant,
    reach: &Reach,
) -> Result<(Socket, SocketAddr), ConnectError> {
    let addresses = target
        .name()
        .addresses(deadline)
        .await
        .map_err(ConnectError::Unresolved)?;
    let mut failure = ConnectError::TimedOut;
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / left.max(1);
        match connect_by(address, None, now + share, reach).await {
            Ok(stream) => return Ok((stream, address)),
            // The others would be refused too.
            Err(error @ ConnectError::Limit(_)) => return Err(error),
            Err(error) => failure = error,
        }
        left -= 1;
    }
    Err(failure)
}

/// Two minutes of silence that is not only one's own.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// At the cap: how long an idle connection may take to make room.
const ROOM_WAIT: Duration = Duration::from_millis(500);
