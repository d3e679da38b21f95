//! The database: users, sessions and the outbox.
//!
//! Every change writes its rows and its outbox entries in one transaction, so an
//! event exists exactly when its change does. Nothing here knows HTTP or NATS.

mod sessions;
mod users;

use edd_daemon::store::{DatabaseUrl, SchemaStep};
pub(crate) use edd_service::store::now_ms;
use edd_service::store::{Database, StoreError};

pub use self::{
    sessions::{Authenticated, Session},
    users::{Deletion, NewUser, Registration, User},
};

/// The schema. Released steps never change.
const SCHEMA: &[SchemaStep] = &[
    (
        1,
        "users, sessions, outbox",
        include_str!("../../migrations/0001_users_sessions_outbox.sql"),
    ),
    (
        2,
        "deleted usernames",
        include_str!("../../migrations/0002_deleted_usernames.sql"),
    ),
];

/// The database of this service.
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

    /// The database below, for relay and readiness.
    pub fn database(&self) -> &Database {
        &self.database
    }
}
