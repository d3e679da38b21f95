//! The event library against a real nats-server.

mod consuming;
mod dead_letters;
mod decoding;
mod failures;
mod outages;
mod requests;
mod streams;
mod support;
