//! The service in process on port 0, with a real nats-server, and as a binary.

mod events;
mod ops;
mod process;
mod sagas;
mod sessions;
mod support;
mod users;
mod validate;
