//! The event library against a real nats-server.

mod consuming;
mod support;
