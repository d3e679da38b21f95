//! Whether a database takes what events write at all.
//!
//! A value that it refuses may be one event's own, or meet a schema or a sequence that refuses
//! every event's: then the database is broken, and no event becomes a dead letter for it. Who has
//! to tell writes something harmless, as an event would, and takes it back.

use edd_proto::gateway::RouterRefreshed;

use crate::{
    envelope::{Cause, seal},
    outbox::OutboxEntry,
    subject::EntityId,
};

/// What is written and taken back; its id, which nothing else has, is one for the inbox too.
#[must_use]
pub fn entry() -> OutboxEntry {
    let message = RouterRefreshed::default();
    seal("trial", &EntityId::router(), 0, message, &Cause::default())
}
