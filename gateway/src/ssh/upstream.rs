//! Connections to containers: dialled, proven, logged in.
//!
//! One per channel, since its socket may then stand for a slow client without
//! hurting another channel. A container's sshd drops log-ins at random when
//! ten wait (`MaxStartups 10:30:100`), so at most [`HANDSHAKES_MAX`] run at
//! once per container and one that is dropped is tried again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edd_route::ContainerId;
use edd_route::decide::SshMatch;
use russh::client::{self, AuthResult, Handle, Msg};
use russh::keys::PrivateKeyWithHashAlg;
use russh::keys::ssh_key::public::KeyData;
use russh::{Channel, ChannelOpenFailure};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::container::ContainerHandler;
use super::grants::{Grants, Listen};
use super::hostkeys::{HostKeyError, HostKeys};
use super::keyring::SshKeys;
use super::pulse;
use super::settings::{self, Keepalive, Limits};
use super::wire::{BannerSeen, Wire};
use crate::shared::Shared;
use crate::telemetry::ConnectionGauge;
use crate::upstream::{ConnectError, connect};

/// Log-ins at once per container.
const HANDSHAKES_MAX: usize = 8;

/// Further tries of a connection that was closed before its banner.
const RETRIES_MAX: u32 = 3;

/// The first pause before such a try; doubles, with jitter.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A whole dial: the wait for a turn, all tries.
const DIAL_DEADLINE: Duration = Duration::from_secs(30);

/// Why a container could not be reached or did not let us in.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Closed before it said who it is: full, or just starting.
    #[error("closed before its banner")]
    ClosedEarly,
    /// No TCP connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It shows a host key that it may not have.
    #[error(transparent)]
    HostKey(#[from] HostKeyError),
    /// The gateway's key is not accepted for this user.
    #[error("the gateway's key is not accepted")]
    NotAccepted,
    /// The protocol failed.
    #[error("ssh failed")]
    Protocol(#[from] russh::Error),
    /// A deadline passed.
    #[error("{0} took too long")]
    Timeout(&'static str),
}

/// Makes connections to containers.
pub(crate) struct Dialer {
    shared: Arc<Shared>,
    keys: SshKeys,
    host_keys: Arc<HostKeys>,
    turns: Turns,
    limits: Limits,
}

/// A connection to a container, logged in. Dropped, it is cut at once.
pub(crate) struct Upstream {
    handle: Arc<Handle<ContainerHandler>>,
    /// What it may carry back.
    pub(crate) grants: Arc<Grants>,
    _cut: DropGuard,
    _gauge: ConnectionGauge,
}

impl Dialer {
    /// Logs in with the client key of `keys`.
    pub(crate) fn new(shared: Arc<Shared>, keys: SshKeys, limits: Limits) -> Self {
        Self {
            shared,
            keys,
            host_keys: Arc::new(HostKeys::new()),
            turns: Turns::default(),
            limits,
        }
    }

    /// Connects and logs in as the match says. At most [`DIAL_DEADLINE`].
    pub(crate) async fn dial(&self, target: &SshMatch) -> Result<Upstream, DialError> {
        timeout(DIAL_DEADLINE, self.dial_patiently(target))
            .await
            .unwrap_or(Err(DialError::Timeout("the log-in to the container")))
    }

    async fn dial_patiently(&self, target: &SshMatch) -> Result<Upstream, DialError> {
        let mut pause = RETRY_PAUSE;
        for _ in 0..RETRIES_MAX {
            match self.dial_once(target).await {
                Err(DialError::ClosedEarly) => {}
                result => return result,
            }
            debug!(container = %target.id, "closed before its banner, trying again");
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
            pause *= 2;
        }
        self.dial_once(target).await
    }

    async fn dial_once(&self, target: &SshMatch) -> Result<Upstream, DialError> {
        let _turn = self.turns.take(&target.id).await;
        let announced = target.host_key.as_deref();
        let expected = self
            .host_keys
            .expected(&target.id, target.start, announced)?;
        let address = SocketAddr::new(target.address, self.shared.config.container_ssh_port);
        let limit = self.shared.config.timeouts.connect;
        let socket = connect(address, target.owner, limit, &self.shared).await?;
        self.limits.keepalive.apply_to(socket.get_ref());

        let cut = CancellationToken::new();
        // Also ends what is under way when this future is dropped.
        let guard = cut.clone().drop_guard();
        let seen = BannerSeen::default();
        let grants = Arc::<Grants>::default();
        let backlog = Arc::clone(&grants.backlog);
        let wire = Wire::upstream(socket, cut.clone(), seen.clone(), Arc::clone(&backlog));
        let algorithm = expected.as_ref().map(KeyData::algorithm);
        let config = settings::upstream(algorithm.as_ref(), &self.limits);
        let handler = ContainerHandler {
            shared: Arc::clone(&self.shared),
            host_keys: Arc::clone(&self.host_keys),
            id: target.id.clone(),
            start: target.start,
            announced: announced.is_some(),
            expected,
            _ended: grants.ended.clone().drop_guard(),
            grants: Arc::clone(&grants),
        };
        let log_in = async {
            let mut handle = match client::connect_stream(config, wire, handler).await {
                Err(error) if !seen.is_set() => {
                    debug!(container = %target.id, %error, "no banner");
                    return Err(DialError::ClosedEarly);
                }
                result => result?,
            };
            let keys = self.keys.in_force().ok_or(DialError::NotAccepted)?;
            let key = PrivateKeyWithHashAlg::new(Arc::clone(&keys.client), None);
            match handle
                .authenticate_publickey(&target.unix_user, key)
                .await?
            {
                AuthResult::Success => Ok(handle),
                AuthResult::Failure { .. } => Err(DialError::NotAccepted),
            }
        };
        let handle = timeout(self.limits.container_login, log_in)
            .await
            .map_err(|_| DialError::Timeout("the handshake with the container"))??;
        let handle = Arc::new(handle);
        let Keepalive {
            interval,
            questions_max,
        } = self.limits.keepalive;
        let pulse = pulse::run(Arc::clone(&handle), backlog, interval, questions_max, cut);
        tokio::spawn(pulse);
        Ok(Upstream {
            handle,
            grants,
            _cut: guard,
            _gauge: self.shared.metrics.upstream_active(),
        })
    }
}

/// What a channel is opened for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    /// A session: shell, command, subsystem.
    Session,
    /// A TCP connection from the container (`-L`, `-D`, `-J`).
    Forward {
        /// Where to.
        host: String,
        /// Its port.
        port: u32,
        /// The client's end, as the client says.
        from: (String, u32),
    },
    /// A connection to a Unix socket of the container.
    Socket {
        /// Its path.
        path: String,
    },
}

impl Purpose {
    /// The channel's type, as the protocol names it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Forward { .. } => "direct-tcpip",
            Self::Socket { .. } => "direct-streamlocal@openssh.com",
        }
    }

    /// Where to, for the log.
    pub(crate) fn target(&self) -> String {
        match self {
            Self::Session => String::new(),
            Self::Forward { host, port, .. } => format!("{host}:{port}"),
            Self::Socket { path } => path.clone(),
        }
    }
}

/// A refusal of the gateway's own, of one of the protocol's kinds, in words for the user.
pub(crate) fn refusal(kind: &ChannelOpenFailure, why: &str) -> ChannelOpenFailure {
    ChannelOpenFailure::Other {
        code: kind.code(),
        reason: why.to_owned(),
    }
}

/// Why a container did not open a channel.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The connection has ended: a spare may have died unnoticed.
    Lost,
    /// What the client is to be told.
    Refused(ChannelOpenFailure),
}

impl Upstream {
    /// Whether it has ended meanwhile.
    pub(crate) fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Opens its one channel, within `limit`.
    pub(crate) async fn open(
        &self,
        purpose: &Purpose,
        limit: Duration,
    ) -> Result<Channel<Msg>, OpenError> {
        let open = async {
            match purpose {
                Purpose::Session => self.handle.channel_open_session().await,
                Purpose::Forward { host, port, from } => {
                    let (from_host, from_port) = from.clone();
                    self.handle
                        .channel_open_direct_tcpip(host, *port, from_host, from_port)
                        .await
                }
                Purpose::Socket { path } => {
                    self.handle
                        .channel_open_direct_streamlocal(path.clone())
                        .await
                }
            }
        };
        match timeout(limit, open).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(russh::Error::ChannelOpenFailure(reason))) => Err(OpenError::Refused(reason)),
            Ok(Err(_)) => Err(OpenError::Lost),
            Err(_) => Err(OpenError::Refused(ChannelOpenFailure::ConnectFailed)),
        }
    }
    /// Makes the container listen; the port that it chose, if it was to choose one.
    pub(crate) async fn listen(&self, listen: &Listen) -> Result<u32, russh::Error> {
        match listen {
            Listen::Port { address, port } => {
                self.handle.tcpip_forward(address.clone(), *port).await
            }
            Listen::Socket { path } => {
                let listens = self.handle.streamlocal_forward(path.clone()).await;
                listens.map(|()| 0)
            }
        }
    }

    /// Makes the container listen no more.
    pub(crate) async fn unlisten(&self, listen: &Listen) -> Result<(), russh::Error> {
        match listen {
            Listen::Port { address, port } => {
                self.handle
                    .cancel_tcpip_forward(address.clone(), *port)
                    .await
            }
            Listen::Socket { path } => self.handle.cancel_streamlocal_forward(path.clone()).await,
        }
    }
}

/// Who may log in now, per container.
#[derive(Clone, Default)]
struct Turns(Arc<Mutex<HashMap<ContainerId, Arc<Semaphore>>>>);

/// A turn; the last one of a container takes its entry along.
struct Turn {
    turns: Turns,
    id: ContainerId,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// Waits for a turn. Cancellation safe.
    async fn take(&self, id: &ContainerId) -> Turn {
        let semaphore = {
            let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = map
                .entry(id.clone())
                .or_insert_with(|| Arc::new(Semaphore::new(HANDSHAKES_MAX)));
            Arc::clone(entry)
        };
        let mut turn = Turn {
            turns: self.clone(),
            id: id.clone(),
            permit: None,
        };
        // Never closed, so this never fails.
        turn.permit = semaphore.acquire_owned().await.ok();
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.permit = None;
        let mut map = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map
            .get(&self.id)
            .is_some_and(|semaphore| Arc::strong_count(semaphore) == 1)
        {
            map.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_are_limited_per_container_and_leave_nothing() {
        let turns = Turns::default();
        let (one, two) = (
            ContainerId::new("one").unwrap(),
            ContainerId::new("two").unwrap(),
        );
        let mut held = Vec::new();
        for _ in 0..HANDSHAKES_MAX {
            held.push(turns.take(&one).await);
        }
        let wait = timeout(Duration::from_millis(20), turns.take(&one)).await;
        assert!(wait.is_err(), "the ninth waits");
        drop(turns.take(&two).await);
        held.pop();
        held.push(turns.take(&one).await);
        held.clear();
        assert!(turns.0.lock().unwrap().is_empty());
    }
}
