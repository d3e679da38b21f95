//! The end of a client connection.
//!
//! Closing a socket with unread data resets the connection, and the reset
//! overtakes what was sent: a client that still sends would lose its answer.
//! So our side ends first, and what still comes is thrown away for a moment.
//! What was cut must not look complete: where only the end of the connection
//! tells where a body ends, it is a reset.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::{Connection, Cut, pin};
use crate::tcp::{OverTcp, reset};

impl<I> Connection<I>
where
    I: AsyncRead + AsyncWrite + OverTcp + Unpin,
{
    /// Ends the connection. Bounded in time and bytes.
    pub(super) async fn close(&mut self) {
        let peer = &mut self.peer;
        match peer.cut {
            Some(Cut::Hard) => return reset(peer.wire.io().tcp()),
            Some(Cut::Gently) => {
                let flushed = timeout(FAREWELL, poll_fn(|cx| peer.wire.poll_flush(cx))).await;
                if peer.ends_by_close() || peer.has_switched() || !matches!(flushed, Ok(Ok(()))) {
                    return reset(peer.wire.io().tcp());
                }
            }
            None if peer.owes() => return reset(peer.wire.io().tcp()),
            None => {}
        }
        let mut left = DISCARD_MAX;
        // Whatever happens, it is closed after this.
        let _ = timeout(FAREWELL, poll_fn(|cx| self.poll_farewell(cx, &mut left))).await;
    }

    fn poll_farewell(&mut self, cx: &mut Context<'_>, left: &mut usize) -> Poll<()> {
        let wire = &mut self.peer.wire;
        if *left == DISCARD_MAX {
            if ready!(pin(wire.io_mut()).poll_shutdown(cx)).is_err() {
                return Poll::Ready(());
            }
            *left -= 1;
        }
        let mut scratch = [0; 8192];
        while *left > 0 {
            let mut rest = ReadBuf::new(&mut scratch);
            let read = ready!(pin(wire.io_mut()).poll_read(cx, &mut rest));
            if read.is_err() || rest.filled().is_empty() {
                break;
            }
            *left = left.saturating_sub(rest.filled().len());
        }
        Poll::Ready(())
    }
}

/// How long a client may take to notice our end.
const FAREWELL: Duration = Duration::from_millis(500);

/// More than the socket buffers on the way hold (4 MiB of the client's, 6 MiB of ours): what a
/// client sends without looking.
const DISCARD_MAX: usize = (16 << 20) + 1;
