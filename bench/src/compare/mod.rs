//! The gateway beside its peers: the origin behind all of them, the loads in front, and what each
//! load costs a proxy. `cargo xtask bench` starts the proxies and calls these.

pub(crate) mod certificate;
pub(crate) mod container;
pub(crate) mod measure;
pub(crate) mod origin;
pub(crate) mod relay;

mod client;
mod h2;
mod handshakes;
mod idle;
mod paced;
mod processes;
