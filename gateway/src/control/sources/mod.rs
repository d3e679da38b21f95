//! Where changes come from: the routes file, the database, the events.

pub mod database;
pub mod events;
pub mod nats;
pub mod replicas;
pub mod routes_file;
mod tickets;
pub mod watch;
