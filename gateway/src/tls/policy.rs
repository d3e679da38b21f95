//! What a certificate's hosts demand of clients: nothing, or a certificate of their own.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest as _, Sha256};

/// Tells demands apart: two are the same if they have the same authorities and the same severity.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PolicyId([u8; 32]);

impl PolicyId {
    /// Nothing is demanded.
    pub const NONE: Self = Self([0; 32]);

    /// Of these authorities' certificates.
    pub(super) fn of<'c>(
        is_required: bool,
        authorities: impl IntoIterator<Item = &'c [u8]>,
    ) -> Self {
        let mut hash = Sha256::new();
        hash.update([u8::from(is_required)]);
        for authority in authorities {
            hash.update((authority.len() as u64).to_be_bytes());
            hash.update(authority);
        }
        Self(hash.finalize().into())
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A demand for a client certificate.
#[derive(Debug)]
pub(super) struct ClientPolicy {
    pub(super) id: PolicyId,
    /// False: a client without one is let in, one with a bad one is not.
    pub(super) is_required: bool,
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientPolicy {
    /// Reads the authorities from PEM text; none if there is none in it, or one that cannot be used.
    pub(super) fn from_pem(
        authorities: &[u8],
        is_required: bool,
        provider: &Arc<CryptoProvider>,
    ) -> Option<Self> {
        let authorities: Vec<_> = CertificateDer::pem_slice_iter(authorities)
            .collect::<Result<_, _>>()
            .ok()?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots.add(authority.clone()).ok()?;
        }
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let builder = match is_required {
            true => builder,
            false => builder.allow_unauthenticated(),
        };
        Some(Self {
            id: PolicyId::of(is_required, authorities.iter().map(|der| &**der)),
            is_required,
            verifier: builder.build().ok()?,
        })
    }

    /// Whether a certificate that a ticket brings back would be taken today.
    ///
    /// The library takes it as the first handshake left it, however long ago.
    pub(super) fn still_takes(&self, chain: Option<&[CertificateDer<'_>]>) -> bool {
        match chain.and_then(<[_]>::split_first) {
            None => !self.is_required,
            Some((leaf, intermediates)) => self
                .verifier
                .verify_client_cert(leaf, intermediates, UnixTime::now())
                .is_ok(),
        }
    }
}
