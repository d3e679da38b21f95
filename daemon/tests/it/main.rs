//! The daemons' common parts over real sockets.

mod api;
mod server;
mod support;
