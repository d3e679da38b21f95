//! What this service tells the others, as outbox entries.
//!
//! Builds messages and nothing else: `store` decides when and writes them in the
//! transaction of the change, the relay of `edd-events` publishes them.

use edd_events::{
    envelope::{Cause, seal},
    outbox::OutboxEntry,
    subject::EntityId,
};
use edd_proto::{auth, common};

use crate::store::{Session, User};

/// The `source` of this service's events.
const SOURCE: &str = "edd-auth";

/// Version of a session's first event; its end is the second and last.
const SESSION_CREATED: i64 = 1;
const SESSION_INVALIDATED: i64 = 2;

/// A user registered.
pub(crate) fn user_created(user: &User, cause: &Cause) -> OutboxEntry {
    let message = auth::UserCreated {
        metadata: None,
        user_id: user.id,
        username: user.username.clone(),
        display_name: user.display_name.clone(),
        public_id: user.public_id.clone(),
    };
    seal(
        SOURCE,
        &EntityId::from(user.id),
        user.version,
        message,
        cause,
    )
}

/// A profile changed.
pub(crate) fn user_updated(user: &User, cause: &Cause) -> OutboxEntry {
    let message = auth::UserUpdated {
        metadata: None,
        user_id: user.id,
        username: user.username.clone(),
        display_name: user.display_name.clone(),
    };
    seal(
        SOURCE,
        &EntityId::from(user.id),
        user.version,
        message,
        cause,
    )
}

/// A user is gone; `user.version` is that of the deletion.
pub(crate) fn user_deleted(user: &User, cause: &Cause) -> OutboxEntry {
    let message = auth::UserDeleted {
        metadata: None,
        user_id: user.id,
        username: user.username.clone(),
    };
    seal(
        SOURCE,
        &EntityId::from(user.id),
        user.version,
        message,
        cause,
    )
}

/// Somebody logged in.
pub(crate) fn session_created(session: &Session, cause: &Cause) -> sqlx::Result<OutboxEntry> {
    let message = auth::SessionCreated {
        metadata: None,
        session_id: session.id.clone(),
        user_id: session.user_id,
        expires_at: Some(timestamp(session.expires_at_ms)),
    };
    Ok(seal(
        SOURCE,
        &session_entity(&session.id)?,
        SESSION_CREATED,
        message,
        cause,
    ))
}

/// A session ended before its time.
pub(crate) fn session_invalidated(
    session_id: &str,
    user_id: i64,
    cause: &Cause,
) -> sqlx::Result<OutboxEntry> {
    let message = auth::SessionInvalidated {
        metadata: None,
        session_id: session_id.to_owned(),
        user_id,
    };
    Ok(seal(
        SOURCE,
        &session_entity(session_id)?,
        SESSION_INVALIDATED,
        message,
        cause,
    ))
}

/// Session ids are made by this service; one that does not fit was damaged in
/// the database.
fn session_entity(id: &str) -> sqlx::Result<EntityId> {
    EntityId::try_from(id).map_err(|_| sqlx::Error::Decode("a damaged session id".into()))
}

fn timestamp(unix_ms: i64) -> common::Timestamp {
    let nanos = i32::try_from(unix_ms.rem_euclid(1000) * 1_000_000).unwrap_or(0);
    common::Timestamp {
        seconds: unix_ms.div_euclid(1000),
        nanos,
    }
}
