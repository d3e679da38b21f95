//! A tiny HTTP/1.1 client over one kept TLS connection: just enough to ask the gateway for many
//! hosts, again and again, with nothing between the question and the clock.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Every connect, handshake and answer is done within this time or has failed.
const DEADLINE: Duration = Duration::from_secs(5);

/// No answer that we ask for is longer.
const ANSWER_MAX: usize = 256 * 1024;

/// The TLS settings of a client that trusts one CA file and speaks HTTP/1.1.
pub(crate) fn tls(ca: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(ca)
        .with_context(|| format!("cannot read the CA {}", ca.display()))?;
    for certificate in certificates {
        let certificate =
            certificate.with_context(|| format!("no certificate in {}", ca.display()))?;
        roots
            .add(certificate)
            .with_context(|| format!("no CA in {}", ca.display()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("no TLS versions")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A TLS connection to `address` that asks for `name`.
pub(crate) async fn connect(
    address: &str,
    name: &str,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>> {
    let connecting = async {
        let tcp = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        tcp.set_nodelay(true)?;
        let server = ServerName::try_from(name.to_owned())
            .with_context(|| format!("{name} is no name for a certificate"))?;
        TlsConnector::from(config)
            .connect(server, tcp)
            .await
            .with_context(|| format!("no TLS with {address} as {name}"))
    };
    timeout(DEADLINE, connecting)
        .await
        .context("connecting took too long")?
}

/// An answer: its status and its body.
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    /// The body, as text.
    pub(crate) body: String,
}

/// A kept connection. The gateway closing it is met by a new one.
pub(crate) struct Client {
    address: String,
    name: String,
    config: Arc<ClientConfig>,
    stream: Option<TlsStream<TcpStream>>,
}

impl Client {
    /// A client for `address` (`HOST:PORT`) whose connections name `name` in their SNI; it
    /// connects with its first request.
    pub(crate) fn new(address: &str, name: &str, ca: &Path) -> Result<Self> {
        let (address, name) = (address.to_owned(), name.to_owned());
        Ok(Self {
            address,
            name,
            config: tls(ca)?,
            stream: None,
        })
    }

    /// `GET path` of a host.
    pub(crate) async fn get(&mut self, host: &str, path: &str) -> Result<Answer> {
        let asked = timeout(DEADLINE, self.ask(host, path)).await;
        let answer = asked.context("no answer in time").and_then(|answer| answer);
        if answer.is_err() {
            self.stream = None;
        }
        answer
    }

    async fn ask(&mut self, host: &str, path: &str) -> Result<Answer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(&self.address, &self.name, Arc::clone(&self.config)).await?,
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .context("cannot send")?;
        // Written is what TLS has taken, not what it has sent.
        stream.flush().await.context("cannot send")?;
        let mut bytes = Vec::with_capacity(4096);
        let head = loop {
            if let Some(head) = parse_head(&bytes)? {
                break head;
            }
            read_more(&mut stream, &mut bytes).await?;
        };
        let Body::Length(length) = head.body else {
            bail!("an answer without Content-Length; this client knows no other");
        };
        while bytes.len() < head.length + length {
            read_more(&mut stream, &mut bytes).await?;
        }
        if head.keep {
            self.stream = Some(stream);
        }
        let body = bytes
            .get(head.length..head.length + length)
            .unwrap_or_default();
        Ok(Answer {
            status: head.status,
            body: String::from_utf8_lossy(body).into_owned(),
        })
    }
}

async fn read_more(stream: &mut TlsStream<TcpStream>, bytes: &mut Vec<u8>) -> Result<()> {
    if bytes.len() > ANSWER_MAX {
        bail!("an answer longer than {ANSWER_MAX} bytes");
    }
    if stream.read_buf(bytes).await.context("cannot receive")? == 0 {
        bail!("the connection ended before the answer did");
    }
    Ok(())
}

#[derive(Debug, Eq, PartialEq)]
enum Body {
    Length(usize),
    Other,
}

#[derive(Debug, Eq, PartialEq)]
struct Head {
    status: u16,
    /// Bytes up to and with the blank line.
    length: usize,
    body: Body,
    keep: bool,
}

/// The head of an answer once it is whole.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(bytes.get(..end).unwrap_or_default())
        .context("an answer's head that is no text")?;
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("no HTTP/1.1 status line: {text}"))?;
    let mut head = Head {
        status,
        length: end + 4,
        body: Body::Other,
        keep: true,
    };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            head.body = Body::Length(value.parse().context("a bad Content-Length")?);
        } else if name.eq_ignore_ascii_case("connection") {
            head.keep = !value.eq_ignore_ascii_case("close");
        }
    }
    if matches!(status, 204 | 304) {
        head.body = Body::Length(0);
    }
    Ok(Some(head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_a_whole_head() {
        assert_eq!(
            parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n").expect("fine"),
            None
        );
    }

    #[test]
    fn reads_status_length_and_connection() {
        let bytes =
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\nConnection: close\r\n\r\nnope\n";
        let head = parse_head(bytes).expect("fine").expect("whole");
        let expected = Head {
            status: 404,
            length: bytes.len() - 5,
            body: Body::Length(5),
            keep: false,
        };
        assert_eq!(head, expected);
    }

    #[test]
    fn refuses_what_is_no_answer() {
        assert!(parse_head(b"SSH-2.0-x\r\n\r\n").is_err());
        assert!(parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n").is_err());
    }
}
