//! HTTP: one connection, its requests, and where each of them goes.
//!
//! Takes a connection that is known to speak HTTP (`serve_h1`, `serve_h2`) and
//! ends when it is over. In the order a request meets them: `head` reads where
//! it wants to go, `decide` asks the table, `answer` is what the gateway says
//! itself, `policy` is which header fields pass, `trace` which trace goes on,
//! `exchange` is the record for log and metrics. These are pure or plain, and
//! know no engine. `engine` moves the bytes; it alone knows the HTTP library.

use std::net::SocketAddr;

use edd_route::{Admission, Door};

use self::decide::Ground;
use crate::shared::Shared;
use crate::tls::Secured;

mod alarm;
mod answer;
pub(crate) mod body;
mod decide;
mod downstream;
mod exchange;
mod fields;
mod forward;
mod h1;
pub(crate) mod h2;
mod head;
mod plan;
mod policy;
pub(crate) mod request_id;
mod rewrite;
pub(crate) mod side;
pub(crate) mod splice;
mod trace;
pub(crate) mod wire;

pub(crate) use decide::Labels;
pub use h1::serve_h1;
pub use h2::serve_h2;

/// What is known of a connection when HTTP begins on it.
#[derive(Clone, Debug)]
pub struct ConnectionFacts {
    /// The listener it came in by.
    pub door: Door,
    /// The client.
    pub peer: SocketAddr,
    /// Whether that is the client's own address, not that of a proxy which cannot name its client.
    pub is_known: bool,
    /// What it connected to; known where an upstream may want to be told.
    pub local: Option<SocketAddr>,
    /// TLS that was terminated here.
    pub tls: Option<Secured>,
    /// What the connection itself depends on, if anything.
    pub admission: Option<Admission>,
}

impl ConnectionFacts {
    /// What a decision about a request for `host` (lower case, no port) needs to know of it.
    pub(crate) fn ground(&self, shared: &Shared, host: &str) -> Ground {
        let tls = self.tls.as_ref();
        Ground {
            door: self.door,
            secure: tls.is_some(),
            covered: tls.is_none_or(|tls| tls.covers.contains(host)),
            proven: shared.certs.proves(tls, host),
            public_https_port: shared.config.public_https_port,
        }
    }
}
