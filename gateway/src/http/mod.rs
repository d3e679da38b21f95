//! HTTP: one connection, its requests and where they go.

use std::net::SocketAddr;

use edd_route::{Admission, Door};

use crate::tls::Secured;

/// What is known of a connection when HTTP begins on it.
#[derive(Clone, Debug)]
pub struct ConnectionFacts {
    /// The listener it came in by.
    pub door: Door,
    /// The client.
    pub peer: SocketAddr,
    /// Our side.
    pub local: SocketAddr,
    /// TLS that was terminated here.
    pub tls: Option<Secured>,
    /// What the connection itself depends on, if anything.
    pub admission: Option<Admission>,
}
