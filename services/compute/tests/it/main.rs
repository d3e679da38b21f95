//! The whole service in this process (or as its binary) on port 0, with a real
//! nats-server, the machine's sshd and its ssh client. Auth is a small responder
//! of the tests: tokens are `user-1`, `user-2` and so on. In [`cloud`] the real auth and the
//! real gateway are there too.

mod auth;
mod cloud;
mod containers;
mod guests;
mod ingress;
mod input;
mod keys;
mod nats;
mod process;
mod routable;
mod support;
mod users;
