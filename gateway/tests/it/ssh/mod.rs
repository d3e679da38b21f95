//! SSH through the gateway with OpenSSH's clients and servers.

mod door;
mod ends;
mod fake;
mod flow;
mod forward;
mod login;
mod rig;
mod session;
