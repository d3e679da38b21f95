//! What this service tells the others, and what it hears from them.
//!
//! `outgoing` builds outbox entries, `users` and `gateway` handle what the
//! durable consumers bring. `store` decides when and writes in transactions; the
//! relay and the consumers themselves are those of `edd-events`.

pub(crate) mod gateway;
pub(crate) mod outgoing;
pub(crate) mod users;
