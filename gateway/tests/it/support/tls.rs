//! TLS clients that remember: sessions to resume, certificates of their own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::DEADLINE;
use super::client::{Anyone, dial, request};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// An authority for clients.
pub(crate) struct ClientCa {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What a client shows of itself: leaf and key.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) leaf: CertificateDer<'static>,
    key: Arc<PrivateKeyDer<'static>>,
    /// Certificate and key, for clients that read files.
    pub(crate) pem: String,
}

impl ClientCa {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for a client.
    pub(crate) fn issue(&self, name: &str) -> Identity {
        self.issue_until(name, time::OffsetDateTime::now_utc() + DAY)
    }

    /// A certificate that is valid until then, to the second.
    pub(crate) fn issue_until(&self, name: &str, end: time::OffsetDateTime) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_before = end - 2 * DAY;
        params.not_after = end;
        params.distinguished_name.push(DnType::CommonName, name);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            pem: leaf.pem() + &key.serialize_pem(),
            leaf: leaf.der().clone(),
            key: Arc::new(PrivateKeyDer::try_from(key.serialize_der()).unwrap()),
        }
    }
}

/// A client that trusts anyone. Clones share the sessions they remember.
#[derive(Clone)]
pub(crate) struct Client(Arc<ClientConfig>);

impl Client {
    pub(crate) fn new(identity: Option<&Identity>) -> Self {
        Self::with(identity, rustls::ALL_VERSIONS, &[])
    }

    pub(crate) fn with(
        identity: Option<&Identity>,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&[u8]],
    ) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone));
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = vec![identity.leaf.clone()];
                let key = identity.key.clone_key();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.resumption = Resumption::in_memory_sessions(32);
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Self(Arc::new(config))
    }

    pub(crate) async fn shake<S>(&self, name: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(Arc::clone(&self.0));
        let shaken = timeout(DEADLINE, connector.connect(name, stream)).await;
        shaken.expect("a handshake in time")
    }

    pub(crate) async fn dial(
        &self,
        addr: SocketAddr,
        name: &str,
    ) -> io::Result<TlsStream<TcpStream>> {
        self.shake(name, dial(addr).await).await
    }

    /// Connects, asks, and reads to the end, so that tickets have arrived: how the handshake went
    /// and what was answered.
    pub(crate) async fn visit(&self, addr: SocketAddr, name: &str) -> (HandshakeKind, String) {
        let mut stream = self.dial(addr, name).await.expect("a handshake");
        let answer = request(&mut stream, name).await;
        let kind = stream.get_ref().1.handshake_kind().expect("done");
        (kind, answer)
    }
}
