//! A connection for one attempt: a kept one, or a new one.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::task::Poll;

use edd_route::Scheme;
use tokio::time::Instant;

use super::failure::Failure;
use crate::http::decide::Upstream;
use crate::http::downstream::Downstream;
use crate::http::side::Client;
use crate::listener::Stage;
use crate::upstream::h2::{OpenError, UpstreamStream};
use crate::upstream::{Behalf, Choice, ConnectError, H1, Io, open};

/// What an attempt is made with.
pub(super) enum Connection {
    /// A connection of its own.
    H1(Box<H1<Io>>),
    /// A stream of a shared one.
    H2(Box<UpstreamStream>),
}

/// A connection of its own to the chosen target that was kept for reuse, if there is one and it
/// will do.
pub(super) fn kept(
    choice: &Choice<'_>,
    upstream: &Upstream,
    down: &Downstream,
    now: Instant,
) -> Option<Connection> {
    if choice.fresh {
        return None;
    }
    let admission = &upstream.admission;
    let pool = &down.worker.pool.h1;
    let mut kept = pool.take(choice.key(), now, |kept| kept.is_of(admission))?;
    kept.counted.set_active();
    Some(Connection::H1(kept))
}

/// A connection to the chosen target: a new one, or a stream of a shared one; whether that was
/// there before.
///
/// Ends early with the client, the admission and the cut.
pub(super) async fn connection<C: Client>(
    client: &mut C,
    choice: &Choice<'_>,
    upstream: &Upstream,
    down: &Downstream,
) -> Result<(Connection, bool), Failure> {
    let worker = &down.worker;
    let shared = &worker.shared;
    let admission = &upstream.admission;
    let key = choice.key();
    let timeout = upstream.connect_timeout;
    let timeout = timeout.unwrap_or(shared.config.timeouts.connect);
    let facts = &down.facts;
    let unknown = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), facts.door.rule_port());
    let behalf = Behalf::Client(facts.peer, facts.local.unwrap_or(unknown));
    let reach = shared.fleet.reach();
    if choice.scheme() == Scheme::H2c {
        let stream = async {
            let deadline = Instant::now() + timeout;
            let connect = async || open(choice, behalf, timeout, reach).await;
            let streams = &worker.pool.h2;
            let opened = streams.stream(key, admission, shared, deadline, connect);
            opened.await.map_err(|error| match error {
                OpenError::Connect(error) => error,
                error @ OpenError::Handshake(_) => ConnectError::Unusable(error.to_string()),
            })
        };
        let (stream, reused) = while_wanted(client, upstream, down, stream).await?;
        return Ok((Connection::H2(Box::new(stream)), reused));
    }
    let connecting = open(choice, behalf, timeout, reach);
    let (stream, peer) = while_wanted(client, upstream, down, connecting).await?;
    let counted = shared.metrics.upstream();
    let connection = H1::new(stream, peer, admission.clone(), counted);
    Ok((Connection::H1(Box::new(connection)), false))
}

/// Waits for a connection as long as somebody wants it.
async fn while_wanted<C: Client, T>(
    client: &mut C,
    upstream: &Upstream,
    down: &Downstream,
    connecting: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, Failure> {
    let mut connecting = pin!(connecting);
    // Its address may be another's by the time it answers.
    let mut revoked = pin!(upstream.admission.revoked());
    let connected = poll_fn(|cx| {
        if revoked.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(Failure::Revoked));
        }
        if down.worker.ending.stage() == Stage::Cut {
            return Poll::Ready(Err(Failure::Drained));
        }
        if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
            return Poll::Ready(connected.map_err(Failure::Connect));
        }
        match client.poll_gone(cx) {
            Poll::Ready(_) => Poll::Ready(Err(Failure::ClientLeft)),
            Poll::Pending => Poll::Pending,
        }
    });
    connected.await
}
