//! Bytes both ways: raw ports, TLS that is passed through, upgraded connections.
//!
//! [`relay`] is the mechanism and knows no routes; [`raw`] takes a client to
//! the container that was decided for it and writes the record. Where data is
//! cut, the end is a reset, here or by a `Fuse`.

mod fuse;
mod raw;
mod relay;

pub use fuse::OverTcp;
pub(crate) use fuse::{Fuse, Fused, reset};
pub use raw::{RawKind, raw};
pub use relay::{End, Relayed, Side, relay};
