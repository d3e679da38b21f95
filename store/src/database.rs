//! The connections, and transactions on them.

use std::fmt;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use sqlx::sqlite::{Sqlite, SqliteSynchronous};
use tokio::time::timeout;

use crate::open::{self, OpenError};
use crate::postgres::Held;
use crate::query;
use crate::sqlite::{Lite, Turn};
use crate::url::DatabaseUrl;

/// Begins a transaction in PostgreSQL with the advisory lock that makes writers wait for each
/// other. It belongs to the database of the connection, so one number does for all services.
const BEGIN: &str = "BEGIN; SELECT pg_advisory_xact_lock(7306074586107505012)";

/// How long the log is tried to be cut, and the pause between.
const FORGET_MAX: Duration = Duration::from_secs(2);
const FORGET_PAUSE: Duration = Duration::from_millis(20);

/// For PostgreSQL to answer what was asked last.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Which engine it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    /// A server, shared by replicas.
    Postgres,
    /// A file of this process.
    Sqlite,
}

/// An open database. Clones share its connections.
#[derive(Clone)]
pub struct Database(pub(crate) Pool);

#[derive(Clone)]
pub(crate) enum Pool {
    Postgres(PgPool),
    Sqlite(Lite),
}

/// A transaction that may write; dropped without [`Transaction::commit`] it has not happened.
pub struct Transaction(pub(crate) Inner);

pub(crate) enum Inner {
    Postgres(Held),
    Sqlite(Turn),
    SqliteRead(sqlx::Transaction<'static, Sqlite>),
}

impl Database {
    /// Opens it; SQLite's folder and file (mode 0600) are made when absent.
    ///
    /// One connection is made at once, so that a broken file or an unreachable
    /// server shows here. With SQLite a power loss may take the last commits back
    /// (`synchronous = NORMAL`): for those who notice it and read them again from
    /// the streams. PostgreSQL does what its server is told.
    ///
    /// # Errors
    /// The folder or file cannot be made, or the engine refuses.
    pub async fn open(url: &DatabaseUrl) -> Result<Self, OpenError> {
        Self::open_with(url, SqliteSynchronous::Normal).await
    }

    /// Like [`Database::open`], but what is committed survives a power loss
    /// (`synchronous = FULL`): for those whose rows are the only record there is.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub async fn open_durable(url: &DatabaseUrl) -> Result<Self, OpenError> {
        Self::open_with(url, SqliteSynchronous::Full).await
    }

    async fn open_with(
        url: &DatabaseUrl,
        synchronous: SqliteSynchronous,
    ) -> Result<Self, OpenError> {
        Ok(Self(match url {
            DatabaseUrl::Postgres(options) => {
                Pool::Postgres(open::postgres(options, url.to_string()).await?)
            }
            DatabaseUrl::Sqlite(path) => Pool::Sqlite(open::sqlite(path, synchronous).await?),
        }))
    }

    /// Which engine it is.
    pub fn engine(&self) -> Engine {
        match &self.0 {
            Pool::Postgres(_) => Engine::Postgres,
            Pool::Sqlite(_) => Engine::Sqlite,
        }
    }

    /// Begins a transaction that will write, as the only one in this database.
    ///
    /// With SQLite it takes the write lock. With PostgreSQL it takes an advisory
    /// lock: otherwise two that read before they write would not see each other,
    /// and rows numbered in ascending order would become visible out of it.
    ///
    /// # Errors
    /// The database does not answer, or another writer does not end in time.
    pub async fn begin(&self) -> sqlx::Result<Transaction> {
        Ok(Transaction(match &self.0 {
            Pool::Postgres(pool) => Inner::Postgres(Held::begin(pool, BEGIN).await?),
            Pool::Sqlite(file) => {
                let mut turn = file.turn().await?;
                turn.begin().await?;
                Inner::Sqlite(turn)
            }
        }))
    }

    /// Begins a transaction that only reads: all its statements see the same instant.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn begin_read(&self) -> sqlx::Result<Transaction> {
        Ok(Transaction(match &self.0 {
            Pool::Postgres(pool) => {
                let sql = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                Inner::Postgres(Held::begin(pool, sql).await?)
            }
            Pool::Sqlite(file) => Inner::SqliteRead(file.readers().begin().await?),
        }))
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> sqlx::Result<()> {
        query("SELECT 1").run(self).await.map(drop)
    }

    /// Cuts the write-ahead log of a file, which still holds what was deleted; true:
    /// it is cut.
    ///
    /// Whoever reads, writes or copies the log at the moment is in its way: it tries
    /// again for 2 s, beside what one attempt waits. After that the log is written
    /// over in time. PostgreSQL's log is its operator's.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn forget_log(&self) -> sqlx::Result<bool> {
        let Pool::Sqlite(_) = &self.0 else {
            return Ok(true);
        };
        let begun = Instant::now();
        loop {
            // Its first column: somebody was in the way.
            let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
            let busy: i64 = query(sql).value(self).await?;
            if busy == 0 {
                return Ok(true);
            }
            if begun.elapsed() > FORGET_MAX {
                return Ok(false);
            }
            tokio::time::sleep(FORGET_PAUSE).await;
        }
    }

    /// Closes the connections; waits for what is under way, on PostgreSQL for 5 s: a server that has
    /// vanished never answers what was asked last.
    pub async fn close(&self) {
        match &self.0 {
            Pool::Postgres(pool) => {
                // Nothing begins any more, whether it is waited for or not.
                let _ = timeout(CLOSE_TIMEOUT, pool.close()).await;
            }
            Pool::Sqlite(file) => file.close().await,
        }
    }
}

impl Transaction {
    /// Makes it all so.
    ///
    /// # Errors
    /// It is not known whether it happened.
    pub async fn commit(self) -> sqlx::Result<()> {
        match self.0 {
            Inner::Postgres(transaction) => transaction.commit().await,
            Inner::Sqlite(turn) => turn.commit().await,
            Inner::SqliteRead(transaction) => transaction.commit().await,
        }
    }

    /// Which engine it runs on.
    pub fn engine(&self) -> Engine {
        match &self.0 {
            Inner::Postgres(_) => Engine::Postgres,
            Inner::Sqlite(_) | Inner::SqliteRead(_) => Engine::Sqlite,
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Database").field(&self.engine()).finish()
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Transaction").field(&self.engine()).finish()
    }
}
