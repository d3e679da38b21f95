//! One channel: from the client's connection to a connection of its own to the container.
//!
//! Four flows in one task. The client's messages are read at once, always, and
//! queued ([`Uplink`]); the queue is written to the container; what may
//! overtake is written beside it; the container's messages are written to the
//! client and wait for its window, which holds the container back. Only where
//! the container has opened the channel are they queued too ([`Downlink`]),
//! since such channels share their connection.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use edd_route::decide::SshMatch;
use futures_util::FutureExt as _;
use futures_util::future::{Fuse, FusedFuture as _};
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{
    Channel, ChannelId, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf, Sig,
    client,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use super::audit;
use super::connection::Connection;
use super::counting_panics;
use super::downlink::{Downlink, Piece};
use super::farewell;
use super::flow::{Excess, Item, Request, Uplink};
use super::grants::Grants;
use super::upstream::{DialError, OpenError, Purpose, Upstream};
use crate::upstream::ConnectError;

/// A client that has closed its channel: how long what it sent before may take to arrive.
const LINGER: Duration = Duration::from_secs(10);

/// A session that its client has closed: how long its process may take to end by itself when it
/// finds the end of its input, before it is hung up.
const HANG_UP: Duration = Duration::from_secs(1);

/// A container that has closed: how long the client may take to close by itself, which spares
/// russh from remembering the channel.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// How long an exit status waits for the end of the data. sshd tells it as soon as the process is
/// gone, which may be before the last output is read from its terminal; but with a process left in
/// the background the end of the data may never come.
const EXIT_HOLD: Duration = Duration::from_millis(500);

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
            if let Some(audit) = uplink.audit() {
                audit.refused(&reason);
            }
            reply.reject(reason).await;
            return;
        }
    };
    connection.flow.opened();
    if let Some(audit) = uplink.audit() {
        audit.opened();
    }
    let (down_read, down) = channel.split();
    let (up_read, up) = up.split();
    // From the task that writes data, so that no data comes before it.
    reply.accept().await;
    let kind = match purpose {
        Purpose::Session => Kind::Session,
        Purpose::Forward { .. } | Purpose::Socket { .. } => Kind::Forward,
    };
    let bridge = Bridge {
        connection,
        handle,
        kind,
        grants: &upstream.grants,
        uplink,
        down,
        up,
        has_terminal: AtomicBool::new(false),
    };
    bridge.run(down_read, up_read).await;
    // A program that the session has left behind may still show its windows.
    upstream.grants.end();
    upstream.grants.quiet().await;
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
        warn!(container = %target.id, channel = purpose.kind(), address = %target.address, user = target.unix_user,
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

/// Who opened a channel, and for what.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// The client, for data both ways.
    Forward,
    /// The container, for data both ways.
    Inbound,
    /// The client, for a shell, a command, a subsystem.
    Session,
}

/// The two ends of a channel.
pub(crate) struct Bridge<'c> {
    pub(crate) connection: &'c Arc<Connection>,
    pub(crate) handle: Handle,
    pub(crate) kind: Kind,
    /// Of the container's connection.
    pub(crate) grants: &'c Arc<Grants>,
    pub(crate) uplink: Arc<Uplink>,
    pub(crate) down: ChannelWriteHalf<Msg>,
    pub(crate) up: ChannelWriteHalf<client::Msg>,
    /// Whether the client has asked for one.
    pub(crate) has_terminal: AtomicBool,
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
    /// It sends more than anybody takes.
    Excess,
    /// Its connection is gone.
    Lost,
}

/// How the container's process ended.
#[derive(Clone, Debug)]
enum Exit {
    Signal {
        name: Sig,
        core_dumped: bool,
        message: String,
        language: String,
    },
    Status(u32),
}

/// What the client has been told so far.
#[derive(Clone, Debug, Default)]
struct Told {
    eof: bool,
    /// The container's end of data, not passed on yet.
    eof_held: bool,
    /// Exit status or exit signal.
    exit: bool,
    /// The container's, not passed on yet, and until when.
    exit_held: Option<(Exit, Instant)>,
}

impl Bridge<'_> {
    /// The client's end.
    pub(crate) fn id(&self) -> ChannelId {
        self.down.id()
    }

    /// Carries everything until one side has ended.
    pub(crate) async fn run(self, mut down_read: ChannelReadHalf, mut up_read: ChannelReadHalf) {
        let mut told = Told::default();
        // Kept over all phases: dropped in the middle it would lose what it holds.
        let mut queue = pin!(self.write_queue().fuse());
        let writing = async {
            let farewell = farewell::at_drain(self.connection, &self.down, &self.has_terminal);
            tokio::join!(queue.as_mut(), self.write_urgent(), farewell);
            // The readers tell why the writers ended.
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            end = self.read_client(&mut down_read) => Ok(end),
            end = self.take_from_container(&mut up_read, &mut told) => Err(end),
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
            Err(end) => {
                // What comes now is for nobody, and must not hold up the connection.
                drop(up_read);
                self.close_client(end, told, down_read).await;
            }
        }
        if self.kind == Kind::Inbound {
            // Others live on the connection, so it does not end with this.
            let _ = self.up.close().await;
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
        if self.kind != Kind::Session {
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
            } => {
                self.has_terminal.store(true, Ordering::Relaxed);
                Request::Pty {
                    term,
                    size: [col_width, row_height, pix_width, pix_height],
                    modes: terminal_modes,
                }
            }
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
            ChannelMsg::AgentForward { .. } => Request::Agent,
            ChannelMsg::RequestX11 {
                single_connection,
                x11_authentication_protocol,
                x11_authentication_cookie,
                x11_screen_number,
                ..
            } => Request::X11 {
                single: single_connection,
                protocol: x11_authentication_protocol,
                cookie: x11_authentication_cookie,
                screen: x11_screen_number,
            },
            // The rest concerns russh alone.
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
            Request::Agent => {
                self.grants.allow_agent(self.connection);
                self.up.agent_forward(false).await
            }
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
            Request::X11 {
                single,
                protocol,
                cookie,
                screen,
            } => {
                self.grants.allow_x11(self.connection, single);
                self.up
                    .request_x11(false, single, protocol, cookie, screen)
                    .await
            }
        }
    }

    async fn take_from_container(
        &self,
        from: &mut ChannelReadHalf,
        told: &mut Told,
    ) -> ContainerEnd {
        match self.kind {
            Kind::Forward | Kind::Session => self.read_container(from, told).await,
            Kind::Inbound => self.drain_container(from, told).await,
        }
    }

    /// [`Self::read_container`] for a channel that must not hold up the container's connection:
    /// everything is read at once and queued.
    async fn drain_container(&self, from: &mut ChannelReadHalf, told: &mut Told) -> ContainerEnd {
        let queue = Downlink::new(
            Arc::clone(&self.grants.backlog),
            Arc::clone(&self.connection.flow),
        );
        let reading = async {
            loop {
                let piece = match from.wait().await {
                    Some(ChannelMsg::Data { data }) => Piece::Data(data),
                    Some(ChannelMsg::Eof) => Piece::Eof,
                    Some(ChannelMsg::Close) => Piece::End(ContainerEnd::Closed),
                    None => Piece::End(ContainerEnd::Lost),
                    Some(_) => continue,
                };
                let last = matches!(piece, Piece::End(_));
                if queue.push(piece).is_err() {
                    return;
                }
                if last {
                    // The writer tells when it has come to it.
                    std::future::pending::<()>().await;
                }
            }
        };
        let writing = async {
            loop {
                match queue.next().await {
                    Piece::Data(data) => {
                        let len = data.len();
                        self.uplink.sent(&data);
                        let _ = self.down.data_bytes(data).await;
                        queue.taken(len);
                    }
                    Piece::End(end) => return end,
                    Piece::Eof => self.tell_eof(told).await,
                }
            }
        };
        tokio::select! {
            () = reading => ContainerEnd::Excess,
            end = writing => end,
        }
    }

    /// Writes what the container sends to the client, in order, as fast as the client takes it.
    ///
    /// The end of a session's data is held until the exit status: OpenSSH closes once it has
    /// both ends of data, and russh then drops an exit status that comes later. The exit status in
    /// turn waits for the end of the data, for a moment, so that it comes after all of it.
    async fn read_container(&self, from: &mut ChannelReadHalf, told: &mut Told) -> ContainerEnd {
        let id = self.down.id();
        loop {
            let waiting = from.wait();
            let next = match &told.exit_held {
                None => waiting.await,
                Some((_, until)) => match timeout_at(*until, waiting).await {
                    Ok(next) => next,
                    Err(_) => {
                        self.tell_exit(told).await;
                        continue;
                    }
                },
            };
            let Some(message) = next else {
                return ContainerEnd::Lost;
            };
            // Errors mean that the client is gone, which `read_client` tells.
            match message {
                ChannelMsg::Data { data } => {
                    self.uplink.sent(&data);
                    let _ = self.down.data_bytes(data).await;
                }
                ChannelMsg::ExtendedData { data, ext } => {
                    self.uplink.sent(&data);
                    let _ = self.down.extended_data_bytes(ext, data).await;
                }
                ChannelMsg::Eof => {
                    self.tell_exit(told).await;
                    if self.kind == Kind::Session && !told.exit {
                        told.eof_held = true;
                    } else {
                        self.tell_eof(told).await;
                    }
                }
                ChannelMsg::ExitStatus { exit_status } => {
                    self.hear_exit(Exit::Status(exit_status), told).await;
                }
                ChannelMsg::ExitSignal {
                    signal_name,
                    core_dumped,
                    error_message,
                    lang_tag,
                } => {
                    let exit = Exit::Signal {
                        name: signal_name,
                        core_dumped,
                        message: error_message,
                        language: lang_tag,
                    };
                    self.hear_exit(exit, told).await;
                }
                ChannelMsg::Success => {
                    self.hear_answer(true);
                    let _ = self.handle.channel_success(id).await;
                }
                ChannelMsg::Failure => {
                    self.hear_answer(false);
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

    /// The container has answered: of what it is asked, only what runs something wants an answer.
    fn hear_answer(&self, accepted: bool) {
        if let Some(audit) = self.uplink.audit() {
            audit.answered(accepted);
        }
    }

    /// The container has told how its process ended: passed on behind the end of the data.
    async fn hear_exit(&self, exit: Exit, told: &mut Told) {
        if let Some(audit) = self.uplink.audit() {
            match &exit {
                Exit::Signal { name, .. } => audit.exited(&audit::signal(name)),
                Exit::Status(status) => audit.exited(&status.to_string()),
            }
        }
        told.exit_held = Some((exit, Instant::now() + EXIT_HOLD));
        if told.eof_held {
            self.tell_exit(told).await;
            self.tell_eof(told).await;
        }
    }

    async fn tell_exit(&self, told: &mut Told) {
        let Some((exit, _)) = told.exit_held.take() else {
            return;
        };
        told.exit = true;
        match exit {
            Exit::Signal {
                name,
                core_dumped,
                message,
                language,
            } => {
                let _ = self
                    .handle
                    .exit_signal_request(self.id(), name, core_dumped, message, language)
                    .await;
            }
            Exit::Status(status) => {
                let _ = self.down.exit_status(status).await;
            }
        }
    }

    async fn tell_eof(&self, told: &mut Told) {
        told.eof = true;
        let _ = self.down.eof().await;
    }

    /// The client has closed: what it sent before still arrives, what comes back is dropped.
    ///
    /// The container's close says that it has taken everything. It would not be heard behind one
    /// of ours, so an end of data comes first, after which most containers close by themselves.
    async fn linger(
        &self,
        queue: Pin<&mut Fuse<impl Future<Output = ()>>>,
        mut up_read: ChannelReadHalf,
    ) {
        let patience = match self.kind {
            Kind::Session => HANG_UP,
            Kind::Forward | Kind::Inbound => LINGER,
        };
        let mut closed = pin!(until_closed(&mut up_read));
        let finish = async {
            if !queue.is_terminated() {
                self.uplink.push_eof();
                queue.await;
            }
            tokio::time::sleep(patience).await;
            let _ = self.up.close().await;
        };
        tokio::select! {
            () = &mut closed => {}
            () = finish => {}
        }
    }

    /// The container has closed or is lost: the client is told in order and closed.
    async fn close_client(
        &self,
        end: ContainerEnd,
        mut told: Told,
        mut down_read: ChannelReadHalf,
    ) {
        let tell = async {
            self.tell_exit(&mut told).await;
            if end == ContainerEnd::Lost && self.kind == Kind::Session && !told.exit {
                let text = "edd-gateway: the connection to the container was lost\r\n";
                let _ = self.down.extended_data_bytes(STDERR, text).await;
            }
            if !told.eof {
                self.tell_eof(&mut told).await;
            }
        };
        let mut closed = pin!(until_closed(&mut down_read));
        if end == ContainerEnd::Excess {
            debug!(peer = %self.connection.peer, "a client does not take a container's data");
        } else {
            tokio::select! {
                () = &mut closed => return,
                () = tell => {}
            }
        }
        // A forward whose client has sent its end of data is closed by the client
        // itself now; for the end of a session clients wait.
        let closes_itself = self.kind != Kind::Session && self.uplink.is_ended();
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
