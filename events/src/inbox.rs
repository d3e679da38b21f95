//! The inbox: ids of the events that a service has handled, in the same
//! transaction as what they changed, so that a second delivery changes nothing.
//!
//! Owns the rows of the table `inbox`; the table itself comes with the service's
//! migrations ([`TABLE`]).

use std::time::Duration;

use edd_store::{Database, Schema, Transaction, query};

use crate::{envelope::now_ms, stream::MAX_AGE};

/// The table, for the migrations of the services. `handled_at` is in
/// milliseconds since 1970.
pub const TABLE: Schema = Schema {
    postgres: &[(
        1,
        "inbox",
        "CREATE TABLE inbox (event_id TEXT NOT NULL PRIMARY KEY, handled_at BIGINT NOT NULL);
         CREATE INDEX inbox_by_time ON inbox (handled_at);",
    )],
    sqlite: &[(
        1,
        "inbox",
        "CREATE TABLE inbox (event_id TEXT NOT NULL PRIMARY KEY, handled_at INTEGER NOT NULL)
             STRICT, WITHOUT ROWID;
         CREATE INDEX inbox_by_time ON inbox (handled_at);",
    )],
};

/// How long ids are remembered: a day longer than a stream keeps its events.
pub const KEEP: Duration = Duration::from_secs(MAX_AGE.as_secs() + 24 * 3600);

/// Ids forgotten in one statement.
const BATCH: i64 = 1000;

/// Remembers an event id within the caller's transaction; false: it was known,
/// and what the event says has been done.
///
/// # Errors
/// Those of the database.
pub async fn first_time(tx: &mut Transaction, event_id: &str) -> edd_store::Result<bool> {
    let inserted =
        query("INSERT INTO inbox (event_id, handled_at) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(event_id)
            .bind(now_ms())
            .run(tx)
            .await?;
    Ok(inserted == 1)
}

/// Forgets ids that no stream delivers any more ([`KEEP`]), in small statements;
/// returns how many.
///
/// # Errors
/// Those of the database; what was forgotten until then stays so.
pub async fn purge(database: &Database) -> edd_store::Result<u64> {
    let keep = i64::try_from(KEEP.as_millis()).unwrap_or(i64::MAX);
    let before = now_ms().saturating_sub(keep);
    let mut forgotten = 0;
    loop {
        let gone = query(
            "DELETE FROM inbox WHERE event_id IN \
             (SELECT event_id FROM inbox WHERE handled_at < $1 ORDER BY handled_at LIMIT $2)",
        )
        .bind(before)
        .bind(BATCH)
        .run(database)
        .await?;
        forgotten += gone;
        if gone < BATCH as u64 {
            return Ok(forgotten);
        }
    }
}
