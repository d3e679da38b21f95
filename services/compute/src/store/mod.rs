//! The database: containers, keys, ingress requests, users as far as we know
//! them, inbox and outbox.
//!
//! Every change writes its rows and its outbox entries in one transaction, so an
//! event exists exactly when its change does. Nothing here knows HTTP, NATS or
//! processes.

mod addresses;
mod containers;
mod ingress;
mod keys;
mod projections;
mod runs;
mod snapshot;
mod users;

pub(crate) use edd_service::store::now_ms;
use edd_service::store::{Database, StoreError};
use edd_store::{DatabaseUrl, Schema};

pub use self::{
    containers::{Container, Creation, NewContainer, Status, Toggle},
    ingress::{IngressRule, RuleChange, RuleNews},
    keys::{KeyCreation, SshKey},
    runs::Start,
    users::{UserChange, UserNews},
};

/// The schema. Released steps never change.
const SCHEMA: Schema = Schema {
    postgres: &[
        (
            1,
            "containers, keys, outbox",
            include_str!("../../migrations/postgres/0001_containers_keys_outbox.sql"),
        ),
        (
            2,
            "event store",
            include_str!("../../migrations/postgres/0002_event_store.sql"),
        ),
    ],
    sqlite: &[
        (
            1,
            "containers, keys, outbox",
            include_str!("../../migrations/sqlite/0001_containers_keys_outbox.sql"),
        ),
        (
            2,
            "event store",
            include_str!("../../migrations/sqlite/0002_event_store.sql"),
        ),
    ],
};

/// The database of this service. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
}

impl Store {
    /// Opens the database and brings its schema up to date. Without `events`,
    /// changes write no outbox entries.
    ///
    /// # Errors
    /// The file cannot be opened or migrated.
    pub async fn open(url: &DatabaseUrl, events: bool) -> Result<Self, StoreError> {
        let database = Database::open(url, SCHEMA, events).await?;
        Ok(Self { database })
    }

    /// Whether events are archived as well.
    #[must_use]
    pub fn with_archive(mut self, archive: bool) -> Self {
        self.database = self.database.with_archive(archive);
        self
    }

    /// The database below, for relay and readiness.
    pub fn database(&self) -> &Database {
        &self.database
    }
}
