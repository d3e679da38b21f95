//! Opening either engine the way every service here wants it.
//!
//! SQLite: write-ahead log, so that readers never wait for the writer; a
//! five-second wait for the write lock; foreign keys on; deleted rows overwritten; a file
//! that is its owner's alone. PostgreSQL: bounded waits on the server's side as well, so that
//! a statement whose caller has given up does not hold its locks.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, PgPool};

use crate::checkpoint::LOG_PAGES_MAX;
use crate::sqlite::Lite;

/// How long a statement waits for the write lock of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a caller waits for a free connection of the pool, a new one included.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections of a pool. One writes at a time; the others serve readers.
const CONNECTIONS_MAX: u32 = 4;

/// PostgreSQL gives a statement up after this.
const STATEMENT_TIMEOUT: &str = "60s";

/// Or, when it is waiting for a lock, after this.
const LOCK_TIMEOUT: &str = "5s";

/// And a transaction whose client says nothing any more: writers wait for it.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "3s";

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder or the file cannot be made.
    #[error("cannot create {}", path.display())]
    Create {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Locked, unreadable, no database; unreachable, refused.
    #[error("cannot open {database}")]
    Open {
        /// The database, without a password.
        database: String,
        /// What the engine says.
        source: sqlx::Error,
    },
}

pub(crate) async fn sqlite(path: &Path, synchronous: SqliteSynchronous) -> Result<Lite, OpenError> {
    create(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        // What is deleted is overwritten where that costs no further page.
        .pragma("secure_delete", "FAST")
        .pragma("wal_autocheckpoint", LOG_PAGES_MAX)
        .disable_statement_logging();
    Lite::open(options).await.map_err(|source| OpenError::Open {
        database: path.display().to_string(),
        source,
    })
}

pub(crate) async fn postgres(
    options: &PgConnectOptions,
    database: String,
) -> Result<PgPool, OpenError> {
    let options = options
        .clone()
        .options([
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("lock_timeout", LOCK_TIMEOUT),
            (
                "idle_in_transaction_session_timeout",
                IDLE_IN_TRANSACTION_TIMEOUT,
            ),
            // A plan is made for the table as it is: one that was made when it was empty reads
            // all of it.
            ("plan_cache_mode", "force_custom_plan"),
        ])
        .disable_statement_logging();
    PgPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options)
        .await
        .map_err(|source| OpenError::Open { database, source })
}

/// Makes folder and file. The file holds secrets (password hashes, keys), so it
/// is its owner's alone; SQLite gives its side files the same mode.
fn create(path: &Path) -> Result<(), OpenError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Create { path, source }
    };
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        fs::create_dir_all(parent).map_err(failed(parent))?;
    }
    let created = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match created {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(path)(error)),
        _ => Ok(()),
    }
}
