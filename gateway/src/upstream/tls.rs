//! TLS towards `https://` targets: whose certificates are believed, and the handshake.
//!
//! A target's certificate must be valid for the target's host, now, and lead to
//! the system's roots (or `SSL_CERT_FILE`, `SSL_CERT_DIR`), or to the route's
//! `ca` and to nothing else. Each target keeps the tickets of its sessions.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Socket;

/// Why a PEM text names nobody to believe.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// No certificate in it.
    #[error("has no certificate")]
    Empty,
    /// A section that is no PEM.
    #[error("is not PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// A certificate that is none.
    #[error("has a certificate that cannot be used: {0}")]
    Certificate(#[from] rustls::Error),
}

/// The certificates of a PEM text, each to be believed.
///
/// # Errors
/// There is none, or one of them is broken.
pub fn roots_of(pem: &str) -> Result<RootCertStore, RootsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    if roots.is_empty() {
        return Err(RootsError::Empty);
    }
    Ok(roots)
}

/// Why a target cannot be spoken to by TLS at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// The target's host is no name that a certificate can have.
    #[error("no certificate can be for this host")]
    Host,
    /// There is nobody to believe.
    #[error("no trusted roots: {0}")]
    Roots(String),
    /// The crypto library refuses its own settings.
    #[error(transparent)]
    Library(#[from] rustls::Error),
}

/// The system's roots, read when first needed.
#[derive(Debug, Default)]
pub(crate) struct SystemRoots(OnceLock<Arc<RootCertStore>>);

impl SystemRoots {
    fn get(&self) -> Arc<RootCertStore> {
        let roots = self.0.get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "a part of the system's roots cannot be read");
            }
            let mut roots = RootCertStore::empty();
            let (_, ignored) = roots.add_parsable_certificates(found.certs);
            if ignored > 0 {
                tracing::debug!(ignored, "roots that cannot be used");
            }
            Arc::new(roots)
        });
        Arc::clone(roots)
    }
}

/// How one target is spoken to by TLS.
#[derive(Clone)]
pub(crate) struct TlsTarget {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl fmt::Debug for TlsTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsTarget").field(&self.name).finish()
    }
}

impl TlsTarget {
    /// Believes `ca`, or the system's roots without one.
    pub(crate) fn new(
        host: &str,
        ca: Option<&str>,
        system: &SystemRoots,
    ) -> Result<Self, SetupError> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| SetupError::Host)?;
        let roots = match ca {
            Some(pem) => roots_of(pem)
                .map(Arc::new)
                .map_err(|error| SetupError::Roots(error.to_string()))?,
            None => system.get(),
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| SetupError::Roots(error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_webpki_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    /// Shakes hands and verifies. Cancellation safe: dropping the future closes the socket.
    pub(crate) async fn connect(&self, socket: Socket) -> io::Result<TlsStream<Socket>> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector.connect(self.name.clone(), socket).await
    }
}

/// Sessions whose tickets are kept for one target; TLS 1.3 gives several per connection.
const SESSIONS: usize = 32;
