//! A channel that the client opens: the way to the container first, then the answer.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use edd_route::decide::SshMatch;
use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelOpenFailure, client};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, warn};

use super::{Bridge, Kind};
use crate::ssh::answers::Answers;
use crate::ssh::connection::Connection;
use crate::ssh::counting_panics;
use crate::ssh::uplink::Uplink;
use crate::ssh::upstream::{DialError, OpenError, Purpose, Upstream, refusal};
use crate::upstream::ConnectError;

/// A channel that the client wants.
pub(crate) struct Opening {
    pub(crate) channel: Channel<Msg>,
    pub(crate) purpose: Purpose,
    pub(crate) reply: ChannelOpenHandle,
    pub(crate) uplink: Arc<Uplink>,
    pub(crate) answers: Answers,
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
        answers,
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
        answers,
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
            let why = "too many connections to this user's containers";
            return refusal(&ChannelOpenFailure::ResourceShortage, why);
        }
        let why = match error {
            DialError::HostKey(_) => "the container shows a wrong host key",
            DialError::NotAccepted => "the container does not let the gateway in as this user",
            _ => "the container cannot be reached",
        };
        warn!(container = %target.id, channel = purpose.kind(), address = %target.address, user = target.unix_user,
            error = format!("{:#}", anyhow::Error::from(error)), "container not reached by ssh");
        refusal(&ChannelOpenFailure::ConnectFailed, why)
    };
    let mut upstream = connection
        .warm
        .take(inner, target)
        .await
        .map_err(not_reached)?;
    let mut opened = upstream.open(purpose, inner.limits.open).await;
    if matches!(opened, Err(OpenError::Lost)) {
        // A spare that died unnoticed; nothing was sent on it.
        upstream = inner.dialer.dial(target).await.map_err(not_reached)?;
        opened = upstream.open(purpose, inner.limits.open).await;
    }
    let channel = opened.map_err(|error| match error {
        OpenError::Lost => {
            let why = "the connection to the container was lost";
            refusal(&ChannelOpenFailure::ConnectFailed, why)
        }
        OpenError::Refused(reason) => reason,
    })?;
    if connection.flow.totals().0 > 0 {
        connection.warm.begin(inner, target);
    }
    Ok((upstream, channel))
}
