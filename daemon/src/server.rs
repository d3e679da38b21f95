//! Serving an axum router on a listener, bounded and drained.
//!
//! HTTP/1.1 only: these endpoints stand behind the gateway or on loopback. What
//! `axum::serve` leaves open is closed here: connections are capped, a request
//! head has a deadline, and a drain ends after a grace period.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Pause after a failed accept (out of file descriptors): long enough not to
/// spin, short enough not to be noticed afterwards.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The bounds of a server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time; others wait in the listener's backlog.
    pub connections_max: usize,
    /// From the end of one request (or the accept) to the whole head of the next.
    pub head_timeout: Duration,
    /// How long connections may finish their request while draining.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            head_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// The address at the other end of the connection, in every request's extensions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Peer(pub SocketAddr);

/// Serves until `shutdown`, then drains: no new connections, requests under way
/// finish, idle connections close, the rest is cut after the drain timeout.
///
/// Dropping the future cuts every connection.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let connections = TaskTracker::new();
    // Ends every connection when this future is dropped, however it ends.
    let cut = CancellationToken::new();
    let _cut_on_drop = cut.clone().drop_guard();

    while let Some((stream, peer, permit)) = accept(&listener, &permits, &shutdown).await {
        let serving = connection(
            stream,
            peer,
            router.clone(),
            limits.clone(),
            shutdown.clone(),
        );
        let cut = cut.clone();
        connections.spawn(async move {
            let _permit = permit;
            cut.run_until_cancelled_owned(serving).await;
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(limits.drain_timeout, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "drain timed out, connections cut"
        );
    }
}

/// The next connection and its permit, or `None` on shutdown.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let accepted = async {
        let permit = Arc::clone(permits).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => return Some((stream, peer, permit)),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    shutdown.run_until_cancelled(accepted).await.flatten()
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        let answer = hyper::service::Service::call(&router, request);
        async move { Ok::<Response, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_headers(100)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.as_mut().await
        }
    };
    if let Err(error) = ended {
        // Clients leave, stall and send garbage: nothing to act on.
        tracing::debug!(%peer, %error, "connection ended");
    }
}
