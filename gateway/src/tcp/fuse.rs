//! Streams whose close can be made a reset.
//!
//! Whoever owns a stream by its end is seldom the one who knows that its data
//! was cut: the fuse lets the latter say so.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::listener::Prefixed;
use crate::upstream::Socket;

/// Makes the coming close of `stream` a reset instead of an end of the data.
pub(crate) fn reset(stream: &TcpStream) {
    // A socket that is gone already needs none.
    let _ = stream.set_zero_linger();
}

/// A stream that a TCP connection carries.
pub trait OverTcp {
    /// The connection.
    fn tcp(&self) -> &TcpStream;
}

impl OverTcp for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl OverTcp for Socket {
    fn tcp(&self) -> &TcpStream {
        self.get_ref()
    }
}

impl<S: OverTcp> OverTcp for Prefixed<S> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().tcp()
    }
}

impl<S: OverTcp> OverTcp for TlsStream<S> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0.tcp()
    }
}

/// Says that a stream must not end as if it were complete. Clones share it.
///
/// Atomic only because the I/O that hyper hands over must be `Send`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fuse(Arc<AtomicBool>);

impl Fuse {
    /// The stream's end will be a reset.
    pub(crate) fn blow(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A stream with a fuse.
#[derive(Debug)]
pub(crate) struct Fused<S: OverTcp> {
    stream: S,
    fuse: Fuse,
}

impl<S: OverTcp> Fused<S> {
    pub(crate) fn new(stream: S, fuse: Fuse) -> Self {
        Self { stream, fuse }
    }
}

impl<S: OverTcp> Drop for Fused<S> {
    fn drop(&mut self) {
        if self.fuse.0.load(Ordering::Relaxed) {
            reset(self.stream.tcp());
        }
    }
}

impl<S: OverTcp + AsyncRead + Unpin> AsyncRead for Fused<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: OverTcp + AsyncWrite + Unpin> AsyncWrite for Fused<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
