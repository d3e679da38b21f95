//! Clients that say exactly what a test wants said.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::DEADLINE;

/// Connects, sends the pieces as segments of their own, and reads to the end.
///
/// The connection stays open for writing, so it is the server that ends it.
pub(crate) async fn say(addr: SocketAddr, pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
    let mut stream = dial(addr).await;
    send(&mut stream, pieces).await;
    hear(&mut stream).await
}

pub(crate) async fn dial(addr: SocketAddr) -> TcpStream {
    let stream = timeout(DEADLINE, TcpStream::connect(addr)).await;
    let stream = stream.expect("connected in time").expect("connected");
    stream.set_nodelay(true).unwrap();
    stream
}

/// A server may refuse in the middle, so what it no longer takes is not an error.
pub(crate) async fn send(stream: &mut (impl AsyncWrite + Unpin), pieces: &[&[u8]]) {
    for piece in pieces {
        if stream.write_all(piece).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        // Lets the other side read this piece alone; right without it too.
        tokio::task::yield_now().await;
    }
}

/// Reads to the end.
pub(crate) async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut heard = Vec::new();
    match timeout(DEADLINE, stream.read_to_end(&mut heard)).await {
        Ok(end) => end.map(|_| heard),
        Err(_) => panic!(
            "no end after {DEADLINE:?}, heard {:?}",
            heard.escape_ascii().to_string()
        ),
    }
}

/// One request with `Connection: close`, and the whole answer as text.
pub(crate) async fn request(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    host: &str,
) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    String::from_utf8(hear(stream).await.unwrap_or_default()).unwrap()
}

/// How a TLS client greets.
pub(crate) struct Greeting<'g> {
    /// The name; an IP address means no SNI.
    pub(crate) name: &'g str,
    /// What it trusts; none: anything.
    pub(crate) ca: Option<&'g Path>,
    pub(crate) alpn: &'g [&'g [u8]],
}

impl<'g> Greeting<'g> {
    pub(crate) fn anyone(name: &'g str) -> Self {
        Self {
            name,
            ca: None,
            alpn: &[],
        }
    }

    fn connector(&self) -> TlsConnector {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = match self.ca {
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                for root in CertificateDer::pem_file_iter(ca).unwrap() {
                    roots.add(root.unwrap()).unwrap();
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            None => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anyone))
                .with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    pub(crate) async fn shake<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(self.name.to_owned()).unwrap();
        timeout(DEADLINE, self.connector().connect(name, stream))
            .await
            .expect("a handshake in time")
    }

    pub(crate) async fn dial(&self, addr: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        self.shake(dial(addr).await).await
    }
}

/// The leaf that a server showed.
pub(crate) fn leaf<S>(stream: &TlsStream<S>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

#[derive(Debug)]
pub(crate) struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Cuts bytes into segments of one byte.
pub(crate) fn singly(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.chunks(1).collect()
}

/// The gateway's own header timeout in tests that wait for it.
pub(crate) const SHORT: Duration = Duration::from_secs(1);
