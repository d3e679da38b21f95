//! Bytes both ways: raw ports, TLS that is passed through, upgraded connections.
//!
//! [`relay`] is the mechanism and knows no routes.

mod relay;

pub use relay::{End, Relayed, Side, relay};
