//! Listeners and the data-plane threads behind them.
//!
//! In the order a connection meets them: [`bind`] opens the sockets or takes
//! those that were given, [`doors`] says when they are used, [`worker`]
//! runs the threads, [`mod@accept`] takes connections as far as [`gate`] lets them
//! in, [`proxy_in`] hears whose connection it is, [`first`] reads until it is
//! clear what a client speaks, [`serve`] gives it to whoever speaks it, with what
//! was read put back before it ([`prefixed`]). [`answer`] and [`close`] are for
//! those that nobody serves. [`machine`] knows our own addresses, [`shares`]
//! what each owner of containers has, [`queue`] who waits for a connection to an
//! upstream. [`rate`] counts requests per address, of which [`mod@subscriber`]
//! says what one is.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod accept;
mod answer;
mod bind;
mod close;
mod doors;
mod ending;
mod first;
mod gate;
mod machine;
mod prefixed;
mod proxy_in;
mod queue;
mod rate;
mod serve;
mod shares;
mod subscriber;
mod worker;

pub use bind::{Addresses, BindError, BindFailure, Bound, DataListeners, bind};
pub use doors::{Doors, Inherited, Open, Role, UnknownRole};
pub(crate) use ending::Stage;
pub use gate::{Gate, Permit, Refused, UpstreamPermit};
pub(crate) use machine::interfaces;
pub use prefixed::Prefixed;
pub use rate::{RequestGate, RequestRate, TooSoon};
pub use worker::{Worker, Workers, spawn};

pub(crate) use accept::accept;
pub(crate) use first::Patience;
pub(crate) use proxy_in::{Identified, Who, identify};
pub(crate) use subscriber::subscriber;
