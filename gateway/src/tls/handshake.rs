//! From a connection that begins with a ClientHello to a secured one.

use std::io;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::{ProtocolVersion, version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::store::Resolver;
use super::{CertStore, Secured};

/// Why a handshake did not finish.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError<S> {
    /// The client or the TLS library gave up; the alert, if any, is on its way.
    #[error("TLS handshake: {error}")]
    Failed {
        /// What went wrong.
        error: io::Error,
        /// The connection, to be closed gently so that the alert arrives.
        stream: S,
    },
    /// The client took too long.
    #[error("TLS handshake took too long")]
    TimedOut,
}

impl CertStore {
    /// Does the server's side of the handshake before `deadline`, and counts it.
    ///
    /// `sni` is the name in the ClientHello, as `edd-detect` read it. Not
    /// cancellation safe: dropping the future ends the connection.
    pub async fn accept<S>(
        &self,
        stream: S,
        sni: Option<String>,
        deadline: Instant,
    ) -> Result<(TlsStream<S>, Secured), HandshakeError<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // A reload between here and the choice is possible, and harmless: the
        // client is then sent away with 421 and comes back.
        let covers = self.covers(sni.as_deref());
        let accept = self.acceptor.accept(stream).into_fallible();
        let stream = match timeout_at(deadline, accept).await {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, stream))) => {
                self.metrics.tls_handshake("failed", "none");
                return Err(HandshakeError::Failed { error, stream });
            }
            Err(_) => {
                self.metrics.tls_handshake("timeout", "none");
                return Err(HandshakeError::TimedOut);
            }
        };
        let (_, session) = stream.get_ref();
        let version = match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            _ => "1.3",
        };
        let secured = Secured {
            sni,
            alpn_h2: session.alpn_protocol() == Some(b"h2"),
            version,
            covers,
        };
        self.metrics.tls_handshake("ok", version);
        Ok((stream, secured))
    }
}

/// TLS 1.2 and 1.3, h2 and http/1.1, tickets; key exchange and ciphers as the provider prefers
/// them, X25519MLKEM768 first.
pub(super) fn acceptor(
    resolver: Arc<Resolver>,
    provider: Arc<CryptoProvider>,
) -> Result<TlsAcceptor, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets need no memory per client and no lock between the threads.
    config.ticketer = Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(TlsAcceptor::from(Arc::new(config)))
}
