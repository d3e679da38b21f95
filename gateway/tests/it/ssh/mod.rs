//! SSH through the gateway with OpenSSH's clients and servers.

mod after_eof;
mod alive;
mod ansible;
mod answers;
mod clients;
mod door;
mod ends;
mod fake;
mod flow;
mod forward;
mod identity;
mod json;
mod late;
mod limits;
mod login;
mod others;
mod records;
mod rekey;
mod revoked;
pub(crate) mod rig;
mod security_keys;
mod session;
mod spare;
mod vscode;
mod x11;
