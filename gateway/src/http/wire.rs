//! An HTTP/1 byte stream with what was read too much and what is not written yet.
//!
//! Reading goes into a buffer of the thread that is lent for one poll; what is
//! not consumed then is kept here. Writing gathers small pieces and sends large
//! ones straight from where they are. A connection that waits keeps no buffer.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream and its two buffers.
#[derive(Debug)]
pub(crate) struct Wire<I> {
    io: I,
    /// Read, not consumed.
    kept: Vec<u8>,
    /// What is kept is not enough for a step.
    starved: bool,
    out: Out,
    /// The stream took less than it was given.
    blocked: bool,
    /// Written to the stream, which may still hold on to it.
    unflushed: bool,
    /// Bytes written so far.
    written: u64,
}

/// Bytes at hand, for one look. Give it back by [`Wire::keep`].
#[derive(Debug)]
pub(crate) struct Input {
    held: Held,
    /// How many of them were looked at before, in vain.
    seen: usize,
}

#[derive(Debug)]
enum Held {
    Kept(Vec<u8>),
    Read(Scratch, usize),
}

impl Input {
    /// The bytes; none: the stream has ended.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Kept(bytes) => bytes,
            Held::Read(scratch, len) => scratch.0.get(..*len).unwrap_or_default(),
        }
    }

    /// Whether another look may find what the last one missed: a line, or too much of one.
    ///
    /// So heads that trickle in are not parsed from their begin with every byte.
    pub(crate) fn is_worth_a_look(&self) -> bool {
        let bytes = self.bytes();
        let fresh = bytes.get(self.seen..).unwrap_or_default();
        self.seen == 0
            || self.seen / LOOK_EVERY != bytes.len() / LOOK_EVERY
            || fresh.contains(&b'\n')
    }

    fn new(held: Held, seen: usize) -> Self {
        Self { held, seen }
    }
}

impl<I> Wire<I> {
    /// A stream of which nothing was read.
    pub(crate) fn new(io: I) -> Self {
        Self {
            io,
            kept: Vec::new(),
            starved: false,
            out: Out::default(),
            blocked: false,
            unflushed: false,
            written: 0,
        }
    }

    /// The stream.
    pub(crate) fn io(&self) -> &I {
        &self.io
    }

    /// The stream.
    pub(crate) fn io_mut(&mut self) -> &mut I {
        &mut self.io
    }

    /// Takes back what was at hand, of which `consumed` bytes are done.
    ///
    /// `starved`: the rest is of no use before there is more.
    pub(crate) fn keep(&mut self, input: Input, consumed: usize, starved: bool) {
        self.starved = starved;
        match input.held {
            Held::Kept(mut bytes) => {
                if consumed >= bytes.len() {
                    give_back(bytes);
                } else {
                    bytes.drain(..consumed);
                    self.kept = bytes;
                }
            }
            Held::Read(scratch, len) => {
                if let Some(rest) = scratch.0.get(consumed..len)
                    && !rest.is_empty()
                {
                    self.kept.reserve_exact(rest.len());
                    self.kept.extend_from_slice(rest);
                }
            }
        }
    }

    /// Whether anything is kept that was read and not consumed.
    pub(crate) fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Where to append what is to be written.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        self.out.buffer()
    }

    /// Whether everything was written and flushed.
    pub(crate) fn is_flushed(&self) -> bool {
        self.out.is_empty() && !self.unflushed
    }

    /// Whether the stream takes no more at the moment.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Bytes that the stream has taken.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }
}

impl<I: AsyncRead + Unpin> Wire<I> {
    /// What is at hand: kept, else read now. Empty at the end of the stream.
    pub(crate) fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Input>> {
        if !self.kept.is_empty() && !self.starved {
            let kept = Held::Kept(std::mem::take(&mut self.kept));
            return Poll::Ready(Ok(Input::new(kept, 0)));
        }
        let mut scratch = Scratch::take();
        let len = ready!(self.poll_read(cx, &mut scratch))?;
        if self.kept.is_empty() || len == 0 {
            return Poll::Ready(Ok(Input::new(Held::Read(scratch, len), 0)));
        }
        let read = scratch.0.get(..len).unwrap_or_default();
        let seen = self.kept.len();
        self.kept.extend_from_slice(read);
        let kept = Held::Kept(std::mem::take(&mut self.kept));
        Poll::Ready(Ok(Input::new(kept, seen)))
    }

    /// Reads ahead, behind what is kept; false at the end of the stream.
    pub(crate) fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut scratch = Scratch::take();
        let len = ready!(self.poll_read(cx, &mut scratch))?;
        let read = scratch.0.get(..len).unwrap_or_default();
        self.kept.extend_from_slice(read);
        if len > 0 {
            // Whoever asked for more has it.
            self.starved = false;
        }
        Poll::Ready(Ok(len > 0))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(&mut scratch.0);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl<I: AsyncWrite + Unpin> Wire<I> {
    /// Ready when the stream is not known to be full and little is kept.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.blocked || self.out.len() >= GATHER_MAX {
            ready!(self.poll_write_out(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes everything that is kept, down to the socket.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let polled = Pin::new(&mut self.io).poll_write(cx, self.out.bytes());
            self.blocked = polled.is_pending();
            let count = ready!(polled)?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote(count);
        }
        self.blocked = false;
        Poll::Ready(Ok(()))
    }

    /// Sends `data` after what is kept; what the stream does not take now is kept.
    pub(crate) fn send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> io::Result<()> {
        if self.blocked || data.len() < DIRECT_MIN {
            self.out.buffer().extend_from_slice(data);
            return Ok(());
        }
        let mut at = 0;
        while let Some(rest) = data.get(at..)
            && !rest.is_empty()
        {
            let polled = if self.out.is_empty() {
                Pin::new(&mut self.io).poll_write(cx, rest)
            } else {
                let both = [IoSlice::new(self.out.bytes()), IoSlice::new(rest)];
                Pin::new(&mut self.io).poll_write_vectored(cx, &both)
            };
            match polled {
                Poll::Ready(count) => {
                    let count = count?;
                    if count == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    at += count - self.wrote(count);
                }
                Poll::Pending => {
                    self.blocked = true;
                    self.out.buffer().extend_from_slice(rest);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Accounts for `count` written bytes; tells how many of them were kept ones.
    fn wrote(&mut self, count: usize) -> usize {
        self.written += count as u64;
        self.unflushed = true;
        self.out.advance(count)
    }
}

/// Bytes to be written, from `at` on.
#[derive(Debug, Default)]
struct Out {
    bytes: Vec<u8>,
    at: usize,
}

impl Out {
    fn buffer(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = lend();
        }
        &mut self.bytes
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn is_empty(&self) -> bool {
        self.bytes.len() == self.at
    }

    fn advance(&mut self, count: usize) -> usize {
        let count = count.min(self.len());
        self.at += count;
        if self.is_empty() {
            self.at = 0;
            if self.bytes.capacity() > 0 {
                give_back(std::mem::take(&mut self.bytes));
            }
        }
        count
    }
}

/// An empty buffer of the thread; it grows as it must.
pub(crate) fn lend() -> Vec<u8> {
    SPARE
        .with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| Vec::with_capacity(SPARE_BYTES))
}

/// Gives a buffer to the next one who needs one.
pub(crate) fn give_back(mut buffer: Vec<u8>) {
    if !(SPARE_BYTES..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
        return;
    }
    buffer.clear();
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
    });
}

/// The thread's read buffer, lent for one poll. A second taker meanwhile gets its own.
#[derive(Debug)]
struct Scratch(Box<[u8]>);

impl Scratch {
    fn take() -> Self {
        let buffer = SCRATCH.take();
        Self(buffer.unwrap_or_else(|| vec![0; SCRATCH_BYTES].into_boxed_slice()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.set(Some(std::mem::take(&mut self.0)));
    }
}

thread_local! {
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Read at once. Halves the cost of bulk against 8 KiB.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Bytes of an unfinished line after which it is looked at all the same: it may be too long.
const LOOK_EVERY: usize = 4 * 1024;

/// What is smaller is gathered, since copying it costs less than a system call.
const DIRECT_MIN: usize = 8 * 1024;

/// Gathered before it is written without being asked to.
const GATHER_MAX: usize = 16 * 1024;

/// Room for two heads and a small body.
const SPARE_BYTES: usize = 4 * 1024;

/// Larger ones are freed.
const SPARE_BYTES_MAX: usize = 64 * 1024;

/// Buffers that a thread keeps.
const SPARE_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_head_that_trickles_in_is_looked_at_once_per_line() {
        let (mut far, near) = duplex(1 << 20);
        let mut wire = Wire::new(near);
        let mut looks = 0;
        let lines = "a: b\r\n".repeat(20) + &"x".repeat(9000);
        for byte in lines.bytes() {
            far.write_all(&[byte]).await.unwrap();
            let input = poll_fn(|cx| wire.poll_input(cx)).await.unwrap();
            looks += usize::from(input.is_worth_a_look());
            wire.keep(input, 0, true);
        }
        // The first byte, the lines, and every 4 KiB of the last one.
        assert_eq!(looks, 1 + 20 + 2);
        let input = poll_fn(|cx| wire.poll_input(cx));
        drop(far);
        assert_eq!(input.await.unwrap().bytes(), b"");
    }

    #[tokio::test]
    async fn what_is_not_consumed_is_at_hand_again_before_anything_is_read() {
        let (mut far, near) = duplex(64);
        let mut wire = Wire::new(near);
        far.write_all(b"onetwo").await.unwrap();
        let input = poll_fn(|cx| wire.poll_input(cx)).await.unwrap();
        assert_eq!(input.bytes(), b"onetwo");
        wire.keep(input, 3, false);
        assert!(wire.has_kept());
        let input = poll_fn(|cx| wire.poll_input(cx)).await.unwrap();
        assert_eq!(input.bytes(), b"two");
        wire.keep(input, 3, false);
        assert!(!wire.has_kept());
        far.write_all(b"x").await.unwrap();
        assert!(poll_fn(|cx| wire.poll_ahead(cx)).await.unwrap());
        let input = poll_fn(|cx| wire.poll_input(cx)).await.unwrap();
        assert_eq!(input.bytes(), b"x");
    }

    #[tokio::test]
    async fn small_and_large_pieces_arrive_in_order_whatever_the_stream_takes() {
        let (mut far, near) = duplex(10_000);
        let mut wire = Wire::new(near);
        let large: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all
        });
        let mut expected = Vec::new();
        for piece in [b"head".as_slice(), &large, b"tail", b"end", &large] {
            expected.extend_from_slice(piece);
            poll_fn(|cx| wire.poll_room(cx)).await.unwrap();
            poll_fn(|cx| Poll::Ready(wire.send(cx, piece)))
                .await
                .unwrap();
        }
        poll_fn(|cx| wire.poll_flush(cx)).await.unwrap();
        assert!(wire.is_flushed());
        assert_eq!(wire.written(), expected.len() as u64);
        drop(wire);
        assert!(reader.await.unwrap() == expected);
    }
}
