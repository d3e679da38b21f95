//! Remote forwards (`-R`): ports and sockets that a container listens on for a client.
//!
//! All of one client live on one connection to the container, made for the
//! first and kept: what connects there comes back over it (see `inbound`). The
//! requests are answered from the client connection's only loop, since global
//! requests are answered in order and a chosen port is part of the answer; so
//! each has a deadline.

use std::sync::Arc;
use std::time::Duration;

use edd_route::decide::SshMatch;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::connection::Connection;
use super::grants::Listen;
use super::upstream::{DialError, Upstream};

/// Until the container has answered, the connection to it included. The client's other channels
/// wait meanwhile.
const DEADLINE: Duration = Duration::from_secs(10);

/// The remote forwards of one client connection.
#[derive(Default)]
pub(crate) struct Forwards {
    upstream: Option<Upstream>,
}

/// Why a forward does not stand.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error("the container was not reached")]
    Dial(#[from] DialError),
    #[error("the container does not listen")]
    Refused(#[from] russh::Error),
    #[error("the container took too long")]
    Timeout,
    #[error("too many forwards")]
    TooMany,
}

impl Forwards {
    /// Makes the container listen; the port that it listens on (0 for a socket), or nothing when
    /// it does not.
    pub(crate) async fn open(
        &mut self,
        connection: &Arc<Connection>,
        target: &SshMatch,
        listen: Listen,
    ) -> Option<u32> {
        let opened = match timeout(DEADLINE, self.try_open(connection, target, &listen)).await {
            Ok(opened) => opened,
            Err(_) => Err(ForwardError::Timeout),
        };
        match opened {
            Ok(port) => return Some(port),
            Err(ForwardError::TooMany) => {
                debug!(peer = %connection.peer, "too many remote forwards");
                return None;
            }
            Err(error @ ForwardError::Refused(_)) => {
                debug!(container = %target.id, ?listen, %error, "no remote forward");
            }
            Err(error) => {
                warn!(container = %target.id, ?listen,
                    error = format!("{:#}", anyhow::Error::from(error)), "no remote forward");
            }
        }
        if let Some(upstream) = &self.upstream {
            // If only its answer was late, the container listens for nobody now.
            upstream.grants.take_back(&listen);
        }
        None
    }

    async fn try_open(
        &mut self,
        connection: &Arc<Connection>,
        target: &SshMatch,
        listen: &Listen,
    ) -> Result<u32, ForwardError> {
        let upstream = match self.upstream.take() {
            Some(upstream) if !upstream.is_closed() => upstream,
            _ => {
                let upstream = connection.warm.take(&connection.inner, target).await?;
                watch(connection, &upstream);
                upstream
            }
        };
        let upstream = self.upstream.insert(upstream);
        let grants = &upstream.grants;
        // Before the container is asked: what it opens may overtake its answer.
        if !grants.allow(connection, listen.clone()) {
            return Err(ForwardError::TooMany);
        }
        let chosen = upstream.listen(listen).await?;
        match listen {
            Listen::Port { address, port: 0 } => {
                let address = address.clone();
                grants.take_back(listen);
                let port = chosen;
                grants.allow(connection, Listen::Port { address, port });
                Ok(port)
            }
            Listen::Port { port, .. } => Ok(*port),
            Listen::Socket { .. } => Ok(0),
        }
    }

    /// Makes the container listen no more; whether it did.
    pub(crate) async fn close(&mut self, listen: &Listen) -> bool {
        let Some(upstream) = &self.upstream else {
            return false;
        };
        if !upstream.grants.take_back(listen) {
            return false;
        }
        match timeout(DEADLINE, upstream.unlisten(listen)).await {
            Ok(closed) => closed.is_ok(),
            Err(_) => false,
        }
    }
}

impl Drop for Forwards {
    fn drop(&mut self) {
        if let Some(upstream) = &self.upstream {
            // What ends with its client was not lost.
            upstream.grants.end();
        }
    }
}

/// Ends the client when its listeners are gone: the protocol has no other way to say so, and
/// clients that watch their forwards connect again.
fn watch(connection: &Arc<Connection>, upstream: &Upstream) {
    let (connection, grants) = (Arc::clone(connection), Arc::clone(&upstream.grants));
    tokio::spawn(async move {
        tokio::select! {
            () = connection.gone.cancelled() => {}
            () = grants.ended.cancelled() => {
                if grants.has_forwards() {
                    connection.lost.cancel();
                }
            }
        }
    });
}
