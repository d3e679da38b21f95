//! Reading the archive, in pages.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edd_store::{Database, Transaction, query};

use crate::event::{Decoded, Event, Position, decode};

/// Most events of one page.
pub const PAGE_MAX: u32 = 1000;

/// An archived event. Times are in milliseconds since 1970.
#[derive(Clone, Debug, Eq, PartialEq, sqlx::FromRow)]
pub struct Archived {
    /// Its place in the archive; a page goes on after the last one's.
    pub id: i64,
    /// The event's own id.
    pub event_id: String,
    /// What it is about: `compute.container`, `auth.user`.
    pub aggregate_type: String,
    /// Which one.
    pub aggregate_id: String,
    /// The message's name: `ContainerStarted`.
    pub event_type: String,
    /// The encoded message.
    pub event_data: Vec<u8>,
    /// When it happened.
    pub occurred_at: i64,
    /// Orders the aggregate's events.
    pub version: i64,
    /// Who said so.
    pub source: String,
    /// The flow it belongs to.
    pub correlation_id: Option<String>,
    /// The event that caused it.
    pub causation_id: Option<String>,
    /// JSON: `subject` and `traceparent`.
    pub metadata: String,
    /// When it was archived.
    pub created_at: i64,
}

impl Archived {
    /// The event as a consumer would get it; none: this version of the program
    /// does not know it.
    #[must_use]
    pub fn event(&self) -> Option<Event> {
        let metadata: serde_json::Value = serde_json::from_str(&self.metadata).ok()?;
        let subject = metadata.get("subject")?.as_str()?;
        let occurred = Duration::from_millis(u64::try_from(self.occurred_at).unwrap_or(0));
        let position = Position {
            stream: "archive".to_owned(),
            sequence: u64::try_from(self.id).unwrap_or(0),
            published_at: UNIX_EPOCH + occurred,
        };
        let Decoded::Event(event) = decode(subject, &self.event_data, None, &position) else {
            return None;
        };
        let traceparent = metadata.get("traceparent").and_then(|value| value.as_str());
        Some(Event {
            event_id: self.event_id.clone(),
            correlation_id: self.correlation_id.clone(),
            causation_id: self.causation_id.clone(),
            traceparent: traceparent.map(str::to_owned),
            ..*event
        })
    }
}

/// Events of one aggregate from a version on, in the order of the archive: at
/// most `limit` (up to [`PAGE_MAX`]) after the place `after` (0: the first page).
///
/// # Errors
/// Those of the database.
pub async fn by_aggregate(
    database: &Database,
    (aggregate_type, aggregate_id): (&str, &str),
    from_version: i64,
    after: i64,
    limit: u32,
) -> edd_store::Result<Vec<Archived>> {
    query(
        "SELECT * FROM event_store WHERE aggregate_type = $1 AND aggregate_id = $2 \
         AND version >= $3 AND id > $4 ORDER BY id LIMIT $5",
    )
    .bind(aggregate_type)
    .bind(aggregate_id)
    .bind(from_version)
    .bind(after)
    .bind(page(limit))
    .all(database)
    .await
}

/// Events of one type (`ContainerStarted`), paged as [`by_aggregate`].
///
/// # Errors
/// Those of the database.
pub async fn by_type(
    database: &Database,
    event_type: &str,
    after: i64,
    limit: u32,
) -> edd_store::Result<Vec<Archived>> {
    query("SELECT * FROM event_store WHERE event_type = $1 AND id > $2 ORDER BY id LIMIT $3")
        .bind(event_type)
        .bind(after)
        .bind(page(limit))
        .all(database)
        .await
}

/// Events that happened at `time` or later, paged as [`by_aggregate`].
///
/// # Errors
/// Those of the database.
pub async fn since(
    database: &Database,
    time: SystemTime,
    after: i64,
    limit: u32,
) -> edd_store::Result<Vec<Archived>> {
    query("SELECT * FROM event_store WHERE occurred_at >= $1 AND id > $2 ORDER BY id LIMIT $3")
        .bind(crate::envelope::to_ms(time))
        .bind(after)
        .bind(page(limit))
        .all(database)
        .await
}

/// Events of one flow, paged as [`by_aggregate`].
///
/// # Errors
/// Those of the database.
pub async fn by_correlation(
    database: &Database,
    correlation_id: &str,
    after: i64,
    limit: u32,
) -> edd_store::Result<Vec<Archived>> {
    query("SELECT * FROM event_store WHERE correlation_id = $1 AND id > $2 ORDER BY id LIMIT $3")
        .bind(correlation_id)
        .bind(after)
        .bind(page(limit))
        .all(database)
        .await
}

/// Hands every archived event of a type of aggregate to `apply`, oldest first,
/// within one transaction: a projection is rebuilt all at once or not at all.
/// Returns how many there were. Events that this version does not know are
/// stepped over.
///
/// # Errors
/// Those of the database, and those of `apply`.
pub async fn replay(
    tx: &mut Transaction,
    aggregate_type: &str,
    mut apply: impl AsyncFnMut(&mut Transaction, Event) -> edd_store::Result<()>,
) -> edd_store::Result<u64> {
    let (mut after, mut count) = (0, 0);
    loop {
        let page: Vec<Archived> = query(
            "SELECT * FROM event_store WHERE aggregate_type = $1 AND id > $2 ORDER BY id LIMIT $3",
        )
        .bind(aggregate_type)
        .bind(after)
        .bind(i64::from(PAGE_MAX))
        .all(&mut *tx)
        .await?;
        let Some(last) = page.last() else {
            return Ok(count);
        };
        after = last.id;
        for archived in &page {
            if let Some(event) = archived.event() {
                apply(tx, event).await?;
                count += 1;
            }
        }
    }
}

fn page(limit: u32) -> i64 {
    i64::from(limit.clamp(1, PAGE_MAX))
}
