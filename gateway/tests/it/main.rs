//! The whole gateway, on free ports, with real clients, servers and NATS.

mod caps;
mod cli;
mod control;
mod corpus;
mod cut;
mod drain_http;
mod first_bytes;
mod http;
mod http1;
mod http2;
mod identity;
mod logs;
mod ports;
mod ssh;
mod stream;
mod support;
mod take_over;
mod tls;
mod upgrade;
mod whole;
