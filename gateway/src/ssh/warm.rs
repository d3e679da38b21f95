//! At most one spare connection to the container per client connection.
//!
//! A handshake costs several round trips and a key exchange. The first is
//! begun at the login, while the client is still about to open a channel; a
//! further one only for a client that has opened a second channel and so
//! may open a third.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edd_route::decide::SshMatch;
use tokio_util::task::AbortOnDropHandle;

use super::Inner;
use super::upstream::{DialError, Upstream};

/// The spare, being made or made. Dropped, it ends.
#[derive(Default)]
pub(crate) struct Warm {
    /// Locked to put in and to take out.
    spare: Mutex<Option<Spare>>,
}

struct Spare {
    start: u64,
    /// The connection, or why there is none and since when.
    dial: AbortOnDropHandle<Result<Upstream, (DialError, Instant)>>,
}

/// What failed no longer ago than this would fail again.
const FRESH: Duration = Duration::from_secs(1);

impl Warm {
    /// Begins one, unless there is one.
    pub(crate) fn begin(&self, inner: &Arc<Inner>, target: &SshMatch) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare
            .as_ref()
            .is_some_and(|spare| spare.start == target.start)
        {
            return;
        }
        let (inner, start) = (Arc::clone(inner), target.start);
        let target = target.clone();
        let dial = tokio::spawn(async move {
            let dialled = inner.dialer.dial(&target).await;
            dialled.map_err(|error| (error, Instant::now()))
        });
        *spare = Some(Spare {
            start,
            dial: AbortOnDropHandle::new(dial),
        });
    }

    /// A connection for a channel: the spare, or a new one.
    ///
    /// Cancellation safe: dropping the future ends what it waited for.
    pub(crate) async fn take(
        &self,
        inner: &Arc<Inner>,
        target: &SshMatch,
    ) -> Result<Upstream, DialError> {
        let spare = self
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(spare) = spare
            && spare.start == target.start
        {
            match spare.dial.await {
                Ok(Ok(upstream)) if !upstream.is_closed() => return Ok(upstream),
                // It has just failed; another would only take the same time again.
                Ok(Err((error, when))) if when.elapsed() < FRESH => return Err(error),
                // It has ended since, or failed long ago, or was lost to a bug.
                Ok(_) | Err(_) => {}
            }
        }
        inner.dialer.dial(target).await
    }

    /// Ends the spare.
    pub(crate) fn clear(&self) {
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
