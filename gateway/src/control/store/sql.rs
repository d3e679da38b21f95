//! gateway_db on either engine.

use std::collections::HashSet;
use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edd_store::{Database, DatabaseUrl, Rows, Schema, query};
use serde_json::json;

use super::{Commit, GatewayStore, KEPT_MS, StoreError, Stored, int};
use super::{load, tickets, write};
use crate::tls::TicketKey;

/// The schema. Released steps never change.
const SCHEMA: Schema = Schema {
    postgres: &[(
        1,
        "gateway",
        include_str!("../../../migrations/postgres/0001_gateway.sql"),
    )],
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
    ],
};

/// Longest wait for one operation; the lock waits of the engines are shorter.
const TIMEOUT: Duration = Duration::from_secs(10);

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

    /// The connections, for the outbox's relay.
    pub fn database(&self) -> &Database {
        &self.database
    }
}

impl GatewayStore for SqlStore {
    async fn load(&self) -> Result<Stored, StoreError> {
        within(LOAD_TIMEOUT, load::load(&self.database)).await
    }

    async fn seen(&self, event_ids: &[&str]) -> Result<HashSet<String>, StoreError> {
        let ids: Rows = event_ids.iter().map(|id| json!([id])).collect();
        let sql = "SELECT event_id FROM inbox WHERE event_id IN (SELECT value ->> 0 FROM {rows})";
        let seen: Vec<String> = bounded(
            TIMEOUT,
            ids.query(self.database.engine(), sql)
                .values(&self.database),
        )
        .await?;
        Ok(seen.into_iter().collect())
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<(), StoreError> {
        within(TIMEOUT, write::commit(&self.database, commit)).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let now = identity(&self.database, self.path.as_deref()).await?;
        if now != self.identity {
            return Err(StoreError::Gone);
        }
        probe(&self.database).await
    }

    async fn share_ticket_keys(
        &self,
        offered: &[TicketKey],
        oldest: u64,
    ) -> Result<Vec<TicketKey>, StoreError> {
        within(TIMEOUT, tickets::share(&self.database, offered, oldest)).await
    }

    async fn prune(&self, now_ms: u64) -> Result<(), StoreError> {
        let before = int(now_ms.saturating_sub(KEPT_MS));
        for delete in [
            "DELETE FROM inbox WHERE at < $1",
            "DELETE FROM tombstones WHERE at < $1",
        ] {
            bounded(TIMEOUT, query(delete).bind(before).run(&self.database)).await?;
        }
        Ok(())
    }
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
