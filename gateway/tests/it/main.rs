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
mod limits;
mod logs;
mod ports;
mod proxy_protocol;
mod ssh;
mod stream;
mod support;
mod take_over;
mod tls;
mod tls_clients;
mod tls_hello;
mod tls_swaps;
mod tls_tickets;
mod upgrade;
mod whole;
