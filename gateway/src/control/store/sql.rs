//! gateway_db on either engine.

use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edd_store::{Database, DatabaseUrl, Engine, Schema, Transaction, query};

use super::{
    Ahead, Begun, Commit, GatewayStore, KEPT_MS, Log, Marks, Past, Place, StoreError, Stored, Then,
    int,
};
use super::{journal, load, ssh_keys, tickets, write};
use crate::config::History;
use crate::ssh::StoredKey;
use crate::tls::TicketKey;

/// The schema. Released steps never change.
const SCHEMA: Schema = Schema {
    postgres: &[
        (
            1,
            "gateway",
            include_str!("../../../migrations/postgres/0001_gateway.sql"),
        ),
        (
            2,
            "journal",
            include_str!("../../../migrations/postgres/0002_journal.sql"),
        ),
        (
            3,
            "gateway_keys",
            include_str!("../../../migrations/postgres/0003_gateway_keys.sql"),
        ),
        (
            4,
            "journal_marks",
            include_str!("../../../migrations/postgres/0004_journal_marks.sql"),
        ),
    ],
    sqlite: &[
        (
            1,
            "gateway",
            include_str!("../../../migrations/sqlite/0001_gateway.sql"),
        ),
        (
            2,
            "ticket_keys",
            include_str!("../../../migrations/sqlite/0002_ticket_keys.sql"),
        ),
        (
            3,
            "journal",
            include_str!("../../../migrations/sqlite/0003_journal.sql"),
        ),
        (
            4,
            "gateway_keys",
            include_str!("../../../migrations/sqlite/0004_gateway_keys.sql"),
        ),
        (
            5,
            "journal_marks",
            include_str!("../../../migrations/sqlite/0005_journal_marks.sql"),
        ),
    ],
};

/// Longest wait for one operation; the lock waits of the engines are shorter.
const TIMEOUT: Duration = Duration::from_secs(10);

/// And for each row of a commit: a stream made anew, or a snapshot, changes all of them
/// at once, atomically. Measured with a debug build and 100,000 containers (210,000 rows and
/// as many lines of the journal): 8 s on SQLite, 18 s on PostgreSQL, 0.05 ms a row.
const TIMEOUT_PER_ROW: Duration = Duration::from_millis(1);

/// Reading everything may take longer.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// gateway_db. Clones share its connections.
#[derive(Clone, Debug)]
pub struct SqlStore {
    database: Database,
    /// SQLite's file.
    path: Option<PathBuf>,
    identity: Identity,
}

/// Which database it is: a path can get another file, and a name another
/// database, while the old one is open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Identity {
    /// Device and number of SQLite's file.
    File(u64, u64),
    /// A number drawn when PostgreSQL's schema was made.
    Number(i64),
}

impl SqlStore {
    /// Opens the database, creates SQLite's file if absent, brings the schema up
    /// to date and makes sure that it can be written.
    ///
    /// # Errors
    /// It is unreachable, read-only, no database, or of a newer version.
    pub async fn open(url: &DatabaseUrl) -> Result<Self, StoreError> {
        let database = Database::open(url).await?;
        let path = url.path().map(Path::to_owned);
        match Self::prepare(&database, path.as_deref()).await {
            Ok(identity) => Ok(Self {
                database,
                path,
                identity,
            }),
            Err(error) => {
                database.close().await;
                Err(error)
            }
        }
    }

    async fn prepare(database: &Database, path: Option<&Path>) -> Result<Identity, StoreError> {
        within(LOAD_TIMEOUT, async { Ok(database.migrate(SCHEMA).await?) }).await?;
        probe(database).await?;
        identity(database, path).await
    }

    /// Which database it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The gateway's SSH keys that are in it.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ssh_keys(&self) -> Result<Vec<StoredKey>, StoreError> {
        within(TIMEOUT, ssh_keys::select(&self.database)).await
    }

    /// Stores those of `offered` that it does not have; what it has then, the same for everyone
    /// who asks.
    ///
    /// # Errors
    /// It does not answer or is read-only.
    pub async fn share_ssh_keys(
        &self,
        offered: &[StoredKey],
    ) -> Result<Vec<StoredKey>, StoreError> {
        within(TIMEOUT, ssh_keys::share(&self.database, offered)).await
    }

    /// The connections, for the outbox's relay.
    pub fn database(&self) -> &Database {
        &self.database
    }
}

impl GatewayStore for SqlStore {
    async fn load(&self) -> Result<Stored, StoreError> {
        within(LOAD_TIMEOUT, load::load(&self.database)).await
    }

    type Turn = Transaction;

    async fn begin(
        &self,
        since: Place,
        event_ids: &[&str],
    ) -> Result<Begun<Self::Turn>, StoreError> {
        within(TIMEOUT, async {
            let mut turn = self.database.begin().await?;
            let (ahead, seen) = journal::ahead(&mut turn, since, event_ids).await?;
            Ok(Begun { turn, ahead, seen })
        })
        .await
    }

    async fn prolong(&self, turn: &mut Self::Turn, rows: usize) -> Result<(), StoreError> {
        if turn.engine() == Engine::Sqlite {
            return Ok(());
        }
        let limit = format!("{}ms", limit(rows).as_millis());
        let sql = "SELECT set_config('idle_in_transaction_session_timeout', $1, true)";
        let set = query(sql).bind(limit);
        let _: String = bounded(TIMEOUT, set.value(turn)).await?;
        Ok(())
    }

    async fn stream(&self, turn: &mut Self::Turn, name: &str) -> Result<Marks, StoreError> {
        within(TIMEOUT, load::stream(turn, name)).await
    }

    async fn commit(&self, turn: Self::Turn, commit: &Commit<'_>) -> Result<Place, StoreError> {
        within(limit(commit.rows()), write::write(turn, commit)).await
    }

    async fn ahead(&self, since: Place) -> Result<Ahead, StoreError> {
        within(TIMEOUT, async {
            let mut tx = self.database.begin_read().await?;
            let (ahead, _) = journal::ahead(&mut tx, since, &[]).await?;
            Ok(ahead)
        })
        .await
    }

    async fn holds(&self, line: Place) -> Result<bool, StoreError> {
        within(TIMEOUT, journal::holds(&self.database, line)).await
    }

    async fn at(&self, past: Past) -> Result<Option<Then>, StoreError> {
        within(LOAD_TIMEOUT, journal::at(&self.database, past)).await
    }

    async fn log(&self, name: &str, limit: u16) -> Result<Log, StoreError> {
        within(TIMEOUT, journal::of_name(&self.database, name, limit)).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let now = identity(&self.database, self.path.as_deref()).await?;
        if now != self.identity {
            return Err(StoreError::Gone);
        }
        probe(&self.database).await
    }

    async fn try_out(&self) -> Result<(), StoreError> {
        within(TIMEOUT, async {
            write::try_out(self.database.begin().await?).await
        })
        .await
    }

    async fn share_ticket_keys(
        &self,
        offered: &[TicketKey],
        oldest: u64,
    ) -> Result<Vec<TicketKey>, StoreError> {
        within(TIMEOUT, tickets::share(&self.database, offered, oldest)).await
    }

    async fn prune(&self, now_ms: u64, history: History) -> Result<(), StoreError> {
        let before = int(now_ms.saturating_sub(KEPT_MS));
        for delete in [
            "DELETE FROM inbox WHERE event_id IN \
             (SELECT event_id FROM inbox WHERE at < $1 ORDER BY at LIMIT $2)",
            "DELETE FROM tombstones WHERE (kind, id) IN \
             (SELECT kind, id FROM tombstones WHERE at < $1 ORDER BY at LIMIT $2)",
        ] {
            loop {
                let part = query(delete).bind(before).bind(journal::PRUNED_AT_ONCE);
                let removed = bounded(TIMEOUT, part.run(&self.database)).await?;
                if int(removed) < journal::PRUNED_AT_ONCE {
                    break;
                }
            }
        }
        let kept = u64::try_from(history.kept.as_millis()).unwrap_or(u64::MAX);
        let before = now_ms.saturating_sub(kept);
        let pruning = journal::prune(&self.database, before, history.rows_max);
        within(LOAD_TIMEOUT, pruning).await
    }
}

/// How long a commit of so many rows may take.
fn limit(rows: usize) -> Duration {
    let rows = u32::try_from(rows).unwrap_or(u32::MAX);
    TIMEOUT + TIMEOUT_PER_ROW * rows
}

async fn identity(database: &Database, path: Option<&Path>) -> Result<Identity, StoreError> {
    if let Some(path) = path {
        let found = std::fs::metadata(path).map_err(|_| StoreError::Gone)?;
        return Ok(Identity::File(found.dev(), found.ino()));
    }
    let number = query("SELECT value FROM meta WHERE key = 'identity'").optional_value(database);
    match bounded(TIMEOUT, number).await? {
        Some(number) => Ok(Identity::Number(number)),
        None => Err(StoreError::Gone),
    }
}

/// Takes the write lock and changes nothing: fails on a database that is read-only.
async fn probe(database: &Database) -> Result<(), StoreError> {
    within(TIMEOUT, async {
        let mut tx = database.begin().await?;
        query("UPDATE meta SET value = value WHERE key = 'revision'")
            .run(&mut tx)
            .await?;
        query("DELETE FROM inbox WHERE event_id = ''")
            .run(&mut tx)
            .await?;
        tx.commit().await?;
        Ok(())
    })
    .await
}

async fn within<T>(
    limit: Duration,
    operation: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, operation)
        .await
        .unwrap_or(Err(StoreError::TimedOut))
}

async fn bounded<T>(
    limit: Duration,
    operation: impl Future<Output = edd_store::Result<T>>,
) -> Result<T, StoreError> {
    within(limit, async { Ok(operation.await?) }).await
}

#[cfg(test)]
mod tests {
    use edd_store::testing::{Postgres, database_of};
    use edd_store::{is_about_values, query_dynamic};

    use super::*;
    use crate::control::store::Line;

    async fn left(store: &SqlStore) -> i64 {
        let count = query("SELECT COUNT(*) FROM journal").value(store.database());
        count.await.unwrap()
    }

    /// Of each entity that exists the last line stays, and who is behind that reads everything.
    #[tokio::test]
    async fn the_journal_is_pruned_down_to_what_exists() {
        let folder = tempfile::tempdir().unwrap();
        let urls = [
            database_of(folder.path()).await,
            Postgres::shared().await.database().await,
        ];
        for url in urls {
            let store = SqlStore::open(&url).await.unwrap();
            let commit = Commit {
                journal: vec![
                    Line::of_route("a", "/", Some("{}")),
                    Line::of_route("a", "/", None),
                    Line::of_route("b", "/", Some("{}")),
                    Line::of_route("b", "/", Some("{}")),
                ],
                revision: Some(5),
                now_ms: 5,
                ..Commit::default()
            };
            let begun = store.begin(Place::default(), &[]).await.unwrap();
            let position = store.commit(begun.turn, &commit).await.unwrap();
            assert_eq!(left(&store).await, 4);
            let day = Duration::from_secs(24 * 60 * 60);
            for (kept, rows_max, expected) in [(day, 100, 4), (day, 1, 2), (Duration::ZERO, 9, 1)] {
                let history = History { kept, rows_max };
                store.prune(10, history).await.unwrap();
                assert_eq!(left(&store).await, expected, "{history:?}");
            }
            let ahead = store.ahead(position).await.unwrap();
            assert_eq!((ahead.position, ahead.revision), (position, 5));
            assert_eq!(ahead.entries.map(|entries| entries.len()), Some(0));
            let before = Place {
                number: position.number - 1,
                ..position
            };
            assert!(store.ahead(before).await.unwrap().entries.is_none());
            assert!(store.holds(before).await.unwrap(), "it is pruned");
            assert!(store.at(Past::Revision(4)).await.unwrap().is_none());
            assert!(store.at(Past::Time(4)).await.unwrap().is_none());
        }
    }

    /// Nor does it stay when it is taken.
    #[tokio::test]
    async fn what_no_event_could_store_is_tried_out() {
        let folder = tempfile::tempdir().unwrap();
        let postgres = Postgres::shared().await.database().await;
        for url in [database_of(folder.path()).await, postgres] {
            let store = SqlStore::open(&url).await.unwrap();
            store.try_out().await.unwrap();
            for table in ["inbox", "outbox", "journal"] {
                let count = query_dynamic(format!("SELECT COUNT(*) FROM {table}"));
                let count: i64 = count.value(store.database()).await.unwrap();
                assert_eq!(count, 0, "{table}");
            }
            let numbers = match store.database().engine() {
                // As after a restore without the sequences.
                Engine::Postgres => {
                    "WITH line AS (SELECT setval('journal_number_seq', 1)) \
                     INSERT INTO journal (number, revision, at, kind, name, part) \
                     OVERRIDING SYSTEM VALUE SELECT 2, 1, 1, 'route', 'a', '/' FROM line"
                }
                Engine::Sqlite => {
                    "CREATE TRIGGER full BEFORE INSERT ON journal \
                     BEGIN SELECT RAISE(ABORT, 'refused'); END"
                }
            };
            query(numbers).run(store.database()).await.unwrap();
            match store.try_out().await {
                Err(StoreError::Sql(error)) => assert!(is_about_values(&error), "{error}"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// However much there is: no statement keeps others waiting for long.
    #[tokio::test]
    async fn what_is_old_goes_in_parts() {
        const COUNT: usize = 4_500;
        let folder = tempfile::tempdir().unwrap();
        let urls = [
            database_of(folder.path()).await,
            Postgres::shared().await.database().await,
        ];
        for url in urls {
            let store = SqlStore::open(&url).await.unwrap();
            let ids: Vec<_> = (0..COUNT).map(|n| format!("e{n}")).collect();
            let host = |n: usize| ["a", "b", "c"][n % 3];
            let line = |n| Line::of_route(host(n), "/", Some("{}"));
            let commit = Commit {
                journal: (0..COUNT).map(line).collect(),
                event_ids: ids.iter().map(String::as_str).collect(),
                now_ms: 5,
                ..Commit::default()
            };
            let begun = store.begin(Place::default(), &[]).await.unwrap();
            let position = store.commit(begun.turn, &commit).await.unwrap();
            let young = Commit {
                event_ids: vec!["young"],
                position,
                now_ms: 100,
                ..Commit::default()
            };
            let begun = store.begin(position, &[]).await.unwrap();
            store.commit(begun.turn, &young).await.unwrap();
            let dead = "INSERT INTO tombstones (kind, id, at) \
                        SELECT 'container', event_id, at FROM inbox WHERE at = 5";
            query(dead).run(store.database()).await.unwrap();
            let history = History {
                kept: Duration::from_secs(1),
                rows_max: 1,
            };
            store.prune(KEPT_MS + 10, history).await.unwrap();
            assert_eq!(left(&store).await, 3, "the last of each");
            let count = async |sql: &'static str| -> i64 {
                query(sql).value(store.database()).await.unwrap()
            };
            assert_eq!(count("SELECT COUNT(*) FROM tombstones").await, 0);
            assert_eq!(count("SELECT COUNT(*) FROM inbox").await, 1);
        }
    }

    /// What was read of a stream that is gone says nothing about the one in its place.
    #[tokio::test]
    async fn a_late_batch_of_an_old_stream_moves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let urls = [
            database_of(folder.path()).await,
            Postgres::shared().await.database().await,
        ];
        for url in urls {
            let store = SqlStore::open(&url).await.unwrap();
            let handled = |restarts, sequence| Commit {
                positions: [("COMPUTE".to_owned(), sequence)].into(),
                floors: [("COMPUTE".to_owned(), sequence)].into(),
                restarts,
                ..Commit::default()
            };
            let marks = async |commit: Commit<'_>| {
                let begun = store.begin(Place::default(), &[]).await.unwrap();
                store.commit(begun.turn, &commit).await.unwrap();
                let marks = store.load().await.unwrap().streams["COMPUTE"];
                (marks.position, marks.floor, marks.restarts)
            };
            assert_eq!(marks(handled(Some(0), 900)).await, (900, 900, 0));
            let anew = Commit {
                stream: Some(("COMPUTE", 2)),
                restarted: Some(("COMPUTE", 1)),
                ..Commit::default()
            };
            assert_eq!(marks(anew).await, (0, 0, 1));
            assert_eq!(marks(handled(Some(0), 901)).await, (0, 0, 1));
            assert_eq!(marks(handled(Some(1), 7)).await, (7, 7, 1));
            assert_eq!(marks(handled(None, 9)).await, (9, 9, 1));
        }
    }

    /// A number alone says nothing: a database that was set back gives it to another line.
    #[tokio::test]
    async fn a_line_that_took_the_place_of_another_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let urls = [
            database_of(folder.path()).await,
            Postgres::shared().await.database().await,
        ];
        for url in urls {
            let store = SqlStore::open(&url).await.unwrap();
            let add = async |since: Place, lines: usize| {
                let commit = Commit {
                    journal: vec![Line::of_route("a", "/", None); lines],
                    ..Commit::default()
                };
                let begun = store.begin(since, &[]).await.unwrap();
                store.commit(begun.turn, &commit).await.unwrap()
            };
            let first = add(Place::default(), 1).await;
            let lost = add(first, 2).await;
            assert!(store.holds(lost).await.unwrap());
            let unmarked = Place { mark: 0, ..lost };
            assert!(
                store.holds(unmarked).await.unwrap(),
                "written by an older gateway"
            );
            // As a standby that lacks the second commit, and has grown past it.
            let sql = "UPDATE journal SET mark = 7 WHERE number > $1";
            let set_back = query(sql).bind(int(first.number)).run(&store.database);
            set_back.await.unwrap();
            for grown in [0, 1] {
                if grown > 0 {
                    add(first, grown).await;
                }
                assert!(!store.holds(lost).await.unwrap());
                assert!(store.ahead(lost).await.unwrap().entries.is_none());
                let begun = store.begin(lost, &[]).await.unwrap();
                assert!(begun.ahead.entries.is_none());
                let follows = store.ahead(first).await.unwrap().entries;
                assert_eq!(follows.map(|entries| entries.len()), Some(2 + grown));
            }
        }
    }
}
