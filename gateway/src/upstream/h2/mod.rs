//! Upstreams that speak HTTP/2: shared connections, and their streams as servers of exchanges.
//!
//! `shared` keeps the connections of one thread by upstream and opens new ones,
//! `driver` is the task of one connection, `stream` one exchange on it, `head`
//! makes of a request written as HTTP/1.1 one that the h2 crate can send.

mod driver;
mod head;
mod shared;
mod stream;

pub(crate) use shared::{Connections, OpenError};
pub(crate) use stream::UpstreamStream;
