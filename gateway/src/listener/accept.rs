//! Takes connections from a listener until draining begins.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::SocketFlags;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::Permit;
use crate::shared::Shared;

/// Accepts on `listener` from when the doors are open, gives each connection that the gate lets in
/// to `take`, ends when draining begins. `door` names the listener in the log.
///
/// Connections that had come before that are still taken, unless a successor takes them.
pub(crate) async fn accept(
    shared: &Shared,
    listener: &TcpListener,
    door: impl Debug + Copy,
    take: impl Fn(TcpStream, SocketAddr, Permit),
) {
    let take_one = |stream, peer: SocketAddr| {
        // An IPv4 address is always written as one.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let admitted = match shared.config.trusts(peer.ip()) {
            true => shared.gate.admit_messenger(peer),
            false => shared.gate.admit(peer),
        };
        match admitted {
            Ok(permit) => take(stream, peer, permit),
            Err(refused) => {
                shared.metrics.connection_refused(refused.label());
                debug!(?door, %peer, %refused, "refused");
            }
        }
    };
    let draining = shared.drain.token();
    if draining
        .run_until_cancelled(shared.doors.opened())
        .await
        .is_none()
    {
        return;
    }
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = draining.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                if std::mem::replace(&mut failing, false) {
                    info!(?door, "accepting connections again");
                }
                take_one(stream, peer);
            }
            Err(error) if is_of_the_connection(&error) => debug!(?door, %error, "accept"),
            Err(error) => {
                // Out of files or memory. What waits, waits; at once would only spin.
                if !std::mem::replace(&mut failing, true) {
                    warn!(?door, %error, "cannot accept connections, trying again");
                }
                shared.metrics.connection_refused("accept_error");
                sleep(PAUSE).await;
            }
        }
    }
    if shared.doors.are_handed_over() {
        return;
    }
    for (stream, peer) in std::iter::from_fn(|| accept_now(listener)) {
        take_one(stream, peer);
    }
}

/// A connection that waits, asked of the system itself: the runtime may not know of it yet.
fn accept_now(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let stream = rustix::net::accept_with(listener, flags).ok()?;
    let stream = TcpStream::from_std(stream.into()).ok()?;
    let peer = stream.peer_addr().ok()?;
    Some((stream, peer))
}

/// Whether the fault is the one connection's, and the next accept may well succeed.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// After an accept that failed for want of something.
const PAUSE: Duration = Duration::from_millis(50);
