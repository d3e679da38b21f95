//! The edge gateway as a library: `main` starts it, the tests start it on port 0.
//!
//! Two paths that meet at one type, the route table:
//!
//! ```text
//! data:     listener -> detect -> tls -> http | ssh | tcp -> route lookup -> upstream
//! control:  routes.yaml | JetStream | gateway_db -> reconcile (one writer) -> RouteTable -> ArcSwap
//! ```
//!
//! The modules in the order a connection, then a change, meets them.

pub mod app;
pub mod config;

pub mod listener;
pub mod tls;

pub mod http;
pub mod ssh;
pub mod tcp;
pub mod upstream;

pub mod control;

pub mod admin;
pub mod drain;
pub mod rebuild;
pub mod shared;
pub mod systemd;
pub mod take_over;
pub mod telemetry;
pub mod upgrade;

pub mod commands;
