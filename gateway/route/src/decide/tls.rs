//! What happens to a TLS connection, by its ClientHello alone.

use super::{ContainerMatch, Door, RawRefusal};
use crate::name::Host;
use crate::table::RouteTable;

/// What happens to a TLS connection.
#[derive(Clone, Debug)]
pub enum TlsDecision {
    /// It is closed.
    Close(TlsRefusal),
    /// Its bytes go to the container untouched.
    Passthrough(ContainerMatch),
    /// TLS ends here; the requests in it are decided one by one.
    Terminate,
}

/// Why a TLS connection is closed before its handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TlsRefusal {
    /// No SNI, and the port's owner cannot be told or does not speak TLS.
    #[error("no server name, and {0}")]
    NoName(RawRefusal),
    /// No SNI, and the port's one owner has no TLS port behind its rule.
    #[error("no server name, and the port's container does not take TLS itself")]
    NotTls,
    /// No running container of this name has a rule for the port.
    #[error("no container of this name has a rule for the port")]
    UnknownName,
}

impl RouteTable {
    /// Decides what happens to a TLS connection with this server name, if it sent one.
    pub fn decide_tls(&self, door: Door, sni: Option<&Host>) -> TlsDecision {
        let dynamic = matches!(door, Door::Dynamic(_));
        let Some(name) = sni else {
            return if dynamic {
                self.nameless(door.rule_port())
            } else {
                TlsDecision::Terminate
            };
        };
        let name = name.as_str();
        if !dynamic && self.statics.host(name).is_some() {
            return TlsDecision::Terminate;
        }
        let found = self
            .container_label(name)
            .map(|id| self.container_at(id, door));
        match found {
            Some(Ok((container, run, rule))) => {
                if self.settings.is_tls_port(rule.target_port) {
                    TlsDecision::Passthrough(ContainerMatch::new(container, run, rule, door))
                } else {
                    TlsDecision::Terminate
                }
            }
            // On the public port the client gets its 404 in words.
            Some(Err(_)) | None if !dynamic => TlsDecision::Terminate,
            Some(Err(_)) | None => TlsDecision::Close(TlsRefusal::UnknownName),
        }
    }

    fn nameless(&self, port: u16) -> TlsDecision {
        match self.decide_raw(port) {
            Ok(to) if self.settings.is_tls_port(to.upstream.port()) => TlsDecision::Passthrough(to),
            Ok(_) => TlsDecision::Close(TlsRefusal::NotTls),
            Err(refusal) => TlsDecision::Close(TlsRefusal::NoName(refusal)),
        }
    }
}
