//! The database: users, sessions and the outbox.
//!
//! Every change writes its rows and its outbox entries in one transaction, so an
//! event exists exactly when its change does. Nothing here knows HTTP or NATS.

mod sagas;
mod sessions;
mod users;

pub(crate) use edd_service::store::now_ms;
use edd_service::store::{Database, StoreError};
use std::time::Duration;

use edd_store::{DatabaseUrl, Schema};

pub use self::{
    sessions::{Authenticated, Session},
    users::{Deletion, NewUser, Registration, User},
};

/// The schema. Released steps never change.
const SCHEMA: Schema = Schema {
    postgres: &[
        (
            1,
            "users, sessions, outbox",
            include_str!("../../migrations/postgres/0001_users_sessions_outbox.sql"),
        ),
        (
            2,
            "event store, inbox, sagas",
            include_str!("../../migrations/postgres/0002_event_store_inbox_sagas.sql"),
        ),
    ],
    sqlite: &[
        (
            1,
            "users, sessions, outbox",
            include_str!("../../migrations/sqlite/0001_users_sessions_outbox.sql"),
        ),
        (
            2,
            "deleted usernames",
            include_str!("../../migrations/sqlite/0002_deleted_usernames.sql"),
        ),
        (
            3,
            "deleted users",
            include_str!("../../migrations/sqlite/0003_deleted_users.sql"),
        ),
        (
            4,
            "event store, inbox, sagas",
            include_str!("../../migrations/sqlite/0004_event_store_inbox_sagas.sql"),
        ),
    ],
};

/// The database of this service.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
    /// How long sagas wait for a confirmation; none: there are none.
    saga_timeout: Option<Duration>,
    undo_registrations: bool,
}

impl Store {
    /// Opens the database and brings its schema up to date. Without `events`,
    /// changes write no outbox entries.
    ///
    /// # Errors
    /// The file cannot be opened or migrated.
    pub async fn open(url: &DatabaseUrl, events: bool) -> Result<Self, StoreError> {
        let database = Database::open(url, SCHEMA, events).await?;
        Ok(Self {
            database,
            saga_timeout: None,
            undo_registrations: false,
        })
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
