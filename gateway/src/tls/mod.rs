//! TLS: the certificates in force, the handshake, and what it says about a connection.
//!
//! [`store`] holds the certificates and is all that others see; [`pair`] reads
//! `--certs-dir`, [`table`] finds a certificate by name, [`names`] says what one
//! covers, [`dev_ca`] makes them up while there are none, [`watch`] follows the
//! folder, [`handshake`] turns a connection into a [`Secured`] one. Passing TLS
//! through is not done here but in `tcp`.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod dev_ca;
mod handshake;
mod names;
mod pair;
mod store;
mod table;
mod watch;

use std::sync::Arc;

pub use dev_ca::DevCaError;
pub use handshake::HandshakeError;
pub use names::CertNames;
pub use pair::PairError;
pub use store::{CertError, CertStore};

/// What a finished handshake says.
#[derive(Clone, Debug)]
pub struct Secured {
    /// The name the client asked for.
    pub sni: Option<String>,
    /// Whether HTTP/2 was chosen.
    pub alpn_h2: bool,
    /// `1.2` or `1.3`.
    pub version: &'static str,
    /// The names that the certificate covers.
    pub covers: Arc<CertNames>,
}

#[cfg(test)]
mod tests;
