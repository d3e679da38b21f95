//! A SQLite file of this process: one connection that writes, a few that read.
//!
//! One connection for all writers: SQLite lets them come one after the other anyway, those that
//! meet a lock sleep and try again instead of being woken, and a connection forgets all the pages
//! it has in memory when another one has written.

use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{Connection as _, Error, SqliteConnection, SqlitePool};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

use crate::checkpoint::Checkpoints;

/// How long a writer waits for the others of its process.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a reader waits for a free connection, a new one included.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that read.
const READERS_MAX: u32 = 3;

/// The connections. Clones share them.
#[derive(Clone)]
pub(crate) struct Lite {
    readers: SqlitePool,
    writer: Arc<Mutex<Option<SqliteConnection>>>,
    options: Arc<SqliteConnectOptions>,
    checkpoints: Checkpoints,
}

impl Lite {
    /// Connects the writer, so that a file that is no database shows here.
    pub(crate) async fn open(options: SqliteConnectOptions) -> sqlx::Result<Self> {
        let writer = SqliteConnection::connect_with(&options).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A connection to a file does not go away by itself.
            .test_before_acquire(false)
            // What writes here by mistake fails at once, instead of in another's way.
            .connect_lazy_with(options.clone().pragma("query_only", "ON"));
        Ok(Self {
            checkpoints: Checkpoints::of(readers.clone()),
            readers,
            writer: Arc::new(Mutex::new(Some(writer))),
            options: Arc::new(options),
        })
    }

    /// Where a statement runs that changes nothing.
    pub(crate) fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// How it is opened.
    pub(crate) fn options(&self) -> &SqliteConnectOptions {
        &self.options
    }

    /// The writer's connection, for the caller alone.
    pub(crate) async fn turn(&self) -> sqlx::Result<Turn> {
        let turn = timeout(TURN_TIMEOUT, Arc::clone(&self.writer).lock_owned());
        let mut connection = turn.await.map_err(|_| Error::PoolTimedOut)?;
        if self.readers.is_closed() {
            return Err(Error::PoolClosed);
        }
        if connection.is_none() {
            *connection = Some(SqliteConnection::connect_with(&self.options).await?);
        }
        Ok(Turn {
            connection: Some(connection),
            is_open: false,
            checkpoints: self.checkpoints.clone(),
        })
    }

    /// Closes them; waits for what is under way.
    pub(crate) async fn close(&self) {
        self.readers.close().await;
        if let Some(writer) = self.writer.lock().await.take() {
            // The file is as good as it was without: the next one to open it goes on from the log.
            let _ = writer.close().await;
        }
    }
}

/// The writer's connection. Dropped within a transaction, that has not happened.
pub(crate) struct Turn {
    /// None once it is given back.
    connection: Option<OwnedMutexGuard<Option<SqliteConnection>>>,
    /// Whether a transaction may have begun.
    is_open: bool,
    checkpoints: Checkpoints,
}

impl Turn {
    /// Begins a transaction with the write lock: one that starts by reading and writes later
    /// fails without a wait when another process wrote in between.
    pub(crate) async fn begin(&mut self) -> sqlx::Result<()> {
        // Before it is sent: whoever gives up waiting for it must end it.
        self.is_open = true;
        sqlx::query("BEGIN IMMEDIATE")
            .execute(self.connection()?)
            .await
            .map(drop)
    }

    /// Ends it, all of it so.
    pub(crate) async fn commit(mut self) -> sqlx::Result<()> {
        sqlx::query("COMMIT").execute(self.connection()?).await?;
        self.committed();
        Ok(())
    }

    /// It has ended, all of it so.
    pub(crate) fn committed(&mut self) {
        self.is_open = false;
        self.checkpoints.committed();
    }

    pub(crate) fn connection(&mut self) -> sqlx::Result<&mut SqliteConnection> {
        let connection = self.connection.as_mut().and_then(|held| held.as_mut());
        connection.ok_or(Error::WorkerCrashed)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(mut held) = self.connection.take().filter(|_| self.is_open) else {
            return;
        };
        let Ok(runtime) = Handle::try_current() else {
            // Closed, it forgets its transaction; the next writer connects anew.
            *held = None;
            return;
        };
        runtime.spawn(async move {
            if let Some(connection) = held.as_mut() {
                let ended = sqlx::query("ROLLBACK").execute(connection);
                // Whatever state it is in: the next writer connects anew.
                if ended.await.is_err() {
                    *held = None;
                }
            }
        });
    }
}
