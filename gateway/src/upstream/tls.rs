//! Certificates of `https://` targets: whose are believed.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

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
