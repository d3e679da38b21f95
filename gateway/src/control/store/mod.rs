//! The gateway's own database: what survives the process beside the last good table.
//!
//! Behind a small trait with static SQL per engine. A batch of events is one
//! [`Commit`], written whole or not at all. Reading is whole or not at all too:
//! a broken row is an error, never a table without it.

mod cells;
pub mod journal;
mod load;
mod routes;
mod sql;
mod ssh_keys;
mod tickets;
#[cfg(test)]
mod whole;
mod write;

use std::collections::{BTreeMap, HashSet};
use std::future::Future;

use edd_events::outbox::OutboxEntry;
use edd_route::StaticRouteSpec;

use super::reconcile::{Effects, State};
use crate::config::History;
use crate::tls::TicketKey;

pub use journal::{Ahead, Cause, Entry, Line, Log, Origin, Past, Place, Then};
pub use sql::{Identity, SqlStore};

/// Tombstones and handled event ids are kept for so long, in milliseconds: a
/// day more than the streams keep events.
pub const KEPT_MS: u64 = 8 * 24 * 60 * 60 * 1000;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It does not answer in time.
    #[error("the database does not answer")]
    TimedOut,
    /// Another file is in its place, or none.
    #[error("the database's file was removed or replaced")]
    Gone,
    /// A row that cannot be what this gateway wrote.
    #[error("table {table}, row {row}: {reason}")]
    Corrupt {
        /// Its table.
        table: &'static str,
        /// Its key.
        row: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The schema cannot be brought up to date.
    #[error("schema: {0}")]
    Migrate(#[from] edd_store::MigrateError),
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] edd_store::OpenError),
    /// It refuses a statement.
    #[error(transparent)]
    Sql(#[from] edd_store::Error),
}

/// Everything in the database that the control path works with.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// The entities.
    pub state: State,
    /// Whether it has had its first commit: before that it is no database yet,
    /// whatever tables it has.
    pub born: bool,
    /// The journal's last line.
    pub position: Place,
    /// The last revision that was given to a table.
    pub revision: u64,
    /// Whether a rebuild by replay has begun and not ended.
    pub rebuilding: bool,
    /// How far it has each stream.
    pub streams: Streams,
}

/// Streams by name.
pub type Streams = BTreeMap<String, Marks>;

/// How far a database has a stream's events, and what it lacks of them for good.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Marks {
    /// When the stream was made that it knows by this name, Unix nanoseconds;
    /// none: it knows none.
    pub created: Option<i64>,
    /// The highest sequence handled; there may be gaps below it.
    pub position: u64,
    /// Up to here it has all events.
    pub floor: u64,
    /// How often reading on from there was begun.
    pub tries: u64,
    /// How often the sequences started over. Whoever remembers another number
    /// means another stream.
    pub restarts: u64,
    /// What the stream lost before it was read ended before this sequence; it
    /// takes a snapshot to know it. 0: there is no such gap.
    pub gap: u64,
}

/// One transaction.
#[derive(Debug, Default)]
pub struct Commit<'a> {
    /// The state after it, and what changed in it.
    pub changes: Option<(&'a State, &'a Effects)>,
    /// What changed, for the journal.
    pub journal: Vec<Line>,
    /// The journal's last line before it.
    pub position: Place,
    /// The revision before it.
    pub revision_before: u64,
    /// The events it handles.
    pub event_ids: Vec<&'a str>,
    /// What is to be published.
    pub outbox: Vec<OutboxEntry>,
    /// The revision of the table that follows, if one follows.
    pub revision: Option<u64>,
    /// The highest sequence handled, by stream; a position never goes back.
    pub positions: BTreeMap<String, u64>,
    /// Up to here all events are in it, by stream; a floor never goes back.
    pub floors: BTreeMap<String, u64>,
    /// How often the sequences of these streams had started over when they were read. If they
    /// have again, those two mean nothing and are not written. None: they are of the stream that
    /// is known.
    pub restarts: Option<u64>,
    /// How often reading on from a stream's floor was begun.
    pub tries: Option<(&'a str, u64)>,
    /// A stream, and when it was made (Unix nanoseconds).
    pub stream: Option<(&'a str, i64)>,
    /// A stream whose sequences start over, position and floor with them, and how
    /// often they have then.
    pub restarted: Option<(&'a str, u64)>,
    /// A stream's [`Marks::gap`], if that changes.
    pub gap: Option<(&'a str, u64)>,
    /// Whether this is the first commit.
    pub birth: bool,
    /// Whether a rebuild goes on, if that changes.
    pub rebuilding: Option<bool>,
    /// All static routes in force, if they change; what changed in them since
    /// they were last stored is published.
    pub statics: Option<Vec<StaticRouteSpec>>,
    /// The revision of the table that has these static routes.
    pub statics_revision: u64,
    /// The time, Unix milliseconds.
    pub now_ms: u64,
}

impl Commit<'_> {
    /// About how many rows it writes.
    fn rows(&self) -> usize {
        let changed = self.changes.map_or(0, |(_, effects)| {
            let Effects {
                containers,
                rules,
                keys,
                users,
                ..
            } = effects;
            containers.len() + rules.len() + keys.len() + users.len()
        });
        changed + self.journal.len() + self.outbox.len() + self.event_ids.len()
    }
}

/// A transaction in which nobody else writes, begun.
#[derive(Debug)]
pub struct Begun<T> {
    /// To be committed. Dropped, nothing has happened.
    pub turn: T,
    /// What others committed since.
    pub ahead: Ahead,
    /// Which of the events were handled before.
    pub seen: HashSet<String>,
}

/// What the writer task needs of a database.
///
/// Several gateways may share one. Each takes turns: it begins one, catches up
/// with what others committed before it, and commits its own.
pub trait GatewayStore: Send + Sync + 'static {
    /// Reads everything, or fails.
    fn load(&self) -> impl Future<Output = Result<Stored, StoreError>> + Send;

    /// A transaction in which nobody else writes.
    type Turn: Send;

    /// Begins one; also tells what was committed since the line `since`, and
    /// which of these events were handled before.
    fn begin(
        &self,
        since: Place,
        event_ids: &[&str],
    ) -> impl Future<Output = Result<Begun<Self::Turn>, StoreError>> + Send;

    /// The turn may take as long as a commit of so many rows: others wait for it, which is
    /// why one that says nothing for a moment is usually over.
    fn prolong(
        &self,
        turn: &mut Self::Turn,
        rows: usize,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// How far the database has the stream of this name.
    fn stream(
        &self,
        turn: &mut Self::Turn,
        name: &str,
    ) -> impl Future<Output = Result<Marks, StoreError>> + Send;

    /// Writes it, whole or not at all; the journal's last line then. After an error it
    /// is not known which: load again.
    fn commit(
        &self,
        turn: Self::Turn,
        commit: &Commit<'_>,
    ) -> impl Future<Output = Result<Place, StoreError>> + Send;

    /// What was committed since the line `since`.
    fn ahead(&self, since: Place) -> impl Future<Output = Result<Ahead, StoreError>> + Send;

    /// Whether the journal has this very line, or had it before it was pruned; if not,
    /// the database was set back to before it.
    fn holds(&self, line: Place) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// What was in force in the past; none when that is not known, or not any more.
    fn at(&self, past: Past) -> impl Future<Output = Result<Option<Then>, StoreError>> + Send;

    /// The newest `limit` changes of a container or host.
    fn log(&self, name: &str, limit: u16) -> impl Future<Output = Result<Log, StoreError>> + Send;

    /// Finds out whether it can be written.
    fn probe(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Finds out whether it takes what events write, whatever they say. Nothing stays of it.
    fn try_out(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Keeps those of `offered` whose slot has no key yet, forgets keys of slots before `oldest`,
    /// and returns the keys in force, the same for everyone who asks.
    fn share_ticket_keys(
        &self,
        offered: &[TicketKey],
        oldest: u64,
    ) -> impl Future<Output = Result<Vec<TicketKey>, StoreError>> + Send;

    /// Forgets handled event ids and tombstones older than [`KEPT_MS`], and what
    /// `history` does not keep of the journal.
    fn prune(
        &self,
        now_ms: u64,
        history: History,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// A rule's id for others: derived, so that a rebuild gives the same.
///
/// FNV-1a of container and port, made positive.
pub fn rule_id(container: &str, port: u16) -> i64 {
    numbered(container.bytes().chain([0]).chain(port.to_be_bytes()))
}

/// A static route's id, likewise of host and path.
pub fn route_id(host: &str, path: &str) -> i64 {
    numbered(host.bytes().chain([0]).chain(path.bytes()))
}

fn numbered(bytes: impl Iterator<Item = u8>) -> i64 {
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    i64::try_from(hash >> 1).unwrap_or(1).max(1)
}

/// Both engines' integers are signed.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
