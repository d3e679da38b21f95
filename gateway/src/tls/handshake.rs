//! From a connection that begins with a ClientHello to a secured one.

use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::{HandshakeKind, ProtocolVersion, version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::policy::ClientPolicy;
use super::store::Resolver;
use super::together::Together;
use super::{CertStore, PolicyId, Secured, TicketKeys};

/// Why a handshake did not finish.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError<S> {
    /// The client or the TLS library gave up; the alert, if any, is on its way.
    #[error("TLS handshake: {error}")]
    Failed {
        /// What went wrong.
        error: io::Error,
        /// What is still to be written: an alert, most often written already.
        last: Vec<u8>,
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
    ) -> Result<(Box<TlsStream<Together<S>>>, Secured), HandshakeError<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // One snapshot decides who answers, with what, and on which conditions.
        let in_force = self.in_force.load_full();
        let pair = in_force.table.select(sni.as_deref()).cloned();
        let acceptor = in_force.acceptor(pair.as_deref());
        let accept = acceptor.accept(Together::new(stream)).into_fallible();
        drop(in_force);
        let mut stream = match timeout_at(deadline, accept).await {
            // Boxed where it is made: whoever it is handed to would hold its size once more.
            Ok(Ok(stream)) => Box::new(stream),
            Ok(Err((error, stream))) => {
                self.metrics.tls_handshake("failed", "none");
                let (last, stream) = stream.into_parts();
                return Err(HandshakeError::Failed {
                    error,
                    last,
                    stream,
                });
            }
            Err(_) => {
                self.metrics.tls_handshake("timeout", "none");
                return Err(HandshakeError::TimedOut);
            }
        };
        stream.get_mut().0.release();
        let (_, session) = stream.get_ref();
        let version = match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            _ => "1.3",
        };
        let policy = pair.as_ref().and_then(|pair| pair.policy.as_deref());
        let chain = session.peer_certificates();
        if session.handshake_kind() == Some(HandshakeKind::Resumed) {
            if policy.is_some_and(|policy| !policy.still_takes(chain)) {
                self.metrics.tls_handshake("failed", version);
                let error = io::Error::other("the client's certificate is no longer valid");
                // Without the ticket that is kept back.
                let (_, stream) = stream.into_inner().0.into_parts();
                return Err(HandshakeError::Failed {
                    error,
                    last: Vec::new(),
                    stream,
                });
            }
            self.metrics.tls_resumed();
        }
        let leaf = chain.and_then(<[_]>::first);
        let secured = Secured {
            alpn_h2: session.alpn_protocol() == Some(b"h2"),
            version,
            policy: policy.map_or(PolicyId::NONE, |policy| policy.id),
            // Without a policy none is asked for, so none is there.
            client_cert: leaf.map(|leaf| client_cert(leaf)),
            covers: pair.map(|pair| Arc::clone(&pair.names)).unwrap_or_default(),
            sni,
        };
        self.metrics.tls_handshake("ok", version);
        Ok((stream, secured))
    }
}

/// A byte sequence of structured fields (RFC 9440, section 2.1).
fn client_cert(leaf: &[u8]) -> Arc<str> {
    format!(":{}:", STANDARD.encode(leaf)).into()
}

/// TLS 1.2 and 1.3, h2 and http/1.1, tickets; key exchange and ciphers as the provider prefers
/// them, X25519MLKEM768 first.
pub(super) fn acceptor(
    resolver: Arc<Resolver>,
    provider: Arc<CryptoProvider>,
    policy: Option<&ClientPolicy>,
    tickets: &TicketKeys,
) -> Result<TlsAcceptor, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])?;
    let builder = match policy {
        None => builder.with_no_client_auth(),
        Some(policy) => builder.with_client_cert_verifier(Arc::clone(&policy.verifier)),
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets need no memory per client and no lock between the threads.
    config.ticketer = tickets.ticketer(policy.map_or(PolicyId::NONE, |policy| policy.id));
    // A second one costs each handshake as much again, and few clients have a use for it.
    config.send_tls13_tickets = 1;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(TlsAcceptor::from(Arc::new(config)))
}
