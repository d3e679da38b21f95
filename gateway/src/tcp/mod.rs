//! Bytes both ways: raw ports, TLS that is passed through, upgraded connections.
//!
//! [`relay`] is the mechanism and knows no routes; [`raw`] takes a client to
//! the container that was decided for it and writes the record. Where data is
//! cut, the end is a reset.

mod over;
mod raw;
mod relay;

pub use over::OverTcp;
pub(crate) use over::reset;
pub use raw::{Caller, RawKind, raw};
pub use relay::{End, Relayed, Side, relay};
