//! The database: users, sessions and the outbox.
//!
//! Every change writes its rows and its outbox entries in one transaction, so an
//! event exists exactly when its change does. Nothing here knows HTTP or NATS.

mod sessions;
mod users;

use std::time::{SystemTime, UNIX_EPOCH};

use edd_daemon::store::{DatabaseUrl, OpenError, SchemaStep, migrate};
use edd_events::outbox::{self, OutboxEntry};
use sqlx::{SqliteConnection, SqlitePool, migrate::MigrateError};

pub use self::{
    sessions::{Authenticated, Session},
    users::{Deletion, NewUser, Registration, User},
};

/// The schema. Released steps never change.
const SCHEMA: &[SchemaStep] = &[(
    1,
    "users, sessions, outbox",
    include_str!("../../migrations/0001_users_sessions_outbox.sql"),
)];

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

/// The database of this service.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
    events: bool,
}

impl Store {
    /// Opens the database and brings its schema up to date. Without `events`,
    /// changes write no outbox entries.
    ///
    /// # Errors
    /// The file cannot be opened or migrated.
    pub async fn open(url: &DatabaseUrl, events: bool) -> Result<Self, StoreError> {
        let pool = edd_daemon::store::open_durable(url).await?;
        migrate(&pool, SCHEMA)
            .await
            .map_err(|source| StoreError::Migrate {
                url: url.clone(),
                source,
            })?;
        Ok(Self { pool, events })
    }

    /// The pool, for the relay.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> sqlx::Result<()> {
        sqlx::query("SELECT 1").execute(&self.pool).await.map(drop)
    }

    /// Closes the database; waits for what is under way.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Puts an entry into the outbox, within the caller's transaction.
    async fn announce(
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
pub(crate) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}
