//! The socket of an HTTP/2 connection, shared by the h2 crate and the connection's task.
//!
//! The h2 crate flushes after every DATA frame of some size, which costs a TLS
//! record and a system call each time. Here its writes only fill an outbox and
//! its flushes do nothing; the task drains the outbox when the state machine has
//! nothing more to say. Above a bound writes wait for the socket, so memory stays
//! flat however slowly the peer reads. A connection that waits holds no buffer.

use std::cell::{RefCell, RefMut};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::outbox::{Lent, Outbox};

/// What the peer's bytes are shown to before the h2 crate sees them.
pub(crate) trait Inspect {
    /// Looks at bytes as they arrive, in order.
    fn arrived(&mut self, bytes: &[u8]);

    /// Told how many bytes were given to the socket.
    fn sent(&mut self, bytes: usize);

    /// Whether nothing more is to be read: the peer has sent too much of something.
    fn is_over(&self) -> bool;
}

/// Nothing is looked for.
impl Inspect for () {
    fn arrived(&mut self, _: &[u8]) {}

    fn sent(&mut self, _: usize) {}

    fn is_over(&self) -> bool {
        false
    }
}

/// The I/O that the h2 crate gets, and the task's way to it. Clones share it; one thread uses them.
#[derive(Debug)]
pub(crate) struct Coalesced<I, W>(Rc<RefCell<Inner<I, W>>>);

impl<I, W> Clone for Coalesced<I, W> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<I, W> {
    io: I,
    watch: W,
    /// What is written and not yet drained.
    out: Outbox,
    /// Whether bytes are in the socket's layers that were not flushed.
    unflushed: bool,
    /// When bytes last came or went.
    moved: Instant,
    /// How much may still be read before the task has had a look.
    readable: usize,
    /// The inspector is not asked any more.
    heedless: bool,
}

impl<I, W: Inspect> Coalesced<I, W> {
    pub(crate) fn new(io: I, watch: W) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            io,
            watch,
            out: Outbox::default(),
            unflushed: false,
            moved: Instant::now(),
            readable: READ_AT_ONCE,
            heedless: false,
        })))
    }

    /// Allows another [`READ_AT_ONCE`] bytes to be read: the task has seen what the last ones were.
    pub(crate) fn admit(&self) {
        self.0.borrow_mut().readable = READ_AT_ONCE;
    }

    /// Whether bytes have come since then.
    pub(crate) fn has_read(&self) -> bool {
        self.0.borrow().readable < READ_AT_ONCE
    }

    /// Where to leave handles on what the h2 crate is handed.
    pub(crate) fn lent(&self) -> Lent {
        self.0.borrow().out.lent()
    }

    /// When bytes last came or went.
    pub(crate) fn moved(&self) -> Instant {
        self.0.borrow().moved
    }

    /// Reads on whatever the inspector says.
    pub(crate) fn forget_watch(&self) {
        self.0.borrow_mut().heedless = true;
    }

    /// The inspector.
    pub(crate) fn watch(&self) -> RefMut<'_, W> {
        RefMut::map(self.0.borrow_mut(), |inner| &mut inner.watch)
    }
}

impl<I: AsyncWrite + Unpin, W: Inspect> Coalesced<I, W> {
    /// Gives the socket what was written. Ready when it has taken all of it.
    pub(crate) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_drain(cx)
    }
}

impl<I: AsyncWrite + Unpin, W: Inspect> Inner<I, W> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out.len() > 0 {
            ready!(self.poll_write_out(cx))?;
        }
        self.out.rest();
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Room for another frame, which may then go above the bound by its own length.
    ///
    /// What is beyond the bound stays, to be sent with what follows: it is a few bytes of a frame.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out.len() >= BUFFERED_MAX {
            ready!(self.poll_write_out(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives the socket's layers what they take at once.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let slices = self.out.slices();
        let io = Pin::new(&mut self.io);
        let count = ready!(match slices.as_slice() {
            [one] => io.poll_write(cx, one),
            all => io.poll_write_vectored(cx, all),
        })?;
        drop(slices);
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.out.advance(count);
        self.unflushed = true;
        self.moved = Instant::now();
        self.watch.sent(count);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin, W: Inspect + Unpin> AsyncRead for Coalesced<I, W> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        if !inner.heedless && inner.watch.is_over() {
            // The task looks after each of its polls, so nobody needs to be woken.
            return Poll::Pending;
        }
        if inner.readable == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut inner.io).poll_read(cx, buf);
        if let Some(new) = buf.filled().get(before..).filter(|new| !new.is_empty()) {
            inner.moved = Instant::now();
            inner.readable = inner.readable.saturating_sub(new.len());
            inner.watch.arrived(new);
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin, W: Inspect> AsyncWrite for Coalesced<I, W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_room(cx))?;
        inner.out.push(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_room(cx))?;
        for buf in bufs {
            inner.out.push(buf);
        }
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing: the connection's task drains.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

/// A peer that sends without end does not keep its streams from being served.
const READ_AT_ONCE: usize = 256 << 10;

/// Above this much, writes wait for the socket. As much as rustls takes at once.
pub(super) const BUFFERED_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn noop() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[tokio::test]
    async fn writes_and_flushes_reach_the_socket_only_when_drained_and_then_as_one() {
        let (mut far, near) = tokio::io::duplex(1 << 20);
        let mut io = Coalesced::new(near, ());
        io.write_all(b"one ").await.unwrap();
        io.flush().await.unwrap();
        let slices = [IoSlice::new(b"two "), IoSlice::new(b"three")];
        let count = io.write_vectored(&slices).await.unwrap();
        assert_eq!(count, 9);
        let mut seen = [0; 64];
        let mut buf = ReadBuf::new(&mut seen);
        assert!(
            Pin::new(&mut far)
                .poll_read(&mut noop(), &mut buf)
                .is_pending()
        );

        assert!(io.poll_drain(&mut noop()).is_ready());
        let count = far.read(&mut seen).await.unwrap();
        assert_eq!(&seen[..count], b"one two three");
        assert!(io.0.borrow().out.is_at_rest(), "a drained buffer is kept");
    }

    #[tokio::test]
    async fn what_a_peer_does_not_read_is_bounded_and_arrives_in_order() {
        let (mut far, near) = tokio::io::duplex(1000);
        let mut io = Coalesced::new(near, ());
        let mut written = 0usize;
        let mut stuck = false;
        for _ in 0..1000 {
            let frame: Vec<u8> = (written..written + 700).map(|i| (i % 251) as u8).collect();
            match Pin::new(&mut io).poll_write(&mut noop(), &frame) {
                Poll::Ready(count) => written += count.unwrap(),
                Poll::Pending => {
                    stuck = true;
                    break;
                }
            }
        }
        assert!(stuck);
        assert!(written < BUFFERED_MAX + 1000 + 700, "{written}");

        let mut got = Vec::new();
        while got.len() < written {
            let mut some = [0; 777];
            let count = far.read(&mut some).await.unwrap();
            got.extend_from_slice(&some[..count]);
            let _ = io.poll_drain(&mut noop());
        }
        assert!(
            got.iter()
                .enumerate()
                .all(|(i, &byte)| byte == (i % 251) as u8)
        );
    }

    #[tokio::test]
    async fn a_closed_peer_is_an_error_and_not_a_wait() {
        let (far, near) = tokio::io::duplex(1000);
        let mut io = Coalesced::new(near, ());
        drop(far);
        io.write_all(b"x").await.unwrap();
        assert!(matches!(io.poll_drain(&mut noop()), Poll::Ready(Err(_))));
    }
}
