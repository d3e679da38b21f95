//! Where changes come from: the routes file, the database, the events.

pub mod again;
mod comparison;
pub mod database;
pub mod events;
pub mod nats;
pub mod replicas;
pub mod routes_file;
pub mod snapshot;
mod ssh_keys;
mod tickets;
pub mod watch;
