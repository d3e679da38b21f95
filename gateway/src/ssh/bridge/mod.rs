//! One channel: from the client's connection to a connection of its own to the container.
//!
//! Four flows in one task. The client's messages are read at once, always, and
//! queued ([`Uplink`]); the queue is written to the container; what may
//! overtake is written beside it ([`to_container`]); the container's messages are
//! written to the client and wait for its window, which holds the container
//! back ([`to_client`]). [`opening`] has how a client's channel begins; here is
//! what all of them have, and how they end.

mod opening;
mod to_client;
mod to_container;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Fuse, FusedFuture as _};
use russh::server::{Handle, Msg};
use russh::{ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client};
use tokio::time::timeout;
use tracing::debug;

pub(crate) use self::opening::{Opening, spawn};
use self::to_client::Told;
use super::answers::Answers;
use super::connection::Connection;
use super::farewell;
use super::grants::Grants;
use super::uplink::Uplink;

/// A client that has closed its channel: how long what it sent before may take to arrive.
const LINGER: Duration = Duration::from_secs(10);

/// A session that its client has closed: how long its process may take to end by itself when it
/// finds the end of its input, before it is hung up.
const HANG_UP: Duration = Duration::from_secs(1);

/// A container that has closed: how long the client may take to close by itself, which spares
/// russh from remembering the channel.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// A channel that has to go for the memory that it holds: how long its ends may take to hear it.
const NOTICE: Duration = Duration::from_millis(300);

/// Stream code of the standard error (RFC 4254, section 5.2).
const STDERR: u32 = 1;

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
    pub(crate) answers: Answers,
    pub(crate) down: ChannelWriteHalf<Msg>,
    pub(crate) up: ChannelWriteHalf<client::Msg>,
    /// Whether the client has asked for one, and the container has not refused it.
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
    /// The channel holds the most where memory is short.
    SentAway,
}

/// What ended the container's side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ContainerEnd {
    /// It closed the channel.
    Closed,
    /// It sends more than anybody takes.
    Excess,
    /// It runs nothing, and its client believes otherwise.
    Idle,
    /// Its connection is gone.
    Lost,
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
        let own = (self.kind != Kind::Inbound).then_some(&self.grants.backlog.own);
        if let (Some(own), Some(holding)) = (own, self.uplink.holding()) {
            own.charge(holding);
        }
        let end = tokio::select! {
            end = self.read_client(&mut down_read) => Ok(end),
            end = self.take_from_container(&mut up_read, &mut told) => Err(end),
            () = self.uplink.sent_away() => Ok(ClientEnd::SentAway),
            () = writing => return,
        };
        if let Some(own) = own {
            own.end();
        }
        match end {
            Ok(ClientEnd::Closed) => tokio::select! {
                _ = timeout(LINGER, self.linger(queue, up_read)) => {}
                () = self.uplink.sent_away() => {}
            },
            Ok(ClientEnd::SentAway) => {
                // What comes now is for nobody, and must not hold up the connections.
                drop((down_read, up_read));
                self.uplink.clear();
                let _ = timeout(NOTICE, self.send_away()).await;
            }
            Ok(ClientEnd::Gone) => {}
            Ok(ClientEnd::Excess) => {
                debug!(peer = %self.connection.peer, "too many requests on an SSH channel");
                let _ = self.down.close().await;
            }
            Err(end) => {
                // What comes now is for nobody, and must not hold up the connection.
                drop(up_read);
                self.uplink.clear();
                self.close_client(end, told, down_read).await;
            }
        }
        if self.kind == Kind::Inbound {
            // Others live on the connection, so it does not end with this.
            let _ = self.up.close().await;
        }
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
                self.uplink.push_end();
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

    /// Tells both ends that the channel is over, as far as they listen.
    async fn send_away(&self) {
        let _ = self.up.close().await;
        if self.kind == Kind::Session {
            let text =
                "edd-gateway: too much waits in the connections to this user's containers\r\n";
            let told = self.down.extended_data_bytes(STDERR, text);
            let _ = timeout(NOTICE / 2, told).await;
        }
        let _ = self.down.close().await;
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
            let text = match end {
                ContainerEnd::Idle => "edd-gateway: the container refuses to run that\r\n",
                ContainerEnd::Lost if self.kind == Kind::Session && !told.exit => {
                    "edd-gateway: the connection to the container was lost\r\n"
                }
                _ => "",
            };
            if !text.is_empty() {
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
