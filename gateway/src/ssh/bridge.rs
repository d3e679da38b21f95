//! One channel: from the client's connection to a connection of its own to the container.
//!
//! Four flows in one task. The client's messages are read at once, always, and
//! queued ([`Uplink`]); the queue is written to the container; what may
//! overtake is written beside it; the container's messages are written to the
//! client and wait for its window, which holds the container back.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use edd_route::decide::SshMatch;
use futures_util::FutureExt as _;
use futures_util::future::{Fuse, FusedFuture as _};
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf, client};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::connection::Connection;
use super::counting_panics;
use super::flow::{Excess, Item, Request, Uplink};
use super::upstream::{DialError, OpenError, Purpose, Upstream};
use crate::upstream::ConnectError;

/// A client that has closed its channel: how long what it sent before may take to arrive.
const LINGER: Duration = Duration::from_secs(10);

/// A container that has closed: how long the client may take to close by itself, which spares
/// russh from remembering the channel.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Stream code of the standard error (RFC 4254, section 5.2).
const STDERR: u32 = 1;

/// A channel that the client wants.
pub(crate) struct Opening {
    pub(crate) channel: Channel<Msg>,
    pub(crate) purpose: Purpose,
    pub(crate) reply: ChannelOpenHandle,
    pub(crate) uplink: Arc<Uplink>,
    pub(crate) target: SshMatch,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// Serves the channel in a task of its own, which ends with the connection at the latest.
pub(crate) fn spawn(connection: Arc<Connection>, opening: Opening) {
    tokio::spawn(async move {
        let shared = Arc::clone(&connection.inner.shared);
        let gone = connection.gone.clone();
        let life = async {
            tokio::select! {
                () = run(&connection, opening) => {}
                () = gone.cancelled() => {}
            }
        };
        counting_panics(&shared, life).await;
    });
}

async fn run(connection: &Arc<Connection>, opening: Opening) {
    let Opening {
        channel,
        purpose,
        reply,
        uplink,
        target,
        permit: _permit,
    } = opening;
    let Some(handle) = connection.handle().cloned() else {
        return;
    };
    let (upstream, up) = match reach(connection, &target, &purpose).await {
        Ok(reached) => reached,
        Err(reason) => {
            reply.reject(reason).await;
            return;
        }
    };
    connection.flow.opened();
    let (down_read, down) = channel.split();
    let (up_read, up) = up.split();
    // From the task that writes data, so that no data comes before it.
    reply.accept().await;
    let bridge = Bridge {
        connection,
        handle,
        session: purpose == Purpose::Session,
        uplink,
        down,
        up,
    };
    bridge.run(down_read, up_read).await;
    drop(upstream);
}

/// Connects to the container and opens the channel there.
async fn reach(
    connection: &Arc<Connection>,
    target: &SshMatch,
    purpose: &Purpose,
) -> Result<(Upstream, Channel<client::Msg>), ChannelOpenFailure> {
    let inner = &connection.inner;
    let not_reached = |error: DialError| {
        if let DialError::Connect(ConnectError::Limit(_)) = error {
            debug!(container = %target.id, %error, "container not reached by ssh");
            return ChannelOpenFailure::ResourceShortage;
        }
        warn!(container = %target.id, address = %target.address, user = target.unix_user,
            error = format!("{:#}", anyhow::Error::from(error)), "container not reached by ssh");
        ChannelOpenFailure::ConnectFailed
    };
    let mut upstream = connection
        .warm
        .take(inner, target)
        .await
        .map_err(not_reached)?;
    let mut opened = upstream.open(purpose).await;
    if matches!(opened, Err(OpenError::Lost)) {
        // A spare that died unnoticed; nothing was sent on it.
        upstream = inner.dialer.dial(target).await.map_err(not_reached)?;
        opened = upstream.open(purpose).await;
    }
    let channel = opened.map_err(|error| match error {
        OpenError::Lost => ChannelOpenFailure::ConnectFailed,
        OpenError::Refused(reason) => reason,
    })?;
    if connection.flow.totals().0 > 0 {
        connection.warm.begin(inner, target);
    }
    Ok((upstream, channel))
}

struct Bridge<'c> {
    connection: &'c Connection,
    handle: Handle,
    session: bool,
    uplink: Arc<Uplink>,
    down: ChannelWriteHalf<Msg>,
    up: ChannelWriteHalf<client::Msg>,
}

/// What ended the client's side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ClientEnd {
    /// It closed the channel.
    Closed,
    /// It does not keep to the rules.
    Excess,
    /// Its connection is gone.
    Gone,
}

/// What ended the container's side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ContainerEnd {
    /// It closed the channel.
    Closed,
    /// Its connection is gone.
    Lost,
}

/// What the client has been told so far.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    eof: bool,
    /// The container's end of data, not passed on yet.
    eof_held: bool,
    /// Exit status or exit signal.
    exit: bool,
}

impl Bridge<'_> {
    async fn run(self, mut down_read: ChannelReadHalf, mut up_read: ChannelReadHalf) {
        let mut told = Told::default();
        // Kept over all phases: dropped in the middle it would lose what it holds.
        let mut queue = pin!(self.write_queue().fuse());
        let writing = async {
            tokio::join!(queue.as_mut(), self.write_urgent());
            // The readers tell why the writers ended.
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            end = self.read_client(&mut down_read) => Ok(end),
            end = self.read_container(&mut up_read, &mut told) => Err(end),
            () = writing => return,
        };
        match end {
            Ok(ClientEnd::Closed) => {
                let _ = timeout(LINGER, self.linger(queue, up_read)).await;
            }
            Ok(ClientEnd::Gone) => {}
            Ok(ClientEnd::Excess) => {
                debug!(peer = %self.connection.peer, "too many requests on an SSH channel");
                let _ = self.down.close().await;
            }
            Err(end) => self.close_client(end, told, down_read).await,
        }
    }

    /// Takes what the client sends, at once: the connection's loop waits for this.
    async fn read_client(&self, from: &mut ChannelReadHalf) -> ClientEnd {
        loop {
            let Some(message) = from.wait().await else {
                return ClientEnd::Gone;
            };
            let queued = match message {
                ChannelMsg::Data { data } => {
                    self.uplink.push_data(None, data);
                    Ok(())
                }
                ChannelMsg::ExtendedData { data, ext } => {
                    self.uplink.push_data(Some(ext), data);
                    Ok(())
                }
                ChannelMsg::Eof => {
                    self.uplink.push_eof();
                    Ok(())
                }
                ChannelMsg::Close => return ClientEnd::Closed,
                other => self.queue_request(other),
            };
            if queued.is_err() {
                return ClientEnd::Excess;
            }
        }
    }

    fn queue_request(&self, message: ChannelMsg) -> Result<(), Excess> {
        // A forward has no requests.
        if !self.session {
            return Ok(());
        }
        let request = match message {
            ChannelMsg::RequestPty {
                term,
                col_width,
                row_height,
                pix_width,
                pix_height,
                terminal_modes,
                ..
            } => Request::Pty {
                term,
                size: [col_width, row_height, pix_width, pix_height],
                modes: terminal_modes,
            },
            ChannelMsg::SetEnv {
                variable_name,
                variable_value,
                ..
            } => Request::Env(variable_name, variable_value),
            ChannelMsg::RequestShell { .. } => Request::Shell,
            ChannelMsg::Exec { command, .. } => Request::Exec(command),
            ChannelMsg::RequestSubsystem { name, .. } => Request::Subsystem(name),
            ChannelMsg::Signal { signal } => Request::Signal(signal),
            ChannelMsg::WindowChange {
                col_width,
                row_height,
                pix_width,
                pix_height,
            } => Request::WindowChange([col_width, row_height, pix_width, pix_height]),
            // X11 and agent were refused by the handler; the rest concerns russh alone.
            _ => return Ok(()),
        };
        self.uplink.push_request(request)
    }

    /// Writes the queue to the container, up to its end of data; ends early when the container
    /// is gone, which `read_container` tells.
    async fn write_queue(&self) {
        loop {
            let sent = match self.uplink.next().await {
                Item::Data(code, data) => {
                    let len = data.len();
                    let sent = match code {
                        None => self.up.data_bytes(data).await,
                        Some(code) => self.up.extended_data_bytes(code, data).await,
                    };
                    self.uplink.delivered(len);
                    sent
                }
                Item::Request(request) => {
                    let sent = self.send_request(request).await;
                    self.uplink.request_sent();
                    sent
                }
                Item::Eof => {
                    let _ = self.up.eof().await;
                    return;
                }
            };
            if sent.is_err() {
                return;
            }
        }
    }

    async fn write_urgent(&self) {
        loop {
            let request = self.uplink.next_urgent().await;
            if self.send_request(request).await.is_err() {
                return;
            }
        }
    }

    /// A reply is wanted where the client's reply waits for the container's.
    async fn send_request(&self, request: Request) -> Result<(), russh::Error> {
        match request {
            Request::Env(name, value) => self.up.set_env(false, name, value).await,
            Request::Exec(command) => self.up.exec(true, command).await,
            Request::Pty { term, size, modes } => {
                let [cols, rows, width, height] = size;
                self.up
                    .request_pty(false, &term, cols, rows, width, height, &modes)
                    .await
            }
            Request::Shell => self.up.request_shell(true).await,
            Request::Signal(signal) => self.up.signal(signal).await,
            Request::Subsystem(name) => self.up.request_subsystem(true, name).await,
            Request::WindowChange([cols, rows, width, height]) => {
                self.up.window_change(cols, rows, width, height).await
            }
        }
    }

    /// Writes what the container sends to the client, in order, as fast as the client takes it.
    ///
    /// The end of a session's data is held until the exit status: OpenSSH closes once it has
    /// both ends of data, and russh then drops an exit status that comes later.
    async fn read_container(&self, from: &mut ChannelReadHalf, told: &mut Told) -> ContainerEnd {
        let id = self.down.id();
        loop {
            let Some(message) = from.wait().await else {
                return ContainerEnd::Lost;
            };
            // Errors mean that the client is gone, which `read_client` tells.
            match message {
                ChannelMsg::Data { data } => {
                    self.connection.flow.sent(data.len());
                    let _ = self.down.data_bytes(data).await;
                }
                ChannelMsg::ExtendedData { data, ext } => {
                    self.connection.flow.sent(data.len());
                    let _ = self.down.extended_data_bytes(ext, data).await;
                }
                ChannelMsg::Eof if self.session && !told.exit => told.eof_held = true,
                ChannelMsg::Eof => self.tell_eof(told).await,
                ChannelMsg::ExitStatus { exit_status } => {
                    told.exit = true;
                    let _ = self.down.exit_status(exit_status).await;
                    if told.eof_held {
                        self.tell_eof(told).await;
                    }
                }
                ChannelMsg::ExitSignal {
                    signal_name,
                    core_dumped,
                    error_message,
                    lang_tag,
                } => {
                    told.exit = true;
                    let _ = self
                        .handle
                        .exit_signal_request(id, signal_name, core_dumped, error_message, lang_tag)
                        .await;
                    if told.eof_held {
                        self.tell_eof(told).await;
                    }
                }
                ChannelMsg::Success => {
                    let _ = self.handle.channel_success(id).await;
                }
                ChannelMsg::Failure => {
                    let _ = self.handle.channel_failure(id).await;
                }
                ChannelMsg::XonXoff { client_can_do } => {
                    let _ = self.handle.xon_xoff_request(id, client_can_do).await;
                }
                ChannelMsg::Close => return ContainerEnd::Closed,
                _ => {}
            }
        }
    }

    async fn tell_eof(&self, told: &mut Told) {
        told.eof = true;
        let _ = self.down.eof().await;
    }

    /// The client has closed: what it sent before still arrives, what comes back is dropped.
    async fn linger(
        &self,
        queue: Pin<&mut Fuse<impl Future<Output = ()>>>,
        mut up_read: ChannelReadHalf,
    ) {
        let finish = async {
            if !queue.is_terminated() {
                self.uplink.push_eof();
                queue.await;
            }
            let _ = self.up.close().await;
        };
        // The container's close says that it has taken everything.
        tokio::join!(finish, until_closed(&mut up_read));
    }

    /// The container has closed or is lost: the client is told in order and closed.
    async fn close_client(
        &self,
        end: ContainerEnd,
        mut told: Told,
        mut down_read: ChannelReadHalf,
    ) {
        let tell = async {
            if end == ContainerEnd::Lost && self.session && !told.exit {
                let text = "edd-gateway: the connection to the container was lost\r\n";
                let _ = self.down.extended_data_bytes(STDERR, text).await;
            }
            if !told.eof {
                self.tell_eof(&mut told).await;
            }
        };
        let mut closed = pin!(until_closed(&mut down_read));
        tokio::select! {
            () = &mut closed => return,
            () = tell => {}
        }
        // A forward whose client has sent its end of data is closed by the client
        // itself now; for the end of a session clients wait.
        let closes_itself = !self.session && self.uplink.is_ended();
        if closes_itself && timeout(CLOSE_GRACE, &mut closed).await.is_ok() {
            return;
        }
        let _ = self.down.close().await;
    }
}

/// Drops what comes until the channel or its connection is closed.
async fn until_closed(from: &mut ChannelReadHalf) {
    while !matches!(from.wait().await, None | Some(ChannelMsg::Close)) {}
}
