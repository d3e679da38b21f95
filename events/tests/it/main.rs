//! The event library against a real nats-server.

mod bound;
mod caught_up;
mod conformance;
mod consuming;
mod credentials;
mod dead_letters;
mod decoding;
mod event_store;
mod failures;
mod outages;
mod permissions;
mod relay;
mod requests;
mod signatures;
mod streams;
mod support;
mod virtual_time;
