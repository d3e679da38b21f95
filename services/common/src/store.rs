//! The database under a service's own store: opened, migrated, with an outbox.

use std::time::{SystemTime, UNIX_EPOCH};

use edd_events::{
    consumer::{Unavailable, Verdict},
    event_store::{self, AppendError, Expected},
    inbox,
    outbox::{self, OutboxEntry},
    trial,
};
use edd_store::{DatabaseUrl, MigrateError, OpenError, Schema, Transaction, is_about_values};

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
    sql: edd_store::Database,
    events: bool,
    archive: bool,
    letters: bool,
}

impl Database {
    /// Opens the database and brings its schema up to date. Without `events`,
    /// changes write no outbox entries.
    ///
    /// # Errors
    /// The database cannot be opened or migrated.
    pub async fn open(url: &DatabaseUrl, schema: Schema, events: bool) -> Result<Self, StoreError> {
        let sql = edd_store::Database::open_durable(url).await?;
        sql.migrate(schema)
            .await
            .map_err(|source| StoreError::Migrate {
                url: url.clone(),
                source,
            })?;
        Ok(Self {
            sql,
            events,
            archive: events,
            letters: true,
        })
    }

    /// Whether events (unless there are none) and dead letters are archived as well. They are,
    /// when nothing else is said.
    #[must_use]
    pub fn with_archive(mut self, archive: bool) -> Self {
        self.archive = archive && self.events;
        self.letters = archive;
        self
    }

    /// Where consumers archive the dead letters that come by; none: nowhere.
    pub fn archive_of_letters(&self) -> Option<edd_store::Database> {
        self.letters.then(|| self.sql.clone())
    }

    /// Whether events are archived.
    pub fn archives(&self) -> bool {
        self.archive
    }

    /// Where statements run that need no transaction.
    pub fn sql(&self) -> &edd_store::Database {
        &self.sql
    }

    /// Begins a transaction that will write, as the only one.
    ///
    /// # Errors
    /// See [`edd_store::Database::begin`].
    pub async fn begin(&self) -> edd_store::Result<Transaction> {
        self.sql.begin().await
    }

    /// Whether changes are written as events.
    pub fn events(&self) -> bool {
        self.events
    }

    /// Puts an entry into the outbox and the archive, within the caller's transaction.
    ///
    /// # Errors
    /// The entry cannot be written; the transaction is of no use then.
    pub async fn announce(
        &self,
        tx: &mut Transaction,
        entry: &OutboxEntry,
    ) -> edd_store::Result<()> {
        if self.archive {
            match event_store::append(tx, entry, Expected::Any).await {
                Ok(()) => {}
                Err(AppendError::Database(error)) => return Err(error),
                Err(error) => return Err(edd_store::Error::Encode(error.into())),
            }
        }
        if self.events {
            outbox::insert(tx, entry).await?;
        }
        Ok(())
    }

    /// What becomes of an event that the database failed on. A row that cannot be read, or a value
    /// that cannot be stored, is this event's trouble: it comes again, is a dead letter at last,
    /// and holds up no other.
    ///
    /// # Errors
    /// All else is the world's fault, also when no event could be stored: consumption pauses.
    pub async fn failed_on(&self, error: &edd_store::Error) -> Result<Verdict, Unavailable> {
        let reason = format!("database: {error}");
        if !is_about_values(error) {
            return Err(Unavailable(reason));
        }
        match self.try_out().await {
            Ok(()) => Ok(Verdict::Retry(reason)),
            Err(error) => Err(Unavailable(format!("{reason}; and for any event: {error}"))),
        }
    }

    /// Writes what every event writes, and takes it back.
    async fn try_out(&self) -> edd_store::Result<()> {
        let entry = trial::entry();
        let mut tx = self.begin().await?;
        inbox::first_time(&mut tx, &entry.event_id).await?;
        self.announce(&mut tx, &entry).await
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
