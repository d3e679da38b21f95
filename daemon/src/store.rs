//! Opening SQLite the way every service here wants it.
//!
//! Write-ahead log, so that readers never wait for the writer; a five-second
//! wait for the write lock; foreign keys on; deleted rows overwritten. Schemas and
//! queries belong to the services.

use std::{
    fmt, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, SqlStr, Sqlite, SqlitePool, Transaction,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// How long a statement waits for the write lock of another connection.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a caller waits for a free connection of the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections of a pool. SQLite has one writer; the others serve readers.
const CONNECTIONS_MAX: u32 = 4;

/// A checked `--database-url`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DatabaseUrl {
    path: PathBuf,
}

/// A `--database-url` that cannot be used.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// PostgreSQL is designed for and comes later.
    #[error("PostgreSQL is not supported yet, use sqlite://PATH")]
    Postgres,
    /// Neither SQLite nor PostgreSQL.
    #[error("not a database URL such as sqlite://data/name.db")]
    Scheme,
    /// `sqlite://` without a file, in memory, or with parameters.
    #[error("sqlite:// needs the plain path of a file")]
    Path,
}

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
    /// SQLite refuses the file: locked, unreadable, no database.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
}

impl DatabaseUrl {
    /// The file of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlite://{}", self.path.display())
    }
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            return Err(DatabaseUrlError::Postgres);
        }
        let path = url
            .strip_prefix("sqlite://")
            .ok_or(DatabaseUrlError::Scheme)?;
        if path.is_empty() || path.ends_with('/') || path.contains([':', '?', '#', '\0']) {
            return Err(DatabaseUrlError::Path);
        }
        Ok(Self {
            path: PathBuf::from(path),
        })
    }
}

/// Opens the database, creating its folder and file (mode 0600) when absent.
///
/// One connection is made at once, so that a broken file shows here. A power
/// loss may take the last commits back (`synchronous = NORMAL`): for those who
/// notice it and read them again from the streams.
///
/// # Errors
/// The folder or file cannot be made, or SQLite refuses it.
pub async fn open(url: &DatabaseUrl) -> Result<SqlitePool, OpenError> {
    open_with(url, SqliteSynchronous::Normal).await
}

/// Like [`open`], but what is committed survives a power loss (`synchronous =
/// FULL`): for those whose rows are the only record there is.
///
/// # Errors
/// As [`open`].
pub async fn open_durable(url: &DatabaseUrl) -> Result<SqlitePool, OpenError> {
    open_with(url, SqliteSynchronous::Full).await
}

async fn open_with(
    url: &DatabaseUrl,
    synchronous: SqliteSynchronous,
) -> Result<SqlitePool, OpenError> {
    create(&url.path)?;
    let options = SqliteConnectOptions::new()
        .filename(&url.path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        // What is deleted is overwritten where that costs no further page.
        .pragma("secure_delete", "FAST")
        .disable_statement_logging();
    SqlitePoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options)
        .await
        .map_err(|source| OpenError::Open {
            path: url.path.clone(),
            source,
        })
}

/// One step of a schema: its number, its name, its SQL (by `include_str!`).
///
/// Released steps never change, new ones take the next number: what a database
/// holds is compared with them by checksum.
pub type SchemaStep = (i64, &'static str, &'static str);

/// Brings the schema up to date: runs the steps that the database lacks, each in
/// its own transaction, in the order of their numbers.
///
/// # Errors
/// A step fails, a step in the database is unknown here (it was written by a
/// newer version) or differs from ours.
pub async fn migrate(pool: &SqlitePool, steps: &[SchemaStep]) -> Result<(), MigrateError> {
    let migrations = steps.iter().map(|&(number, name, sql)| {
        let sql = SqlStr::from_static(sql);
        Migration::new(number, name.into(), MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(migrations.collect())
        .run(pool)
        .await
}

/// Begins a transaction that will write.
///
/// It takes the write lock at once. A transaction that starts by reading and
/// writes later fails with "database is locked", without the five-second wait,
/// whenever another one wrote in between.
pub async fn begin_write(pool: &SqlitePool) -> sqlx::Result<Transaction<'static, Sqlite>> {
    pool.begin_with("BEGIN IMMEDIATE").await
}

/// Makes folder and file. The file holds secrets (password hashes, keys), so it
/// is its owner's alone; SQLite gives its side files the same mode.
fn create(path: &Path) -> Result<(), OpenError> {
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::create_dir_all(parent).map_err(|source| OpenError::Create {
            path: parent.to_owned(),
            source,
        })?;
    }
    let created = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(drop);
    match created {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(OpenError::Create {
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_plain_sqlite_paths_are_taken() {
        let parse = |url: &str| url.parse::<DatabaseUrl>();
        assert_eq!(
            parse("sqlite://data/a.db").unwrap().path(),
            Path::new("data/a.db")
        );
        assert_eq!(
            parse("sqlite:///var/a.db").unwrap().path(),
            Path::new("/var/a.db")
        );
        assert_eq!(parse("postgres://u:p@h/d"), Err(DatabaseUrlError::Postgres));
        assert_eq!(parse("postgresql://h/d"), Err(DatabaseUrlError::Postgres));
        for url in ["", "data/a.db", "mysql://h/d", "sqlite:a.db"] {
            assert_eq!(parse(url), Err(DatabaseUrlError::Scheme), "{url}");
        }
        for url in [
            "sqlite://",
            "sqlite://:memory:",
            "sqlite://a.db?mode=ro",
            "sqlite://a/",
        ] {
            assert_eq!(parse(url), Err(DatabaseUrlError::Path), "{url}");
        }
    }

    #[tokio::test]
    async fn creates_folder_and_private_file_and_reopens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/a.db");
        let url: DatabaseUrl = format!("sqlite://{}", path.display()).parse().unwrap();
        for _ in 0..2 {
            let pool = open(&url).await.unwrap();
            let mut write = begin_write(&pool).await.unwrap();
            sqlx::query("CREATE TABLE IF NOT EXISTS t (x INTEGER)")
                .execute(&mut *write)
                .await
                .unwrap();
            write.commit().await.unwrap();
            pool.close().await;
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn schema_steps_run_once_in_order_and_never_change() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("a.db").display());
        let pool = open(&url.parse().unwrap()).await.unwrap();
        let first = (
            1,
            "first",
            "CREATE TABLE t (x INTEGER); INSERT INTO t VALUES (1)",
        );
        let second = (2, "second", "INSERT INTO t SELECT x + 1 FROM t");
        migrate(&pool, &[first]).await.unwrap();
        migrate(&pool, &[second, first]).await.unwrap();
        migrate(&pool, &[first, second]).await.unwrap();
        let rows: Vec<i64> = sqlx::query_scalar("SELECT x FROM t ORDER BY x")
            .fetch_all(&pool)
            .await
            .unwrap();
        assert_eq!(rows, [1, 2]);
        assert!(
            migrate(&pool, &[first]).await.is_err(),
            "written by a newer version"
        );
        let changed = (1, "first", "CREATE TABLE u (x INTEGER)");
        assert!(
            migrate(&pool, &[changed, second]).await.is_err(),
            "a step that changed"
        );
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        std::fs::write(&path, "this is certainly not a database".repeat(100)).unwrap();
        let url: DatabaseUrl = format!("sqlite://{}", path.display()).parse().unwrap();
        let error = open(&url).await.unwrap_err();
        assert!(error.to_string().contains("a.db"), "{error}");
    }
}
