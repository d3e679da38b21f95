//! The whole gateway, on free ports, with real clients, servers and NATS.

mod cli;
mod drain_http;
mod http;
mod identity;
mod control;
mod ssh;
mod stream;
mod support;
mod upgrade;
mod whole;
