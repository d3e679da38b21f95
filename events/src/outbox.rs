//! The outbox: events wait in their service's own database, written in the same
//! transaction as the rows they tell about, until the stream has them.
//!
//! Owns: the rows of the table `outbox` and the relay that publishes them,
//! oldest first and pipelined, and deletes each after the stream's
//! acknowledgement. A crash in between publishes again under the same message
//! id: the stream drops it within two minutes, consumers after that. A database
//! that fails in between is no reason to ([`Published`]). The table itself comes
//! with the service's migrations ([`TABLE`]).

mod hold;
mod published;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::{
    HeaderMap, HeaderValue,
    jetstream::context::{PublishError, PublishErrorKind},
};
use edd_store::{Database, Engine, Query, Rows, Schema, Transaction, query};
use futures_util::FutureExt as _;
use serde_json::json;
use tokio::{
    sync::Notify,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    Metrics,
    backoff::Backoff,
    bus::{Acknowledgement, AnyBus, Bus as _},
    consumer::REMOVAL_MAX,
    envelope::{Cause, now_ms},
    event::PAYLOAD_LEN_MAX,
    signature::Signer,
    stream::{DUPLICATE_WINDOW, StreamSpec, spec_of},
};
use hold::Hold;
pub use published::Published;

/// The table, for the migrations of the services. `created_at` is in
/// milliseconds since 1970.
pub const TABLE: Schema = Schema {
    postgres: &[(
        1,
        "outbox",
        "CREATE TABLE outbox (
            id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            event_id TEXT NOT NULL UNIQUE,
            subject TEXT NOT NULL,
            payload BYTEA NOT NULL,
            correlation_id TEXT,
            causation_id TEXT,
            traceparent TEXT,
            created_at BIGINT NOT NULL
        )",
    )],
    sqlite: &[(
        1,
        "outbox",
        "CREATE TABLE outbox (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            event_id TEXT NOT NULL UNIQUE,
            subject TEXT NOT NULL,
            payload BLOB NOT NULL,
            correlation_id TEXT,
            causation_id TEXT,
            traceparent TEXT,
            created_at INTEGER NOT NULL
        )",
    )],
};

/// Larger payloads are not written down, in bytes: consumers refuse them, and
/// with their headers they pass no server with the usual limit.
pub const PUBLISHED_LEN_MAX: usize = PAYLOAD_LEN_MAX - 16 * 1024;

/// Rows published in one go.
const BATCH_MAX: usize = 256;
/// The stream acknowledges a whole pass within this, or what is missing is
/// published again.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows are published within this after they were read. A process that stood still does not know
/// whether another relay of the same database has published and deleted them meanwhile, and the
/// stream remembers their ids for [`DUPLICATE_WINDOW`] only.
const FRESH_MAX: Duration = Duration::from_secs(DUPLICATE_WINDOW.as_secs() / 2);
/// Rows that come within this after others are published with those that come then: each pass
/// is a transaction, whose cost the events on their way in would bear.
const REST: Duration = Duration::from_millis(10);
/// Looks for rows that nobody announced (a wake lost with its process).
const POLL_INTERVAL: Duration = Duration::from_secs(3);
/// Looks whether NATS is back while rows wait.
const CONNECTED_POLL: Duration = Duration::from_millis(100);
/// Pauses after a failure.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A pass under way when the service ends or the database fails, and a last one after it.
const LAST_PASS_TIMEOUT: Duration = Duration::from_secs(2);
/// Rows that can never be published (too large for the server) and are stepped
/// over; with more the relay stands still, which the log says.
const STUCK_MAX: usize = 1000;

/// An event on its way into the database.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OutboxEntry {
    /// Becomes the message id.
    pub event_id: String,
    /// Where it will be published.
    pub subject: String,
    /// The encoded message.
    pub payload: Vec<u8>,
    /// Becomes headers.
    pub cause: Cause,
}

/// Writes an entry within the caller's transaction. After the commit call
/// [`Waker::wake`].
///
/// # Errors
/// Those of the database. A payload beyond [`PUBLISHED_LEN_MAX`], which nobody
/// could consume. An event that waits already is left as it is.
pub async fn insert(tx: &mut Transaction, entry: &OutboxEntry) -> edd_store::Result<()> {
    insert_all(tx, std::slice::from_ref(entry)).await
}

/// As [`insert`], for many; their order is kept.
///
/// # Errors
/// As [`insert`].
pub async fn insert_all(tx: &mut Transaction, entries: &[OutboxEntry]) -> edd_store::Result<()> {
    if let Some(inserting) = inserting(tx.engine(), entries)? {
        inserting.run(tx).await?;
    }
    Ok(())
}

/// The statement of [`insert_all`], for a script; none: nothing to write.
///
/// # Errors
/// A payload beyond [`PUBLISHED_LEN_MAX`].
pub fn inserting(engine: Engine, entries: &[OutboxEntry]) -> edd_store::Result<Option<Query>> {
    if entries.is_empty() {
        return Ok(None);
    }
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let created_at = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    let mut rows = Rows::default();
    for entry in entries {
        check_size(entry)?;
        let cause = &entry.cause;
        rows.push(json!([
            entry.event_id,
            entry.subject,
            hex(&entry.payload),
            cause.correlation_id,
            cause.causation_id,
            cause.traceparent,
        ]));
    }
    // The rows of the array come in its order, and take their numbers so.
    let bytes = match engine {
        Engine::Postgres => "decode(value ->> 2, 'hex')",
        Engine::Sqlite => "unhex(value ->> 2)",
    };
    let sql = format!(
        "INSERT INTO outbox \
         (event_id, subject, payload, correlation_id, causation_id, traceparent, created_at) \
         SELECT value ->> 0, value ->> 1, {bytes}, value ->> 3, value ->> 4, value ->> 5, $2 \
         FROM {{rows}} WHERE true ON CONFLICT (event_id) DO NOTHING"
    );
    Ok(Some(rows.query(engine, &sql).bind(created_at)))
}

/// Bytes within JSON.
fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or_default();
    let digits = |byte: &u8| [digit(byte >> 4), digit(byte & 15)];
    bytes.iter().flat_map(digits).collect()
}

/// The error of [`insert`] for a payload that is too large.
fn check_size(entry: &OutboxEntry) -> edd_store::Result<()> {
    let len = entry.payload.len();
    if len <= PUBLISHED_LEN_MAX {
        return Ok(());
    }
    let subject = &entry.subject;
    let error = format!("event {subject} of {len} bytes, more than {PUBLISHED_LEN_MAX}");
    Err(edd_store::Error::Encode(error.into()))
}

/// How many entries wait.
///
/// # Errors
/// Those of the database.
pub async fn pending(database: &Database) -> edd_store::Result<u64> {
    let count: i64 = query("SELECT COUNT(*) FROM outbox").value(database).await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Tells the relay that there is something to publish. Cheap; clones wake the
/// same relay.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Notify>);

impl Waker {
    /// To be called after the commit; a wake while the relay is busy is kept.
    pub fn wake(&self) {
        self.0.notify_one();
    }
}

/// Publishes what is in the outbox.
#[derive(Debug)]
pub struct Relay {
    database: Database,
    bus: AnyBus,
    metrics: Metrics,
    notify: Arc<Notify>,
    /// Streams to have at the start, before the first event.
    streams: Vec<StreamSpec>,
    replicas: usize,
    signer: Option<Arc<Signer>>,
    /// Streams known to exist.
    ensured: BTreeSet<&'static str>,
    /// Streams that were there, and since when they are not.
    missing: BTreeMap<&'static str, Instant>,
    /// What the stream has already.
    published: Published,
    /// What others may know that it has.
    hold: Hold,
    /// Ids of rows that the server can never take.
    stuck: BTreeSet<i64>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: i64,
    event_id: String,
    subject: String,
    payload: Vec<u8>,
    correlation_id: Option<String>,
    causation_id: Option<String>,
    traceparent: Option<String>,
    created_at: i64,
}

/// Why a pass did not publish everything.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("outbox database: {0}")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Ensure(#[from] crate::stream::EnsureError),
    #[error("stream {0} was removed: it is made anew in a moment")]
    Removed(&'static str),
    #[error("publishing {subject}: {source}")]
    Publish {
        subject: String,
        source: PublishError,
    },
}

impl Relay {
    /// A relay for the `outbox` of `database`. It creates the streams of the
    /// subjects it publishes on, with one replica each; see
    /// [`Relay::with_streams`].
    #[must_use]
    pub fn new(database: Database, bus: impl Into<AnyBus>, metrics: Metrics) -> Self {
        Self {
            database,
            bus: bus.into(),
            metrics,
            notify: Arc::new(Notify::new()),
            streams: Vec::new(),
            replicas: 1,
            signer: None,
            ensured: BTreeSet::new(),
            missing: BTreeMap::new(),
            published: Published::default(),
            hold: Hold::default(),
            stuck: BTreeSet::new(),
        }
    }

    /// Also creates these streams at the start, and all with `replicas` copies.
    #[must_use]
    pub fn with_streams(mut self, streams: &[StreamSpec], replicas: usize) -> Self {
        self.streams = streams.to_vec();
        self.replicas = replicas;
        self
    }

    /// Knows what an earlier relay of the same database has published.
    #[must_use]
    pub fn with_published(mut self, published: Published) -> Self {
        self.published = published;
        self
    }

    /// Signs what it publishes.
    #[must_use]
    pub fn with_signer(mut self, signer: Option<Arc<Signer>>) -> Self {
        if let Some(signer) = &signer {
            signer.warn_if_exposed();
        }
        self.signer = signer;
        self
    }

    /// Wakes this relay.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.notify))
    }

    /// Publishes until `shutdown`, ends the pass under way and makes a last one, each in 2 s at
    /// most.
    /// Without NATS or database it waits and tries again, with jittered pauses
    /// of at most 5 s. Never ends before, never panics.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        while !shutdown.is_cancelled() {
            let pause = self.turn(&mut backoff, &shutdown).await;
            let notify = Arc::clone(&self.notify);
            match pause {
                Pause::None => {}
                Pause::UntilWoken(rest) => {
                    let woken = async {
                        tokio::time::sleep(rest).await;
                        let _ = timeout(POLL_INTERVAL, notify.notified()).await;
                    };
                    shutdown.run_until_cancelled(woken).await;
                }
                Pause::Full(pause) => {
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
        if self.bus.is_connected()
            && let Ok(Err(error)) = timeout(LAST_PASS_TIMEOUT, self.drain()).await
        {
            info!(%error, "events stay in the outbox until the next start");
        }
    }

    /// One look at the outbox; says how long to wait for the next.
    async fn turn(&mut self, backoff: &mut Backoff, shutdown: &CancellationToken) -> Pause {
        if !self.bus.is_connected() {
            match pending(&self.database).await {
                Ok(waiting) => {
                    self.hold.database_answered();
                    self.metrics.outbox_pending(waiting);
                }
                Err(_) => self.hold.database_failed(),
            }
            // Publishing now would only fill the client's queue with events
            // that are published again later.
            return Pause::Full(CONNECTED_POLL);
        }
        let pass = async {
            for spec in std::mem::take(&mut self.streams) {
                if let Err(error) = self.ensure_stream(&spec).await {
                    self.streams.push(spec);
                    return Err(error);
                }
            }
            self.pass().await
        };
        // What is sent gets the time to be acknowledged: who does not know that it was publishes
        // it once more, perhaps after the stream has forgotten it.
        let over = async {
            shutdown.cancelled().await;
            tokio::time::sleep(LAST_PASS_TIMEOUT).await;
        };
        let done = tokio::select! {
            done = pass => done,
            () = over => return Pause::None,
        };
        match done {
            Ok(published) => {
                backoff.reset();
                match published {
                    0 => Pause::UntilWoken(Duration::ZERO),
                    BATCH_MAX.. => Pause::None,
                    _ => Pause::UntilWoken(REST),
                }
            }
            Err(error) => {
                if matches!(error, RelayError::Database(_)) {
                    self.hold.database_failed();
                }
                let pause = backoff.next();
                warn!(%error, pause_ms = pause.as_millis(), "events wait in the outbox");
                Pause::Full(pause)
            }
        }
    }

    async fn drain(&mut self) -> Result<(), RelayError> {
        while self.pass().await? > 0 {}
        Ok(())
    }

    /// Publishes the oldest rows and returns how many; an error leaves the rest
    /// for later.
    ///
    /// Cancel safety: a row whose acknowledgement was not seen stays and is
    /// published again under the same message id; what was seen is remembered.
    async fn pass(&mut self) -> Result<usize, RelayError> {
        let read = Instant::now();
        let rows = self.oldest().await?;
        self.metrics.outbox_pending(if rows.len() < BATCH_MAX {
            rows.len() as u64 + self.stuck.len() as u64
        } else {
            pending(&self.database).await?
        });
        if rows.is_empty() {
            return Ok(0);
        }
        let known = self.published.among(rows.iter().map(|row| &*row.event_id));
        let (there, mut rows): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .partition(|row| known.contains(&row.event_id));
        // Behind one that waits all wait: their order is kept.
        if let Some(first) = rows.iter().position(|row| self.is_held(row)) {
            rows.truncate(first);
        }
        for row in &rows {
            if let Some(spec) = spec_of(&row.subject) {
                self.ensure_stream(spec).await?;
            }
        }
        let bus = self.bus.clone();
        let lost = bus.lost(bus.connects()).shared();
        // All are sent before the first acknowledgement is awaited: one round
        // trip for the batch. The connection keeps their order.
        let deadline = Instant::now() + ACK_TIMEOUT;
        let mut sent = Vec::with_capacity(rows.len());
        for row in rows {
            let future = self.send(&row, read, deadline).await;
            sent.push((row, future));
        }
        let mut done: Vec<i64> = there.iter().map(|row| row.id).collect();
        let mut failure = None;
        for (row, future) in sent {
            match await_ack(future, deadline, lost.clone()).await {
                Ok(duplicate) => {
                    let result = if duplicate { "duplicate" } else { "ok" };
                    self.metrics.published(&row.subject, result);
                    debug!(
                        event_id = row.event_id,
                        subject = row.subject,
                        result,
                        "published"
                    );
                    done.push(row.id);
                    // At once: it may be over before the next one is.
                    self.published.add(row.event_id);
                }
                Err(error) => {
                    self.metrics.published(&row.subject, "failed");
                    self.note_failure(&row, &error);
                    if !self.stuck.contains(&row.id) {
                        failure.get_or_insert((row.subject, error));
                    }
                }
            }
        }
        self.delete(&done).await?;
        self.published.forget();
        match failure {
            None => Ok(done.len()),
            Some((subject, source)) => Err(RelayError::Publish { subject, source }),
        }
    }

    /// A file of SQLite has no other relay.
    fn is_held(&self, row: &Row) -> bool {
        self.database.engine() == Engine::Postgres && self.hold.keeps(row.created_at, now_ms())
    }

    async fn oldest(&mut self) -> Result<Vec<Row>, RelayError> {
        let limit = i64::try_from(BATCH_MAX + self.stuck.len()).unwrap_or(i64::MAX);
        let mut rows: Vec<Row> = query(
            "SELECT id, event_id, subject, payload, correlation_id, causation_id, traceparent, \
             created_at FROM outbox ORDER BY id LIMIT $1",
        )
        .bind(limit)
        .all(&self.database)
        .await?;
        self.hold.database_answered();
        rows.retain(|row| !self.stuck.contains(&row.id));
        rows.truncate(BATCH_MAX);
        Ok(rows)
    }

    async fn ensure_stream(&mut self, spec: &StreamSpec) -> Result<(), RelayError> {
        if self.ensured.contains(spec.name) {
            return Ok(());
        }
        // Not made anew while the server may still be removing it. It may also be there: JetStream
        // that is starting takes nothing either.
        if let Some(since) = self.missing.get(spec.name)
            && since.elapsed() < REMOVAL_MAX
            && matches!(self.bus.stream_state(spec.name).await, Ok(None))
        {
            return Err(RelayError::Removed(spec.name));
        }
        self.bus.ensure(spec, self.replicas).await?;
        self.ensured.insert(spec.name);
        self.missing.remove(spec.name);
        Ok(())
    }

    async fn send(
        &self,
        row: &Row,
        read: Instant,
        deadline: Instant,
    ) -> Result<Acknowledgement, PublishError> {
        if read.elapsed() > FRESH_MAX {
            return Err(PublishError::new(PublishErrorKind::TimedOut));
        }
        let mut headers = HeaderMap::new();
        let cause = Cause {
            correlation_id: row.correlation_id.clone(),
            causation_id: row.causation_id.clone(),
            traceparent: row.traceparent.clone(),
        };
        cause.write(&mut headers);
        let id = row
            .event_id
            .parse::<HeaderValue>()
            .map_err(|error| PublishError::with_source(PublishErrorKind::Other, error))?;
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
        if let Some(signer) = &self.signer {
            signer.write(&mut headers, &row.subject, &row.event_id, &row.payload);
        }
        let payload = row.payload.clone().into();
        timeout_at(deadline, self.bus.publish(&row.subject, headers, payload))
            .await
            .unwrap_or_else(|_| Err(PublishError::new(PublishErrorKind::TimedOut)))
    }

    fn note_failure(&mut self, row: &Row, error: &PublishError) {
        match error.kind() {
            // Somebody removed the stream (or JetStream is still starting).
            PublishErrorKind::StreamNotFound => {
                if let Some(spec) = spec_of(&row.subject)
                    && self.ensured.remove(spec.name)
                {
                    self.missing.entry(spec.name).or_insert_with(Instant::now);
                }
            }
            PublishErrorKind::MaxPayloadExceeded if self.stuck.len() < STUCK_MAX => {
                error!(
                    event_id = row.event_id, subject = row.subject, bytes = row.payload.len(), %error,
                    "event can never be published; it stays in the outbox"
                );
                self.stuck.insert(row.id);
            }
            _ => {}
        }
    }

    async fn delete(&self, ids: &[i64]) -> Result<(), RelayError> {
        if ids.is_empty() {
            return Ok(());
        }
        let rows: Rows = ids.iter().map(|id| json!([id])).collect();
        let delete = "DELETE FROM outbox WHERE id IN \
                      (SELECT CAST(value ->> 0 AS BIGINT) FROM {rows})";
        rows.query(self.database.engine(), delete)
            .run(&self.database)
            .await?;
        Ok(())
    }
}

/// How long the relay rests.
enum Pause {
    /// Even if woken: something is broken.
    Full(Duration),
    None,
    /// After so long at least.
    UntilWoken(Duration),
}

/// Whether the stream had it already. Ends with the connection.
async fn await_ack(
    sent: Result<Acknowledgement, PublishError>,
    deadline: Instant,
    lost: impl Future<Output = ()>,
) -> Result<bool, PublishError> {
    let ack = timeout_at(deadline, sent?);
    let ack = tokio::select! {
        biased;
        ack = ack => ack.unwrap_or_else(|_| Err(PublishError::new(PublishErrorKind::TimedOut)))?,
        () = lost => return Err(PublishError::new(PublishErrorKind::BrokenPipe)),
    };
    Ok(ack.duplicate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bus::MemoryBus, stream::COMPUTE};

    /// A process that stood still, and another one that has published and deleted them since.
    #[tokio::test]
    async fn rows_that_were_read_long_ago_are_not_published() {
        let folder = tempfile::tempdir().unwrap();
        let url = edd_store::DatabaseUrl::Sqlite(folder.path().join("test.db"));
        let database = Database::open(&url).await.unwrap();
        let bus = MemoryBus::new();
        bus.ensure(&COMPUTE, 1).await.unwrap();
        let relay = Relay::new(database, bus.clone(), Metrics::default());
        let row = Row {
            id: 1,
            event_id: "e1".into(),
            subject: "compute.container.c1.created".into(),
            payload: Vec::new(),
            correlation_id: None,
            causation_id: None,
            traceparent: None,
            created_at: 0,
        };
        tokio::time::pause();
        let read = Instant::now();
        let send = async || {
            let deadline = Instant::now() + ACK_TIMEOUT;
            relay.send(&row, read, deadline).await.map(drop)
        };
        send().await.unwrap();
        tokio::time::advance(FRESH_MAX + Duration::from_secs(1)).await;
        let late = send().await.unwrap_err();
        assert_eq!(late.kind(), PublishErrorKind::TimedOut);
        assert_eq!(bus.messages(COMPUTE.name).len(), 1);
    }
}
