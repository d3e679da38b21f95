//! The whole gateway, on free ports, with real clients, servers and NATS.

mod cli;
mod ssh;
mod support;
mod whole;
