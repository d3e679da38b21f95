//! Bytes both ways: raw ports, TLS that is passed through, upgraded connections.
//!
//! [`relay`] is the mechanism and knows no routes; [`raw`] takes a client to
//! the container that was decided for it and writes the record.

mod raw;
mod relay;

pub use raw::{RawKind, raw};
pub use relay::{End, Relayed, Side, relay};
