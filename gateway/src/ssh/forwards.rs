//! Remote forwards (`-R`): ports and sockets that a container listens on for a client.
//!
//! All of one client live on one connection to the container, made for the
//! first and kept: what connects there comes back over it (see `inbound`). The
//! requests are answered from the client connection's only loop, since global
//! requests are answered in order and a chosen port is part of the answer; so
//! each has a deadline, and ends with the client: that loop hears of it only afterwards.

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
    #[error("the container says that it listens on port {0}")]
    NoPort(u32),
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
        let opened = tokio::select! {
            opened = timeout(DEADLINE, self.try_open(connection, target, &listen)) => {
                opened.unwrap_or(Err(ForwardError::Timeout))
            }
            () = connection.gone.cancelled() => {
                self.end();
                return None;
            }
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
            Listen::Port { port: 0, .. } => {
                if !grants.chosen(listen, chosen) {
                    return Err(ForwardError::NoPort(chosen));
                }
                Ok(chosen)
            }
            Listen::Port { port, .. } => Ok(*port),
            Listen::Socket { .. } => Ok(0),
        }
    }

    /// Makes the container listen no more; whether it did.
    pub(crate) async fn close(&mut self, connection: &Connection, listen: &Listen) -> bool {
        let Some(upstream) = &self.upstream else {
            return false;
        };
        if !upstream.grants.take_back(listen) {
            return false;
        }
        tokio::select! {
            closed = timeout(DEADLINE, upstream.unlisten(listen)) => matches!(closed, Ok(Ok(()))),
            () = connection.gone.cancelled() => {
                self.end();
                false
            }
        }
    }

    /// The client is gone: nothing listens for it any more.
    fn end(&mut self) {
        if let Some(upstream) = self.upstream.take() {
            // What ends with its client was not lost.
            upstream.grants.end();
        }
    }
}

impl Drop for Forwards {
    fn drop(&mut self) {
        self.end();
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
