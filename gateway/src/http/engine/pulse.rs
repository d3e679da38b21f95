//! Notices client connections that have fallen silent.
//!
//! One timer per connection, looked at only when it fires: reading and writing
//! merely note the time.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::config::Timeouts;

/// What a connection waits for, and since when.
///
/// Atomic only because the upgraded I/O must be `Send`; one thread uses it.
#[derive(Debug)]
pub(super) struct Pulse {
    base: Instant,
    phase: AtomicU8,
    at_ms: AtomicU64,
    /// Whether the client does not take what is written.
    blocked: AtomicBool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
enum Phase {
    /// A request is being answered.
    Busy = 0,
    /// The first bytes of a head are here, or are due.
    Head = 1,
    /// Nothing to do until the client asks again.
    Idle = 2,
    /// The connection has left HTTP.
    Switched = 3,
}

impl Pulse {
    /// A connection whose first head is due (HTTP/1).
    pub(super) fn expecting_head() -> Arc<Self> {
        Self::new(Phase::Head)
    }

    /// A connection that may stay idle at first (HTTP/2).
    pub(super) fn idle() -> Arc<Self> {
        Self::new(Phase::Idle)
    }

    fn new(phase: Phase) -> Arc<Self> {
        Arc::new(Self {
            base: Instant::now(),
            phase: AtomicU8::new(phase as u8),
            at_ms: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
        })
    }

    /// A request is being answered.
    pub(super) fn begin(&self) {
        self.enter(Phase::Busy);
    }

    /// Nothing is being answered any more.
    pub(super) fn rest(&self) {
        self.enter(Phase::Idle);
    }

    /// The connection leaves HTTP, once the head that says so is written.
    pub(super) fn switch(&self) {
        self.enter(Phase::Switched);
    }

    /// Whether something is written that the client does not take.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// When silence will have lasted too long, if nothing happens until then.
    pub(super) fn deadline(&self, timeouts: &Timeouts) -> Instant {
        let at = self.base + Duration::from_millis(self.at_ms.load(Ordering::Relaxed));
        at + match self.phase() {
            Phase::Busy | Phase::Switched => timeouts.stream_idle,
            Phase::Head => timeouts.header,
            Phase::Idle => timeouts.idle,
        }
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Busy,
            1 => Phase::Head,
            2 => Phase::Idle,
            _ => Phase::Switched,
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.touch();
    }

    fn touch(&self) {
        let elapsed = self.base.elapsed().as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        self.at_ms.store(elapsed, Ordering::Relaxed);
    }

    fn heard(&self) {
        match self.phase() {
            Phase::Busy | Phase::Switched => self.touch(),
            // The whole head counts from its first byte.
            Phase::Head => {}
            Phase::Idle => self.enter(Phase::Head),
        }
    }
}

/// I/O that keeps a pulse, and whose end takes care of the last answer.
#[derive(Debug)]
pub(super) struct Watched<I> {
    io: I,
    pulse: Arc<Pulse>,
    farewell: Option<Farewell>,
}

/// What is read, and thrown away, after our side has ended.
#[derive(Debug)]
struct Farewell {
    left: usize,
    until: Pin<Box<Sleep>>,
}

impl<I> Watched<I> {
    pub(super) fn new(io: I, pulse: Arc<Pulse>) -> Self {
        Self {
            io,
            pulse,
            farewell: None,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.pulse.heard();
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> Watched<I> {
    fn wrote(&self, polled: &Poll<io::Result<usize>>) {
        self.pulse
            .blocked
            .store(polled.is_pending(), Ordering::Relaxed);
        if matches!(polled, Poll::Ready(Ok(1..))) && self.pulse.phase() != Phase::Head {
            self.pulse.touch();
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.pulse
            .blocked
            .store(polled.is_pending(), Ordering::Relaxed);
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.farewell.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            if this.pulse.phase() == Phase::Switched {
                // What the client says now is for the upstream.
                return Poll::Ready(Ok(()));
            }
        }
        // Closing a socket with unread data resets the connection, and the reset
        // overtakes the answer to a request that was not read to its end.
        let farewell = this.farewell.get_or_insert_with(|| Farewell {
            left: DISCARD_MAX,
            until: Box::pin(tokio::time::sleep(FAREWELL)),
        });
        let mut scratch = [0; 8192];
        while farewell.left > 0 && farewell.until.as_mut().poll(cx).is_pending() {
            let mut rest = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut this.io).poll_read(cx, &mut rest));
            if read.is_err() || rest.filled().is_empty() {
                break;
            }
            farewell.left = farewell.left.saturating_sub(rest.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}

/// How long a client may take to notice our end.
const FAREWELL: Duration = Duration::from_millis(500);

/// More than a client sends without looking.
const DISCARD_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        header: Duration::from_secs(10),
        body: Duration::from_secs(60),
        idle: Duration::from_secs(60),
        connect: Duration::from_secs(3),
        upstream: Duration::from_secs(60),
        stream_idle: Duration::from_secs(3600),
        drain: Duration::from_secs(30),
    };

    fn left(pulse: &Pulse) -> u64 {
        (pulse.deadline(&TIMEOUTS) - Instant::now()).as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte_however_slowly_it_comes() {
        let (mut client, server) = tokio::io::duplex(64);
        let pulse = Pulse::expecting_head();
        let mut io = Watched::new(server, Arc::clone(&pulse));
        pulse.begin();
        pulse.rest();
        assert_eq!(left(&pulse), 60);

        client.write_all(b"G").await.unwrap();
        io.read_u8().await.unwrap();
        assert_eq!(left(&pulse), 10);
        tokio::time::advance(Duration::from_secs(9)).await;
        client.write_all(b"E").await.unwrap();
        io.read_u8().await.unwrap();
        assert_eq!(left(&pulse), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_moves_is_never_cut() {
        let (_client, server) = tokio::io::duplex(64);
        let pulse = Pulse::expecting_head();
        let mut io = Watched::new(server, Arc::clone(&pulse));
        pulse.begin();
        tokio::time::advance(Duration::from_secs(3000)).await;
        assert_eq!(left(&pulse), 600);
        io.write_all(b"tick").await.unwrap();
        assert_eq!(left(&pulse), 3600);
    }
}
