//! The engine that moves the bytes: hyper, on both sides.
//!
//! The only place that knows hyper's types, and the one that goes when the
//! gateway's own engine comes. `h1` and `h2` serve a client connection, `service`
//! answers one of its requests, `forward` takes one to an upstream over a
//! `connection`, `body` carries the bodies, `leash` ends them,
//! `fields` applies the header policy,
//! `pulse` watches for connections that fall silent, `upgrade` joins two
//! connections after a 101.

#![allow(dead_code, reason = "HTTP/1 has left already")]

mod body;
mod connection;
mod fields;
mod forward;
mod h2;
mod leash;
mod pulse;
mod service;
mod upgrade;

pub use connection::UpstreamConnection;
pub use h2::serve_h2;
