//! A client connection that speaks HTTP/1.
//!
//! One task for the whole of it: it reads heads ([`next`]), gives each request
//! to [`forward`](super::forward), which moves the bytes of both sides, and
//! takes care that the end looks like what it is ([`goodbye`]).

use std::pin::Pin;
use std::rc::Rc;

use edd_route::Admission;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::ConnectionFacts;
use super::alarm::Alarm;
use super::downstream::Downstream;
use super::forward::{self, Finished};
use crate::listener::Worker;
use crate::tcp::OverTcp;

mod goodbye;
mod next;
mod peer;

use next::Next;
use peer::{Cut, Peer};

/// Serves HTTP/1.0 and 1.1 on `io` until the connection is over, an upgraded one included.
///
/// When draining begins the answer under way is the last one; at the cut
/// everything ends. Must run on a `LocalSet`. Cancellation safe: dropping the
/// future closes the connection.
pub async fn serve_h1<I>(io: I, facts: ConnectionFacts, worker: &Rc<Worker>)
where
    I: AsyncRead + AsyncWrite + OverTcp + Unpin,
{
    let admission = facts.admission.clone();
    let down = Downstream::new(worker, facts);
    let mut connection = Connection {
        peer: Peer::new(io),
        alarm: Alarm::new(Instant::now() + worker.shared.config.timeouts.header),
    };
    let life = connection.serve(&down);
    let whole = match admission {
        // Nothing of the connection outlives what admitted it.
        Some(admission) => until_revoked(life, &admission).await,
        None => {
            life.await;
            true
        }
    };
    if !whole {
        connection.peer.cut = Some(Cut::Hard);
    }
    connection.close().await;
}

/// Whether `life` ended by itself.
async fn until_revoked(life: impl Future<Output = ()>, admission: &Admission) -> bool {
    tokio::select! {
        biased;
        () = admission.revoked() => false,
        () = life => true,
    }
}

/// A connection and its timer.
struct Connection<I> {
    peer: Peer<I>,
    alarm: Alarm,
}

impl<I> Connection<I>
where
    I: AsyncRead + AsyncWrite + OverTcp + Unpin,
{
    /// Answers requests until no more may follow.
    async fn serve(&mut self, down: &Downstream) {
        let mut watch = None;
        let ending = &down.worker.ending;
        let mut since = None;
        loop {
            let turn = match self
                .next(down, since, &mut |cx| {
                    watch.get_or_insert_with(|| ending.watch(cx.waker()));
                })
                .await
            {
                Next::Turn(turn) => turn,
                Next::Over => return,
            };
            let finished = forward::serve(&mut self.peer, turn, down, &mut self.alarm).await;
            match finished {
                Finished::Open(at) if self.peer.goes_on() => since = Some(at),
                Finished::Open(_) | Finished::Last => return,
            }
        }
    }
}

/// Pins nothing: the I/O is `Unpin`.
fn pin<T: Unpin>(value: &mut T) -> Pin<&mut T> {
    Pin::new(value)
}
