//! SSH: the gateway's own server in front of the containers' servers.
//!
//! Takes connections of the SSH listener and those that a data thread found on
//! a dynamic port; decides logins by the route table; carries each channel to
//! a connection of its own to the container. Runs on [`threads`] of its own, not
//! on the data threads: a session is several tasks and its ciphers cost.
//!
//! In the order a connection meets them: [`lobby`] (who may wait for a login),
//! [`patience`] (what refusals cost), [`connection`] (its life), [`greeting`]
//! (which ciphers it is offered), [`wire`] (the socket under russh), [`handler`]
//! (what russh asks), [`upstream`] with [`hostkeys`] and [`warm`] (the way to
//! the container), [`container`] (what russh asks there), [`bridge`] (a
//! channel), [`answers`] (what the container says to its requests), [`uplink`]
//! with [`flow`] and [`window`] (what waits in it for the container), [`own`]
//! (and for the client), [`budget`] (how much may wait in all), [`pulse`] (who
//! keeps the connections to containers alive).
//!
//! A channel that the client opens has a container's connection to itself, so
//! it may stand without hurting others. What a container opens comes over the
//! connection on which the client asked for it: [`grants`] (what was asked),
//! [`forwards`] (`-R`), [`inbound`] (such a channel), [`downlink`] (what waits
//! in it for the client).

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod answers;
mod audit;
mod bridge;
mod budget;
mod connection;
mod container;
mod downlink;
mod farewell;
mod flow;
mod forwards;
mod grants;
mod greeting;
mod handler;
mod hostkeys;
mod inbound;
mod keyring;
mod keys;
mod lobby;
mod own;
mod patience;
mod pulse;
mod recording;
mod request;
mod settings;
mod threads;
mod uplink;
mod upstream;
mod warm;
mod window;
mod wire;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{debug, error};

pub use self::hostkeys::HostKeyError;
pub use self::keyring::{SshKeys, StoredKey};
pub use self::keys::KeyError;
pub use self::lobby::Startups;
pub use self::recording::RecordingsEnd;
pub use self::settings::{Keepalive, Limits};
pub use self::upstream::DialError;

use self::budget::Budget;
use self::lobby::Lobby;
use self::patience::Patience as Refusals;
use self::recording::Recorder;
use self::threads::Threads;
use self::upstream::Dialer;
use crate::listener::{Identified, Patience, Permit, Role, Who, accept, identify};
use crate::shared::Shared;

/// The SSH server; clones share it.
#[derive(Clone)]
pub struct SshServer(Arc<Inner>);

/// What every connection works with.
struct Inner {
    shared: Arc<Shared>,
    limits: Limits,
    keys: SshKeys,
    recorder: Option<Arc<Recorder>>,
    lobby: Arc<Lobby>,
    budget: Arc<Budget>,
    refusals: Refusals,
    dialer: Dialer,
    threads: Threads,
}

impl SshServer {
    /// Reads or makes the keys and serves `listener`, from when the doors are open until draining
    /// begins: accepts on the runtime of the caller, serves on threads of its own.
    pub async fn start(
        shared: Arc<Shared>,
        listener: std::net::TcpListener,
    ) -> anyhow::Result<Self> {
        let limits = Limits::of(&shared.config.ssh);
        Self::start_with(shared, listener, limits).await
    }

    /// [`Self::start`] with other limits at the door.
    pub async fn start_with(
        shared: Arc<Shared>,
        listener: std::net::TcpListener,
        limits: Limits,
    ) -> anyhow::Result<Self> {
        let keys = SshKeys::open(&shared.config, limits).await?;
        let recordings = shared.config.ssh.recordings.as_ref();
        let recorder = recordings
            .map(|recordings| {
                Recorder::start(recordings, shared.metrics.clone())
                    .with_context(|| format!("cannot record to {}", recordings.folder.display()))
            })
            .transpose()?;
        listener
            .set_nonblocking(true)
            .context("the SSH listener cannot be used")?;
        let listener =
            TcpListener::from_std(listener).context("the SSH listener cannot be used")?;
        let server = Self(Arc::new(Inner {
            limits,
            lobby: Lobby::new(limits.startups, limits.waiting_per_address_max),
            refusals: Refusals::new(),
            budget: Budget::new(shared.config.ssh.buffer_bytes_max, shared.metrics.clone()),
            dialer: Dialer::new(Arc::clone(&shared), keys.clone(), limits),
            keys,
            recorder: recorder.map(Arc::new),
            threads: Threads::start(shared.config.workers)
                .context("cannot start threads for SSH")?,
            shared,
        }));
        let listener = server.0.shared.doors.add(Role::Ssh, listener);
        // Before the task, or a drain might be over before it looks.
        let accepting = server.0.shared.drain.guard();
        tokio::spawn(accept_all(Arc::clone(&server.0), listener, accepting));
        Ok(server)
    }

    /// Takes over a connection that turned out to be SSH. Any thread may call it.
    ///
    /// `prefix` is what was read from it, `guard` whatever must live as long as the connection.
    pub fn hand_over(
        &self,
        stream: std::net::TcpStream,
        prefix: Bytes,
        peer: SocketAddr,
        guard: impl Send + 'static,
    ) {
        spawn(&self.0, stream, peer, move |inner, stream| async move {
            serve(inner, stream, prefix, peer).await;
            drop(guard);
        });
    }

    /// The line that containers put into `authorized_keys`: the gateway's public client key. Empty
    /// while there is none.
    pub fn public_key_line(&self) -> String {
        self.0.keys.public_key_line().unwrap_or_default()
    }

    /// Tells, after the last connection, when the recordings are written; for the first who asks.
    pub fn recordings_end(&self) -> Option<RecordingsEnd> {
        self.0.recorder.as_ref()?.end()
    }

    /// The gateway's keys.
    pub fn keys(&self) -> &SshKeys {
        &self.0.keys
    }
}

/// Accepts until draining begins.
async fn accept_all(inner: Arc<Inner>, listener: Arc<TcpListener>, _accepting: TaskTrackerToken) {
    let take = |stream: TcpStream, peer, permit| match stream.into_std() {
        Ok(stream) => spawn(&inner, stream, peer, move |inner, stream| {
            take(inner, stream, peer, permit)
        }),
        Err(error) => debug!(%peer, %error, "accepted connection is lost"),
    };
    accept(&inner.shared, &listener, Role::Ssh, take).await;
}

/// Moves a connection to one of the threads.
fn spawn<Life: Future<Output = ()> + Send>(
    inner: &Arc<Inner>,
    stream: std::net::TcpStream,
    peer: SocketAddr,
    live: impl FnOnce(Arc<Inner>, TcpStream) -> Life + Send + 'static,
) {
    let (own, guard) = (Arc::clone(inner), inner.shared.drain.guard());
    inner.threads.spawn(async move {
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(stream));
        match stream {
            Ok(stream) => live(own, stream).await,
            Err(error) => debug!(%peer, %error, "a connection is lost on its way to a thread"),
        }
        drop(guard);
    });
}

/// Hears whose connection it is, then serves it to its end.
async fn take(inner: Arc<Inner>, mut stream: TcpStream, peer: SocketAddr, mut permit: Permit) {
    let shared = Arc::clone(&inner.shared);
    let _gauge = shared.metrics.connection("ssh");
    let patience = Patience {
        deadline: Instant::now() + shared.config.timeouts.header,
        // Clients may wait for our banner.
        silence: Some(SILENCE),
        draining: shared.drain.idle(),
    };
    let identified = identify(&mut stream, peer, &shared.config, patience).await;
    let Identified {
        client, who, bytes, ..
    } = match identified {
        Ok(identified) => identified,
        Err(unidentified) => {
            debug!(%peer, %unidentified, "SSH connection refused");
            return shared.metrics.connection_refused(unidentified.label());
        }
    };
    if who != Who::Peer
        && let Err(refused) = permit.count_for(client.ip())
    {
        debug!(%client, %refused, "SSH connection refused");
        return shared.metrics.connection_refused(refused.label());
    }
    serve(inner, stream, bytes.freeze(), client).await;
}

/// How long a proxy that may announce its client is waited for before our banner.
const SILENCE: Duration = Duration::from_millis(500);

/// One connection from here to its end. A panic costs this one and is counted.
async fn serve(inner: Arc<Inner>, stream: TcpStream, prefix: Bytes, peer: SocketAddr) {
    let (ticket, full) = inner.lobby.enter(peer.ip());
    if let Some(full) = full {
        inner.shared.metrics.connection_refused(full.label());
        debug!(%peer, "too many SSH connections wait for a login, one of them goes");
    }
    let shared = Arc::clone(&inner.shared);
    let life = connection::run(inner, stream, prefix, peer, ticket);
    counting_panics(&shared, life).await;
}

/// Runs `task`; a panic in it ends here.
async fn counting_panics(shared: &Shared, task: impl Future<Output = ()>) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        shared.metrics.panicked();
        error!("an SSH task ended by a bug");
    }
}
