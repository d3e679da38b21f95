//! SSH through the gateway with OpenSSH's clients and servers.

mod ansible;
mod clients;
mod door;
mod ends;
mod fake;
mod flow;
mod forward;
mod identity;
mod login;
mod others;
mod records;
pub(crate) mod rig;
mod security_keys;
mod session;
