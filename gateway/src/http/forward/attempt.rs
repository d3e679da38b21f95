//! A connection for one attempt: a kept one, or a new one.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use tokio::time::Instant;

use super::failure::Failure;
use crate::http::decide::Upstream;
use crate::http::downstream::Downstream;
use crate::http::side::Client;
use crate::listener::Stage;
use crate::upstream::{H1, Socket, connect_any};

/// A kept connection if `reuse` and there is one, else a new one; whether it was kept.
///
/// Ends early with the client, the admission and the cut.
pub(super) async fn connection<C: Client>(
    client: &mut C,
    upstream: &Upstream,
    down: &Downstream,
    now: Instant,
    reuse: bool,
) -> Result<(H1<Socket>, bool), Failure> {
    let worker = &down.worker;
    let shared = &worker.shared;
    let Upstream {
        key,
        address,
        admission,
        ..
    } = upstream;
    if reuse && let Some(mut kept) = worker.pool.h1.take(key, now, |kept| kept.is_of(admission)) {
        kept.counted = shared.metrics.upstream_active();
        return Ok((kept, true));
    }
    let timeout = shared.config.timeouts.connect;
    let mut connecting = pin!(connect_any(address, timeout, shared, &worker.pool.names));
    // Its address may be another's by the time it answers.
    let mut revoked = pin!(admission.revoked());
    let connected = poll_fn(|cx| {
        if revoked.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(Failure::Revoked));
        }
        if worker.ending.stage() == Stage::Cut {
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
    let (stream, peer) = connected.await?;
    let counted = shared.metrics.upstream_active();
    Ok((H1::new(stream, peer, admission.clone(), counted), false))
}
