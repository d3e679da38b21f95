//! The load's side of one connection: plain or TLS 1.3 with AES-128-GCM and X25519, whatever
//! else a proxy would take, so that all do the same arithmetic.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Waking, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::origin::body_byte;

/// Nothing that one connection does takes longer, or it has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Bytes per read: as much as a socket holds, so that large bodies cost the load little.
pub(crate) const READ: usize = 256 * 1024;

/// The longest head of an answer.
const HEAD_MAX: usize = 16 * 1024;

/// Where and as whom to ask.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// TLS as every proxy is measured with; tickets are used only where `resume` says so.
pub(crate) fn tls(ca: &Path, resume: bool) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)
        .with_context(|| format!("cannot read the CA {}", ca.display()))?
    {
        roots.add(certificate.context("a CA that is none")?)?;
    }
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("no TLS 1.3")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = if resume {
        Resumption::in_memory_sessions(64)
    } else {
        Resumption::disabled()
    };
    Ok(Arc::new(config))
}

/// A connection, plain or TLS.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Connects, and shakes hands where the target wants TLS.
    pub(crate) async fn connect(target: &Target) -> Result<Self> {
        let connecting = async {
            let tcp = TcpStream::connect(target.address)
                .await
                .context("cannot connect")?;
            tcp.set_nodelay(true)?;
            let Some(config) = &target.tls else {
                return Ok(Self::Plain(tcp));
            };
            let name = ServerName::try_from(target.host.clone()).context("no name for TLS")?;
            let stream = TlsConnector::from(Arc::clone(config)).connect(name, tcp);
            Ok(Self::Tls(Box::new(stream.await.context("no TLS")?)))
        };
        timeout(DEADLINE, connecting)
            .await
            .context("connecting took too long")?
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Waking<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Waking<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Waking<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Waking<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A kept connection that asks for one path again and again.
pub(crate) struct Asker {
    stream: Stream,
    request: Vec<u8>,
    body: usize,
    buffer: Vec<u8>,
}

impl Asker {
    /// Connects to ask for `path`, whose body must have `body` bytes.
    pub(crate) async fn connect(target: &Target, path: &str, body: usize) -> Result<Self> {
        let stream = Stream::connect(target).await?;
        // As a browser asks, in short: proxies pay for headers.
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: edd-bench\r\nAccept: */*\r\n\
             Accept-Encoding: identity\r\n\r\n",
            target.host
        );
        Ok(Self {
            stream,
            request: request.into_bytes(),
            body,
            buffer: vec![0; if body > 64 * 1024 { READ } else { 16 * 1024 }],
        })
    }

    /// Asks once. Anything but a 200 with a body of the right length is an error, and so is a
    /// first byte, a last byte or an answer's end in the wrong place.
    pub(crate) async fn ask(&mut self) -> Result<()> {
        let asking = self.exchange();
        asking.await
    }

    /// Asks once, for at most the deadline.
    pub(crate) async fn ask_in_time(&mut self) -> Result<()> {
        timeout(DEADLINE, self.exchange())
            .await
            .context("no answer in time")?
    }

    async fn exchange(&mut self) -> Result<()> {
        self.stream
            .write_all(&self.request)
            .await
            .context("cannot send")?;
        self.stream.flush().await.context("cannot send")?;
        let mut got = 0;
        let head = loop {
            got += self.read_at(got).await?;
            let bytes = self.buffer.get(..got).unwrap_or_default();
            if let Some(head) = head_length(bytes, self.body)? {
                break head;
            }
            if got > HEAD_MAX {
                bail!("an endless head");
            }
        };
        // The bytes of the body that came with the head.
        let mut body = got - head;
        let first = self.buffer.get(head).copied().filter(|_| body > 0);
        let mut last = self.buffer.get(got.wrapping_sub(1)).copied();
        let mut first = first;
        while body < self.body {
            let more = self.read_at(0).await?;
            first = first.or_else(|| self.buffer.first().copied());
            last = self.buffer.get(more - 1).copied();
            body += more;
        }
        if body > self.body {
            bail!("{} bytes after the answer", body - self.body);
        }
        if first != Some(body_byte(0)) || last != Some(body_byte(self.body - 1)) {
            bail!("a body that is not the origin's");
        }
        Ok(())
    }

    async fn read_at(&mut self, place: usize) -> Result<usize> {
        let room = self.buffer.get_mut(place..).unwrap_or_default();
        match self.stream.read(room).await.context("cannot receive")? {
            0 => bail!("the connection ended before the answer did"),
            more => Ok(more),
        }
    }
}

/// The length of an answer's head once it is whole and says what it should.
fn head_length(bytes: &[u8], body: usize) -> Result<Option<usize>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = bytes.get(..end).unwrap_or_default();
    if !head.starts_with(b"HTTP/1.1 200") {
        bail!("answered: {}", String::from_utf8_lossy(head));
    }
    let text = std::str::from_utf8(head).context("an answer's head that is no text")?;
    let length = text
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    if length != Some(body) {
        bail!("not {body} bytes: {text}");
    }
    Ok(Some(end + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_only_the_answer_that_was_asked_for() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcde";
        assert_eq!(head_length(whole, 5).expect("fine"), Some(whole.len() - 5));
        assert_eq!(head_length(&whole[..20], 5).expect("fine"), None);
        assert!(head_length(whole, 6).is_err());
        assert!(head_length(b"HTTP/1.1 503 No\r\ncontent-length: 5\r\n\r\n", 5).is_err());
    }
}
