//! The archive: a service's own events, and those it built something from, kept
//! in its database longer than the streams keep them.
//!
//! Written in the transaction of the change, beside the outbox entry (`append`)
//! or the inbox (`keep`); read in pages by aggregate, by type, since a time, by
//! correlation; replayed to rebuild a projection ([`replay`]). The newest event of
//! each living user, container, key and namespace outlives the pruning. A user's
//! says all about the user, so that a rebuilt cache of users is whole; the others'
//! need not (`ContainerStarted` names no owner). Beside it lies an archive of the dead letters that
//! the service saw.

mod letters;
mod read;

use std::time::{Duration, SystemTime};

use edd_store::{Database, Schema, Transaction, query};

pub use letters::{ArchivedLetter, keep_letter, letters};
pub use read::{Archived, PAGE_MAX, by_aggregate, by_correlation, by_type, replay, since};

use crate::{
    envelope::{now_ms, to_ms},
    event::{Decoded, Event, Position, decode},
    outbox::OutboxEntry,
    stream::MAX_AGE,
};

/// The tables, for the migrations of the services. Times are in milliseconds
/// since 1970.
pub const TABLES: Schema = Schema {
    postgres: &[(1, "event store", include_str!("postgres.sql"))],
    sqlite: &[(1, "event store", include_str!("sqlite.sql"))],
};

/// Rows pruned in one statement.
const PRUNE_BATCH: i64 = 500;

/// Which version of its aggregate an event may follow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expected {
    /// Any.
    Any,
    /// The aggregate's newest archived event has this version; 0: there is none.
    Version(i64),
}

/// Why an event was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Somebody else was quicker, or the caller read something old.
    #[error("{aggregate} is at version {found}, not {expected}")]
    Conflict {
        /// Type and id, as in a subject.
        aggregate: String,
        /// What the caller believed.
        expected: i64,
        /// What is so.
        found: i64,
    },
    /// The database failed; the transaction is of no use.
    #[error(transparent)]
    Database(#[from] edd_store::Error),
    /// No event of this version of the program.
    #[error("{0} is no event")]
    Unknown(String),
}

/// Archives one of our own events, in the transaction of its change.
///
/// # Errors
/// See [`AppendError`]. After a conflict the transaction has to be given up.
pub async fn append(
    tx: &mut Transaction,
    entry: &OutboxEntry,
    expected: Expected,
) -> Result<(), AppendError> {
    let position = Position {
        stream: String::new(),
        sequence: 0,
        published_at: SystemTime::UNIX_EPOCH,
    };
    let Decoded::Event(mut event) = decode(&entry.subject, &entry.payload, None, &position) else {
        return Err(AppendError::Unknown(entry.subject.clone()));
    };
    event.event_id.clone_from(&entry.event_id);
    event.correlation_id.clone_from(&entry.cause.correlation_id);
    event.causation_id.clone_from(&entry.cause.causation_id);
    event.traceparent.clone_from(&entry.cause.traceparent);
    if let Expected::Version(expected) = expected {
        let found: Option<i64> = query(
            "SELECT version FROM event_store WHERE aggregate_type = $1 AND aggregate_id = $2 \
             ORDER BY id DESC LIMIT 1",
        )
        .bind(event.kind.aggregate())
        .bind(event.entity.as_str())
        .optional_value(&mut *tx)
        .await?;
        let found = found.unwrap_or(0);
        if found != expected {
            return Err(AppendError::Conflict {
                aggregate: format!("{}.{}", event.kind.aggregate(), event.entity),
                expected,
                found,
            });
        }
    }
    insert(tx, &event, &entry.payload).await?;
    Ok(())
}

/// Archives an event of another service that something was built from, in the
/// transaction of what it changed. One that is there already stays as it is.
///
/// # Errors
/// Those of the database.
pub async fn keep(tx: &mut Transaction, event: &Event) -> edd_store::Result<()> {
    insert(tx, event, &event.payload.encode_to_vec()).await
}

async fn insert(tx: &mut Transaction, event: &Event, payload: &[u8]) -> edd_store::Result<()> {
    let now = now_ms();
    // A publisher's clock decides nothing about how long it is kept.
    let oldest = now.saturating_sub(i64::try_from(MAX_AGE.as_millis()).unwrap_or(0));
    let occurred_at = event.occurred_at.map_or(now, to_ms).clamp(oldest, now);
    let metadata = serde_json::json!({
        "subject": crate::subject::subject(event.kind, &event.entity),
        "traceparent": event.traceparent,
    });
    query(
        "INSERT INTO event_store (event_id, aggregate_type, aggregate_id, event_type, event_data, \
         occurred_at, version, source, correlation_id, causation_id, metadata, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
         ON CONFLICT (event_id) DO NOTHING",
    )
    .bind(&event.event_id)
    .bind(event.kind.aggregate())
    .bind(event.entity.as_str())
    .bind(event.kind.name())
    .bind(payload)
    .bind(occurred_at)
    .bind(event.version)
    .bind(&event.source)
    .bind(&event.correlation_id)
    .bind(&event.causation_id)
    .bind(metadata.to_string())
    .bind(now)
    .run(tx)
    .await?;
    Ok(())
}

/// Forgets events and letters older than `keep`, in small statements between
/// which others can write; returns how many. The newest event of a user, container,
/// key or namespace stays unless it says that this is gone.
///
/// # Errors
/// Those of the database; what was forgotten until then stays so.
pub async fn prune(database: &Database, keep: Duration) -> edd_store::Result<u64> {
    let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
    let before = now_ms().saturating_sub(keep);
    let mut forgotten = 0;
    for statement in [
        "DELETE FROM event_store WHERE id IN (SELECT id FROM event_store AS old \
         WHERE occurred_at < $1 AND (event_type LIKE '%Deleted' OR aggregate_type NOT IN \
         ('auth.user', 'compute.container', 'compute.sshkey', 'sfs.namespace') OR EXISTS ( \
         SELECT 1 FROM event_store AS newer WHERE newer.aggregate_type = old.aggregate_type \
         AND newer.aggregate_id = old.aggregate_id AND newer.id > old.id)) \
         ORDER BY occurred_at LIMIT $2)",
        "DELETE FROM dead_letter_queue WHERE id IN (SELECT id FROM dead_letter_queue \
         WHERE created_at < $1 ORDER BY created_at LIMIT $2)",
    ] {
        loop {
            let gone = query(statement)
                .bind(before)
                .bind(PRUNE_BATCH)
                .run(database)
                .await?;
            forgotten += gone;
            if gone < PRUNE_BATCH as u64 {
                break;
            }
        }
    }
    Ok(forgotten)
}
