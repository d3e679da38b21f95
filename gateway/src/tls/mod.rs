//! TLS: the certificates in force, the handshake, and what it says about a connection.
//!
//! [`store`] holds the certificates and is all that others see; [`pair`] reads
//! `--certs-dir`, [`table`] finds a certificate by name, [`names`] says what one
//! covers, [`policy`] what its hosts demand of clients, [`dev_ca`] makes them up
//! while there are none, [`watch`] follows the folder, [`handshake`] turns a
//! connection into a [`Secured`] one, [`tickets`] lets clients come back cheaply,
//! [`together`] saves them a packet.
//! Passing TLS through is not done here but in `tcp`.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod dev_ca;
mod doubled;
mod handshake;
mod names;
mod pair;
mod policy;
mod store;
mod table;
mod tickets;
mod together;
mod watch;

use std::sync::Arc;

pub use dev_ca::DevCaError;
pub use handshake::HandshakeError;
pub use names::CertNames;
pub use pair::PairError;
pub use policy::PolicyId;
pub use store::{CertError, CertStore};
pub use tickets::{NAME_BYTES, SECRET_BYTES, SLOT, TicketKey, TicketKeys};
pub use together::Together;

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
    /// What was demanded of the client; see [`CertStore::proves`].
    pub policy: PolicyId,
    /// The client's verified certificate as the value of `Client-Cert` (RFC 9440).
    pub client_cert: Option<Arc<str>>,
}

/// Seeds this thread's random numbers: the first ones of a thread, and of the process even more
/// so, take longer than a handshake may.
pub(crate) fn warm_up() {
    // Without randomness the first handshake says so.
    let _ = aws_lc_rs::rand::fill(&mut [0; 32]);
}

#[cfg(test)]
mod tests;
