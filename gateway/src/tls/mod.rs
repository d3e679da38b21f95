//! TLS: certificates, the handshake, what it says about a connection.

mod names;

use std::sync::Arc;

pub use names::CertNames;

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

/// The certificates in force.
#[derive(Debug)]
pub struct CertStore {}
