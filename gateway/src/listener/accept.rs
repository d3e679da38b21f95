//! Takes connections from a listener until draining begins.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edd_route::Door;
use rustix::net::SocketFlags;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{debug, info, warn};

use super::{Permit, Refused};
use crate::shared::Shared;
use crate::telemetry::ConnectionGauge;

/// A connection that was let in, and nothing read from it yet.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    /// The client; an IPv4 address is always written as one.
    pub(super) peer: SocketAddr,
    pub(super) door: Door,
    pub(super) held: Held,
}

/// What a connection holds for as long as it lives, whoever serves it.
#[derive(Debug)]
pub(super) struct Held {
    permit: Permit,
    _gauge: ConnectionGauge,
    _live: TaskTrackerToken,
}

impl Held {
    /// Counts the connection for its client, if it was not when it came.
    pub(super) fn count_for(&mut self, client: IpAddr) -> Result<(), Refused> {
        self.permit.count_for(client)
    }
}

/// Accepts on `listener` from when the doors are open, gives each connection to `take`, ends when
/// draining begins.
///
/// Connections that had come before that are still taken, unless a successor takes them.
pub(super) async fn accept(
    shared: &Shared,
    listener: &TcpListener,
    door: Door,
    take: impl Fn(Accepted),
) {
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
                take_one(shared, stream, peer, door, &take);
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
        take_one(shared, stream, peer, door, &take);
    }
}

/// A connection that waits, asked of the system itself: the runtime may not know of it yet.
pub(crate) fn accept_now(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let stream = rustix::net::accept_with(listener, flags).ok()?;
    let stream = TcpStream::from_std(stream.into()).ok()?;
    let peer = stream.peer_addr().ok()?;
    Some((stream, peer))
}

fn take_one(
    shared: &Shared,
    stream: TcpStream,
    peer: SocketAddr,
    door: Door,
    take: impl Fn(Accepted),
) {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let admitted = match shared.config.trusts(peer.ip()) {
        true => shared.gate.admit_messenger(peer),
        false => shared.gate.admit(peer),
    };
    let permit = match admitted {
        Ok(permit) => permit,
        Err(refused) => {
            shared.metrics.connection_refused(refused.label());
            debug!(?door, %peer, %refused, "refused");
            return;
        }
    };
    let held = Held {
        permit,
        _gauge: shared.metrics.connection(label(door)),
        _live: shared.drain.guard(),
    };
    take(Accepted {
        stream,
        peer,
        door,
        held,
    });
}

/// The metric's label.
fn label(door: Door) -> &'static str {
    match door {
        Door::Dynamic(_) => "dynamic",
        Door::PublicHttp => "http",
        Door::PublicHttps => "https",
    }
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
