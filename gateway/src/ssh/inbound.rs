//! Channels that a container opens: to the client's agent or display, from forwarded ports.
//!
//! The client is asked first; what it answers is the container's answer. They
//! share the container's connection with others, so their readers never wait
//! (see `downlink`).

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use russh::client::ChannelOpenHandle;
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelOpenFailure, client};
use tokio::time::timeout;
use tracing::debug;

use super::answers::{self, Silence};
use super::bridge::{Bridge, Kind};
use super::connection::Connection;
use super::counting_panics;
use super::grants::{Inbound, Live};

/// Channels that containers have opened towards one client, at once.
pub(crate) const INBOUND_MAX: usize = 500;

/// Serves the channel in a task of its own, which ends with the connection at the latest.
pub(crate) fn spawn(
    connection: Arc<Connection>,
    live: Live,
    what: Inbound,
    channel: Channel<client::Msg>,
    reply: ChannelOpenHandle,
) {
    tokio::spawn(async move {
        let shared = Arc::clone(&connection.inner.shared);
        let gone = connection.gone.clone();
        let life = async {
            tokio::select! {
                () = run(&connection, live, &what, channel, reply) => {}
                () = gone.cancelled() => {}
            }
        };
        counting_panics(&shared, life).await;
    });
}

async fn run(
    connection: &Arc<Connection>,
    live: Live,
    what: &Inbound,
    channel: Channel<client::Msg>,
    reply: ChannelOpenHandle,
) {
    let Some(handle) = connection.handle().cloned() else {
        return;
    };
    let audit = connection.audit.channel(what.kind(), &what.source());
    let Ok(_permit) = Arc::clone(&connection.inbound).try_acquire_owned() else {
        let reason = ChannelOpenFailure::ResourceShortage;
        audit.refused(&reason);
        reply.reject(reason).await;
        return;
    };
    let mut asking = pin!(ask(&handle, what));
    let limit = connection.inner.limits.open;
    let down = match timeout(limit, asking.as_mut()).await {
        Ok(Ok(down)) => down,
        Ok(Err(russh::Error::ChannelOpenFailure(reason))) => {
            debug!(peer = %connection.peer, channel = what.kind(), ?reason,
                "the client does not take the container's channel");
            audit.refused(&reason);
            reply.reject(reason).await;
            return;
        }
        failed @ (Ok(Err(_)) | Err(_)) => {
            let reason = ChannelOpenFailure::ConnectFailed;
            audit.refused(&reason);
            drop(audit);
            reply.reject(reason).await;
            drop((channel, live));
            if failed.is_err() {
                close_late(connection, asking).await;
            }
            return;
        }
    };
    let uplink = connection.uplink(down.id());
    audit.opened();
    uplink.watch(audit);
    connection.flow.opened();
    let (down_read, down) = down.split();
    let (up_read, up) = channel.split();
    // From the task that writes data, so that no data comes before it.
    reply.accept().await;
    let bridge = Bridge {
        connection,
        handle: handle.clone(),
        kind: Kind::Inbound,
        grants: live.grants(),
        uplink,
        // It has no requests.
        answers: answers::pair(&Silence::default()).0,
        down,
        up,
        has_terminal: AtomicBool::new(false),
    };
    let id = bridge.id();
    bridge.run(down_read, up_read).await;
    connection.forget(id);
}

/// A client that opens the channel after all has it closed, or what it sends would be counted and
/// nobody would take it. Whoever never answers is not waited for in a drain.
async fn close_late(
    connection: &Connection,
    asking: impl Future<Output = Result<Channel<Msg>, russh::Error>>,
) {
    let draining = connection.inner.shared.drain.token();
    if let Some(Ok(late)) = draining.run_until_cancelled(asking).await {
        // What it sends is for nobody, and must not hold up the connection.
        let (read, write) = late.split();
        drop(read);
        let _ = write.close().await;
    }
}

/// Opens the channel at the client.
async fn ask(handle: &Handle, what: &Inbound) -> Result<Channel<Msg>, russh::Error> {
    match what {
        Inbound::Agent => handle.channel_open_agent().await,
        Inbound::Port {
            address,
            port,
            from: (from, from_port),
        } => {
            handle
                .channel_open_forwarded_tcpip(address.clone(), *port, from.clone(), *from_port)
                .await
        }
        Inbound::Socket { path } => {
            handle
                .channel_open_forwarded_streamlocal(path.clone())
                .await
        }
        Inbound::X11 {
            from: (from, from_port),
        } => handle.channel_open_x11(from.clone(), *from_port).await,
    }
}
