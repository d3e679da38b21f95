//! The corpus of malformed and ambiguous messages through the whole gateway: what the client gets, and what exactly a
//! raw upstream received.
//!
//! S3, S4, S6: half-closed heads, requests behind requests, folded and doubled hosts.
//! S2, S15, S19: what the client says about itself and its connection stays here.
//! S1: an upgrade that nobody took changes nothing.

mod client;
mod frames;
mod h2;
mod large;
mod requests;
mod responses;
mod upstream;

#[path = "../../corpus/reader.rs"]
mod reader;
