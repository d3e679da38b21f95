//! What the services of this workspace share: a REST API with a database, an
//! outbox and an admin endpoint.
//!
//! In the order a start, then a request, meets them: [`bus`] has the flags of
//! the event bus and starts the relay, [`run`] owns ports, background tasks and
//! the drain, [`store`] opens the database, [`retention`] forgets what is old, [`health`] says how things are,
//! [`api`] has what handlers share. What a service is about stays in the service.

pub mod api;
pub mod bus;
pub mod health;
pub mod retention;
pub mod run;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
