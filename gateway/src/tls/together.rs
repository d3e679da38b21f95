//! Keeps session tickets back until something else goes the same way.
//!
//! rustls writes them as soon as the handshake is over: a system call and a
//! packet of their own for each connection, and nobody waits for them. Here they
//! go with the first bytes of an answer, with the settings of HTTP/2, or with the
//! end. Lies between the TLS session and its connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream, and what is to be written before anything else on it.
#[derive(Debug)]
pub struct Together<S> {
    stream: S,
    held: Vec<u8>,
    /// The handshake is under way, and whatever of it was to be written was.
    may_hold: bool,
}

impl<S> Together<S> {
    /// A stream whose handshake begins.
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            held: Vec::new(),
            may_hold: true,
        }
    }

    /// The handshake is over: what is kept goes with the next bytes.
    pub(super) fn release(&mut self) {
        self.may_hold = false;
    }

    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// What was kept back, and the stream.
    pub(super) fn into_parts(self) -> (Vec<u8>, S) {
        (self.held, self.stream)
    }

    /// Whether `bytes` can wait.
    ///
    /// During a handshake encrypted records come in TLS 1.3 alone: the rest of the server's flight,
    /// in one piece with its hello, unless the stream did not take all of that; and, once the
    /// client has finished, tickets, or the alert that the handshake ends with.
    fn can_wait(&self, bytes: &[IoSlice<'_>]) -> bool {
        let first = bytes.iter().find_map(|slice| slice.first());
        self.may_hold && first == Some(&APPLICATION_DATA)
    }
}

impl<S: AsyncWrite + Unpin> Together<S> {
    /// Writes what is kept, and then some of `bytes`; how many of these.
    fn poll_both(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        while !self.held.is_empty() {
            let mut all = SmallVec::<[IoSlice<'_>; 8]>::new();
            all.push(IoSlice::new(&self.held));
            all.extend(bytes.iter().copied());
            let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &all))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            drop(all);
            let rest = count.saturating_sub(self.held.len());
            self.held.drain(..count - rest);
            if self.held.is_empty() {
                self.held = Vec::new();
            }
            if rest > 0 {
                return Poll::Ready(Ok(rest));
            }
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Together<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Together<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total = bytes.iter().map(|slice| slice.len()).sum();
        if self.can_wait(bytes) {
            for slice in bytes {
                self.held.extend_from_slice(slice);
            }
            return Poll::Ready(Ok(total));
        }
        if self.held.is_empty() && !self.may_hold {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        }
        let polled = self.poll_both(cx, bytes);
        // What is written next may be the rest of this.
        self.may_hold &= matches!(polled, Poll::Ready(Ok(count)) if count == total);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What is kept stays: it is in no hurry.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() {
            ready!(self.poll_both(cx, &[]))?;
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The type of encrypted records (RFC 8446, section 5.2).
const APPLICATION_DATA: u8 = 23;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// All that has arrived.
    async fn arrived(far: &mut DuplexStream, count: usize) -> String {
        let mut bytes = vec![0; count];
        far.read_exact(&mut bytes).await.unwrap();
        let mut more = [0];
        let more = tokio::time::timeout(std::time::Duration::ZERO, far.read(&mut more)).await;
        assert!(more.is_err(), "more than {count} bytes");
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn tickets_wait_for_the_next_bytes_and_go_before_them() {
        let (near, mut far) = duplex(64);
        let mut stream = Together::new(near);
        stream.write_all(b"\x16hello\x17rest").await.unwrap();
        assert_eq!(arrived(&mut far, 11).await, "\x16hello\x17rest");
        stream.write_all(b"\x17ticket").await.unwrap();
        stream.flush().await.unwrap();
        stream.release();
        stream.flush().await.unwrap();
        assert_eq!(arrived(&mut far, 0).await, "");
        stream.write_all(b"\x17answer").await.unwrap();
        assert_eq!(arrived(&mut far, 14).await, "\x17ticket\x17answer");
        stream.write_all(b"\x17more").await.unwrap();
        assert_eq!(arrived(&mut far, 5).await, "\x17more");
    }

    #[tokio::test]
    async fn what_waits_arrives_in_order_however_little_the_stream_takes() {
        let (near, mut far) = duplex(3);
        let mut stream = Together::new(near);
        let write = async {
            stream.write_all(b"\x17ticket").await.unwrap();
            stream.release();
            stream.write_all(b"\x17answer").await.unwrap();
            stream.shutdown().await.unwrap();
        };
        let mut all = String::new();
        let (_, read) = tokio::join!(write, far.read_to_string(&mut all));
        read.unwrap();
        assert_eq!(all, "\x17ticket\x17answer");
    }

    #[tokio::test]
    async fn a_flight_that_was_not_taken_at_once_never_waits() {
        let (near, mut far) = duplex(6);
        let mut stream = Together::new(near);
        let write = async {
            stream.write_all(b"\x16hello\x17rest").await.unwrap();
            // A remainder that begins like a ticket.
            stream.write_all(b"\x17late").await.unwrap();
        };
        let mut all = [0; 16];
        let (_, read) = tokio::join!(write, far.read_exact(&mut all));
        read.unwrap();
        assert_eq!(&all, b"\x16hello\x17rest\x17late");
    }

    #[tokio::test]
    async fn without_an_answer_tickets_go_with_the_end() {
        let (near, mut far) = duplex(64);
        let mut stream = Together::new(near);
        stream.write_all(b"\x17ticket").await.unwrap();
        stream.release();
        stream.shutdown().await.unwrap();
        let mut all = String::new();
        far.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "\x17ticket");
    }
}
