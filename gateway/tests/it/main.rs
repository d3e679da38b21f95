//! The whole gateway, on free ports, with real clients, servers and NATS.

mod ssh;
mod support;
