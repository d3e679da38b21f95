//! The TCP connection under a stream, whose close can be made a reset.

use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::listener::Prefixed;
use crate::tls::Together;
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

    /// The connection, if its bytes are the stream's: nothing is between them, and nothing is
    /// kept here.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
}

impl OverTcp for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }

    fn plain(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl OverTcp for Socket {
    fn tcp(&self) -> &TcpStream {
        self.get_ref()
    }

    fn plain(&self) -> Option<&TcpStream> {
        Some(self.get_ref())
    }
}

impl<S: OverTcp> OverTcp for Box<S> {
    fn tcp(&self) -> &TcpStream {
        (**self).tcp()
    }

    fn plain(&self) -> Option<&TcpStream> {
        (**self).plain()
    }
}

impl<S: OverTcp> OverTcp for Prefixed<S> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().tcp()
    }

    fn plain(&self) -> Option<&TcpStream> {
        self.get_ref().plain().filter(|_| self.is_drained())
    }
}

impl<S: OverTcp> OverTcp for Together<S> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().tcp()
    }
}

impl<S: OverTcp> OverTcp for TlsStream<S> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0.tcp()
    }
}
