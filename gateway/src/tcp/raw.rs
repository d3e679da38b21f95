//! A client's bytes to the container that was decided for it, untouched; where the operator
//! wants it, behind a PROXY header that says whose they are.

use std::io;
use std::net::SocketAddr;

use edd_route::decide::ContainerMatch;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::over::reset;
use super::{End, Relayed, relay};
use crate::http::request_id;
use crate::listener::Prefixed;
use crate::shared::Shared;
use crate::telemetry::access::RawRecord;
use crate::upstream::{ConnectError, Socket, connect, proxy_out};

/// What the bytes are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RawKind {
    /// Something that the gateway does not know.
    Tcp,
    /// TLS that ends in the container.
    TlsPassthrough,
}

impl RawKind {
    fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::TlsPassthrough => "tls-passthrough",
        }
    }
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The client's address, or that of a proxy that cannot name its client.
    pub peer: SocketAddr,
    /// Whether it is the client's.
    pub is_known: bool,
}

/// Connects, relays until one of the ends of [`End`], and writes the access record.
pub async fn raw(
    shared: &Shared,
    mut down: Prefixed<TcpStream>,
    caller: Caller,
    to: ContainerMatch,
    kind: RawKind,
    revision: u64,
) {
    let begun = Instant::now();
    let timeouts = &shared.config.timeouts;
    let cut = shared.drain.cut();
    let connected = tokio::select! {
        biased;
        () = to.admission.revoked() => Err(End::Revoked),
        () = cut.cancelled() => Err(End::Drained),
        connected = reach(shared, &down, caller, &to) => Ok(connected),
    };
    let (relayed, note) = match connected {
        Ok(Ok(mut up)) => {
            let _active = shared.metrics.upstream_active();
            let relayed = relay(&mut down, &mut up, &to.admission, timeouts.stream_idle, cut).await;
            if relayed.end != End::Closed {
                // Neither side may take what it got for the whole.
                reset(up.get_ref());
                reset(down.get_ref());
            }
            (relayed, relayed.end.note())
        }
        Ok(Err(error)) => {
            // What any client can cause at will; the record says it too.
            debug!(container = %to.id, upstream = %to.upstream, %error, "no connection to the container");
            reset(down.get_ref());
            let note = match error {
                ConnectError::Limit(_) => "too many upstream connections",
                _ => "no upstream",
            };
            (NOTHING, Some(note))
        }
        Err(end) => {
            reset(down.get_ref());
            (NOTHING, end.note())
        }
    };
    let record = RawRecord {
        kind: kind.label(),
        request_id: request_id::generate(begun),
        revision,
        peer: caller.peer,
        port: to.port,
        container: to.id.as_str(),
        upstream: to.upstream,
        bytes_in: relayed.bytes_in,
        bytes_out: relayed.bytes_out,
        duration: begun.elapsed(),
        note,
    };
    record.log();
}

/// Connects, and says who calls if the rule wants to know.
async fn reach(
    shared: &Shared,
    down: &Prefixed<TcpStream>,
    caller: Caller,
    to: &ContainerMatch,
) -> Result<Socket, ConnectError> {
    let limit = shared.config.timeouts.connect;
    let mut socket = connect(to.upstream, to.owner, limit, shared).await?;
    if shared.config.send_proxy_protocol.covers(to) {
        let failed = |source: io::Error| ConnectError::Refused {
            address: to.upstream,
            source,
        };
        let header = match caller.is_known {
            true => proxy_out::header(caller.peer, down.get_ref().local_addr().map_err(failed)?),
            false => proxy_out::unknown(),
        };
        timeout(limit, socket.write_all(&header))
            .await
            .map_err(|_| ConnectError::TimedOut)?
            .map_err(failed)?;
    }
    Ok(socket)
}

const NOTHING: Relayed = Relayed {
    bytes_in: 0,
    bytes_out: 0,
    end: End::Closed,
};
