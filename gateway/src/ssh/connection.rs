//! The life of one client connection: identification, login, sessions, end.
//!
//! The task here watches what ends it from outside (deadline, revocation,
//! drain) and writes its record; russh's own task runs the protocol.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use russh::server::{Handle, RunningSession, run_stream};
use russh::{ChannelId, Disconnect};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::Inner;
use super::audit::Audit;
use super::flow::Flow;
use super::greeting::{self, Offer};
use super::handler::{CHANNELS_MAX, ClientHandler, Login, Refused};
use super::inbound::INBOUND_MAX;
use super::lobby::{Stage, Ticket};
use super::patience::REFUSAL;
use super::uplink::Uplink;
use super::warm::Warm;
use super::wire::Wire;
use crate::config::CipherOrder;
use crate::telemetry::access::SshRecord;

/// How long a client may take to hear that it is over, before it is cut.
const GOODBYE: Duration = Duration::from_millis(300);

/// In OpenSSH's words, which its users know.
const TOO_MANY: &str = "Too many authentication failures";

/// In a drain: how long a client without channels may take to go by itself.
const LEAVE: Duration = Duration::from_secs(1);

/// What a connection's tasks have in common.
pub(crate) struct Connection {
    pub(crate) inner: Arc<Inner>,
    pub(crate) peer: SocketAddr,
    pub(crate) flow: Arc<Flow>,
    pub(crate) audit: Arc<Audit>,
    /// Cancelled when the client is gone; ends the channels.
    pub(crate) gone: CancellationToken,
    /// A permit per channel.
    pub(crate) channels: Arc<Semaphore>,
    /// A permit per channel that containers have opened.
    pub(crate) inbound: Arc<Semaphore>,
    /// Cancelled when as many keys were refused as may be.
    pub(crate) exhausted: CancellationToken,
    /// Cancelled when the container's connection with the client's remote forwards has ended.
    pub(crate) lost: CancellationToken,
    pub(crate) warm: Warm,
    /// Where to count the client's bytes on channels that containers have opened. Locked at the
    /// openings and ends of these.
    uplinks: Mutex<HashMap<ChannelId, Arc<Uplink>>>,
    handle: OnceLock<Handle>,
    /// Locked on refusals and at the end.
    last_refused: Mutex<Option<Refused>>,
    /// Why it ended, if not by the client; the first reason counts.
    note: OnceLock<String>,
}

impl Connection {
    /// The handle to the client's side; there from the login on.
    pub(crate) fn handle(&self) -> Option<&Handle> {
        self.handle.get()
    }

    pub(crate) fn set_handle(&self, handle: Handle) {
        let _ = self.handle.set(handle);
    }

    /// The queue of a channel that a container has opened: made by whoever asks first, the
    /// connection's loop or the channel's task.
    pub(crate) fn uplink(&self, channel: ChannelId) -> Arc<Uplink> {
        let mut uplinks = self.uplinks();
        let uplink = uplinks
            .entry(channel)
            .or_insert_with(|| Uplink::new(Arc::clone(&self.flow)));
        Arc::clone(uplink)
    }

    /// The channel has ended.
    pub(crate) fn forget(&self, channel: ChannelId) {
        self.uplinks().remove(&channel);
    }

    fn uplinks(&self) -> MutexGuard<'_, HashMap<ChannelId, Arc<Uplink>>> {
        self.uplinks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers why a key was refused, for the log.
    pub(crate) fn refused(&self, refused: Refused) {
        let mut last = self
            .last_refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = Some(refused);
    }

    /// Remembers why the connection ends.
    pub(crate) fn note(&self, note: String) {
        let _ = self.note.set(note);
    }
}

/// Serves one connection to its end.
pub(crate) async fn run(
    inner: Arc<Inner>,
    stream: TcpStream,
    prefix: Bytes,
    peer: SocketAddr,
    ticket: Ticket,
) {
    let _ = stream.set_nodelay(true);
    inner.limits.keepalive.apply_to(&stream);
    let begin = Instant::now();
    let flow: Arc<Flow> = Arc::default();
    let cut = CancellationToken::new();
    // Whatever ends this task ends russh's task and the channels too.
    let _cut_guard = cut.clone().drop_guard();
    let connection = Arc::new(Connection {
        peer,
        flow: Arc::clone(&flow),
        audit: Audit::new(inner.shared.metrics.clone(), inner.recorder.clone()),
        gone: CancellationToken::new(),
        channels: Arc::new(Semaphore::new(CHANNELS_MAX)),
        inbound: Arc::new(Semaphore::new(INBOUND_MAX)),
        exhausted: CancellationToken::new(),
        lost: CancellationToken::new(),
        warm: Warm::default(),
        uplinks: Mutex::default(),
        handle: OnceLock::new(),
        last_refused: Mutex::new(None),
        note: OnceLock::new(),
        inner,
    });
    let _gone_guard = connection.gone.clone().drop_guard();

    let leave = ticket.leave();
    let ticket = Arc::new(ticket);
    let (logged_in, login) = oneshot::channel();
    let handler = ClientHandler::new(Arc::clone(&connection), Arc::clone(&ticket), logged_in);
    let deadline = begin + connection.inner.limits.login;
    // Nothing is under way before the login, so the drain waits for it no longer than for the
    // next request of an HTTP connection.
    let draining = connection.inner.shared.drain.idle().cancelled();
    let mut draining = pin!(draining);
    let session = tokio::select! {
        session = identify(&connection, stream, prefix, cut.clone(), handler) => session,
        () = &mut draining => return,
        () = leave.cancelled() => return,
    };
    let Some(session) = session else {
        return;
    };
    ticket.advance(Stage::Identified);
    drop(ticket);
    let mut session = pin!(session);
    let login = tokio::select! {
        // A login that is complete counts.
        biased;
        login = timeout_at(deadline, login) => login,
        result = &mut session => {
            ended(&connection, result);
            log_refused(&connection);
            return;
        }
        () = connection.exhausted.cancelled() => {
            // Behind the last refusal, which russh holds back for its time.
            let handle = session.handle();
            let goodbye = say_goodbye(&handle, Disconnect::ProtocolError, TOO_MANY, session);
            let _ = timeout(REFUSAL + GOODBYE, goodbye).await;
            log_refused(&connection);
            return;
        }
        () = draining => return,
        () = leave.cancelled() => {
            log_refused(&connection);
            return;
        }
    };
    let login = match login {
        Ok(Ok(login)) => login,
        Ok(Err(_)) => {
            ended(&connection, session.await);
            log_refused(&connection);
            return;
        }
        Err(_) => {
            connection.inner.shared.metrics.ssh_auth("timeout");
            debug!(%peer, "no SSH login in time");
            log_refused(&connection);
            return;
        }
    };
    serve(&connection, &login, session.as_mut(), begin).await;
}

/// Exchanges the identification strings, within the time for first bytes.
async fn identify(
    connection: &Connection,
    stream: TcpStream,
    prefix: Bytes,
    cut: CancellationToken,
    handler: ClientHandler,
) -> Option<RunningSession<ClientHandler>> {
    let inner = &connection.inner;
    let Ok(Some(keys)) = timeout(inner.limits.login, inner.keys.ready()).await else {
        debug!(peer = %connection.peer, "no SSH keys in time");
        return None;
    };
    let config = &inner.shared.config;
    let exchange = async {
        let mut stream = stream;
        let (bytes, offer) = match config.ssh.ciphers {
            CipherOrder::Gateway => greeting::exchange(&mut stream, &prefix).await?,
            CipherOrder::Client => (prefix, Offer::Other),
        };
        let flow = Arc::clone(&connection.flow);
        let mut wire = Wire::downstream(stream, &bytes, flow, cut);
        if config.ssh.ciphers == CipherOrder::Gateway {
            wire.was_told(greeting::identification());
        }
        run_stream(keys.config(offer), wire, handler).await
    };
    let limit = config.timeouts.header.min(inner.limits.login);
    match timeout(limit, exchange).await {
        Ok(Ok(session)) => Some(session),
        Ok(Err(error)) => {
            debug!(peer = %connection.peer, %error, "no SSH identification");
            None
        }
        Err(_) => {
            debug!(peer = %connection.peer, "no SSH identification in time");
            None
        }
    }
}

/// From the login to the end.
async fn serve(
    connection: &Arc<Connection>,
    login: &Login,
    mut session: Pin<&mut RunningSession<ClientHandler>>,
    begin: Instant,
) {
    let shared = &connection.inner.shared;
    let _gauge = shared.metrics.ssh_session();
    let goodbye = tokio::select! {
        result = session.as_mut() => {
            ended(connection, result);
            None
        }
        () = login.target.admission.revoked() => Some("access to this container has ended"),
        () = connection.lost.cancelled() => {
            Some("the connection to the container was lost, and its forwarded ports with it")
        }
        () = idle_in_drain(connection) => Some("the gateway is shutting down"),
        () = shared.drain.cut().cancelled() => Some("the gateway is shutting down"),
    };
    if let Some(text) = goodbye {
        connection.note(text.to_owned());
        // The channels first: nothing of theirs may follow, and the way out gets free.
        connection.gone.cancel();
        if let Some(handle) = connection.handle() {
            let goodbye = say_goodbye(handle, Disconnect::ByApplication, text, session);
            let _ = timeout(GOODBYE, goodbye).await;
        }
    }
    connection.gone.cancel();
    connection.warm.clear();
    // Their tasks have been told; their lines come first.
    let _ = timeout(GOODBYE, no_channels(connection)).await;
    connection.uplinks().clear();
    let (channels, bytes_in, bytes_out) = connection.flow.totals();
    SshRecord {
        session: connection.audit.session(),
        revision: login.revision,
        peer: connection.peer,
        user: &login.name,
        container: login.target.id.as_str(),
        owner: login.target.owner.0,
        unix_user: &login.target.unix_user,
        key_id: login.target.key_id,
        fingerprint: &login.fingerprint,
        upstream: SocketAddr::new(login.target.address, shared.config.container_ssh_port),
        channels,
        opened: &connection.audit.summary(),
        bytes_in,
        bytes_out,
        duration: begin.elapsed(),
        note: connection.note.get().map(String::as_str),
    }
    .log();
}

/// Tells the client that it is over and why, and waits for its end.
async fn say_goodbye(
    handle: &Handle,
    reason: Disconnect,
    text: &str,
    session: Pin<&mut RunningSession<ClientHandler>>,
) {
    let _ = handle
        .disconnect(reason, text.to_owned(), String::new())
        .await;
    let _ = session.await;
}

/// Waits until no channel is open.
async fn no_channels(connection: &Connection) {
    let all = |max| u32::try_from(max).unwrap_or(u32::MAX);
    let _all = connection.channels.acquire_many(all(CHANNELS_MAX)).await;
    let _all = connection.inbound.acquire_many(all(INBOUND_MAX)).await;
}

/// Waits for a drain in which nothing is under way any more. New channels are refused by then, so
/// a client that waits to share the connection had better make another, elsewhere.
async fn idle_in_drain(connection: &Connection) {
    connection.inner.shared.drain.idle().cancelled().await;
    no_channels(connection).await;
    // Whose last channel has just ended goes by itself, with its exit status and not with ours.
    tokio::time::sleep(LEAVE).await;
    no_channels(connection).await;
}

/// How russh's task ended. A client that just goes is nothing special.
fn ended(connection: &Connection, result: Result<(), russh::Error>) {
    match result {
        Ok(()) | Err(russh::Error::Disconnect | russh::Error::HUP) => {}
        Err(russh::Error::IO(error)) => {
            debug!(peer = %connection.peer, %error, "SSH connection lost");
        }
        // Nobody aborts the task, so it panicked.
        Err(russh::Error::Join(_)) => {
            connection.inner.shared.metrics.panicked();
            error!(peer = %connection.peer, "an SSH connection ended by a bug");
            connection.note("bug".to_owned());
        }
        Err(error) => {
            debug!(peer = %connection.peer, %error, "SSH connection ended");
            connection.note(error.to_string());
        }
    }
}

/// One line for a client that tried and never got in.
fn log_refused(connection: &Connection) {
    let refused = connection
        .last_refused
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(refused) = refused {
        info!(peer = %connection.peer, user = ?refused.name, reason = refused.reason,
            "ssh login refused");
    }
}
