//! The database under a service's own store: opened, migrated, with an outbox.

use std::time::{SystemTime, UNIX_EPOCH};

use edd_daemon::store::{DatabaseUrl, OpenError, SchemaStep, migrate, open_durable};
use edd_events::outbox::{self, OutboxEntry};
use sqlx::{SqliteConnection, SqlitePool, migrate::MigrateError};

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its schema is of another version, or cannot be brought to ours.
    #[error("cannot migrate {url}")]
    Migrate {
        /// The database.
        url: DatabaseUrl,
        /// What the migrator says.
        source: MigrateError,
    },
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// The database of one service. Clones share it.
#[derive(Clone, Debug)]
pub struct Database {
    pool: SqlitePool,
    events: bool,
}

impl Database {
    /// Opens the database and brings its schema up to date. Without `events`,
    /// changes write no outbox entries.
    ///
    /// # Errors
    /// The file cannot be opened or migrated.
    pub async fn open(
        url: &DatabaseUrl,
        schema: &[SchemaStep],
        events: bool,
    ) -> Result<Self, StoreError> {
        let pool = open_durable(url).await?;
        migrate(&pool, schema)
            .await
            .map_err(|source| StoreError::Migrate {
                url: url.clone(),
                source,
            })?;
        Ok(Self { pool, events })
    }

    /// The connections.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Whether changes are written as events.
    pub fn events(&self) -> bool {
        self.events
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> sqlx::Result<()> {
        sqlx::query("SELECT 1").execute(&self.pool).await.map(drop)
    }

    /// Closes the database; waits for what is under way.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Puts an entry into the outbox, within the caller's transaction.
    ///
    /// # Errors
    /// The entry cannot be written; the transaction is of no use then.
    pub async fn announce(
        &self,
        connection: &mut SqliteConnection,
        entry: &OutboxEntry,
    ) -> sqlx::Result<()> {
        if self.events {
            outbox::insert(connection, entry).await
        } else {
            Ok(())
        }
    }
}

/// Now, in milliseconds since the Unix epoch.
pub fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}
