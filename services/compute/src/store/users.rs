//! Users as far as auth told us: a cache of names, and tombstones.

use edd_events::{
    envelope::Cause,
    event::{Event, Payload},
    event_store, inbox,
};
use edd_store::{Transaction, query};

use super::{Container, Store, now_ms};
use crate::events::outgoing;

/// Longest name that is cached, in bytes; auth allows less.
const NAME_LEN_MAX: usize = 1024;

/// News about a user.
#[derive(Clone, Debug)]
pub enum UserChange {
    /// Registered, or changed the profile.
    Upserted {
        /// Unique only within auth.
        username: String,
        /// What the user is called.
        display_name: String,
    },
    /// Gone for good.
    Deleted {
        /// The name it had.
        username: String,
    },
}

impl UserChange {
    /// What an event says about a user, and about whom.
    pub(crate) fn of(event: &Event) -> Option<(i64, Self)> {
        let upserted = |username: &str, display_name: &str| Self::Upserted {
            username: bounded(username),
            display_name: bounded(display_name),
        };
        Some(match &event.payload {
            Payload::UserCreated(user) => {
                (user.user_id, upserted(&user.username, &user.display_name))
            }
            Payload::UserUpdated(user) => {
                (user.user_id, upserted(&user.username, &user.display_name))
            }
            Payload::UserDeleted(user) => {
                let username = bounded(&user.username);
                (user.user_id, Self::Deleted { username })
            }
            _ => return None,
        })
    }
}

fn bounded(name: &str) -> String {
    name.get(..name.floor_char_boundary(NAME_LEN_MAX))
        .unwrap_or_default()
        .to_owned()
}

/// What came of news about a user.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UserNews {
    /// It is in effect. Containers whose processes have to end.
    Applied(Vec<String>),
    /// Known, older than what is known, or about somebody who is gone.
    Stale,
}

impl Store {
    /// Applies one event about a user, once, in one transaction.
    pub async fn apply_user(
        &self,
        event: &Event,
        user_id: i64,
        change: &UserChange,
    ) -> sqlx::Result<UserNews> {
        let (version, cause) = (event.version, &Cause::of(event));
        let mut tx = self.database.begin().await?;
        if !inbox::first_time(&mut tx, &event.event_id).await? {
            return Ok(UserNews::Stale);
        }
        if self.database.archives() {
            event_store::keep(&mut tx, event).await?;
        }
        let (news, confirmation) = match change {
            UserChange::Upserted {
                username,
                display_name,
            } => (
                upsert(&mut tx, user_id, version, username, display_name).await?,
                outgoing::user_cached(user_id, version, cause),
            ),
            UserChange::Deleted { username } => (
                self.delete_user(&mut tx, user_id, version, username, cause)
                    .await?,
                outgoing::user_purged(user_id, version, cause),
            ),
        };
        // Also when it was known before: auth asks again if it did not hear of it.
        self.database.announce(&mut tx, &confirmation).await?;
        // Also when stale: the same event need not be looked at again.
        tx.commit().await?;
        Ok(news)
    }

    /// The tombstone, and the end of all that was the user's.
    async fn delete_user(
        &self,
        tx: &mut Transaction,
        user_id: i64,
        version: i64,
        username: &str,
        cause: &Cause,
    ) -> sqlx::Result<UserNews> {
        let buried = bury(&mut *tx, user_id, version, username).await?;
        let containers: Vec<Container> =
            query("SELECT * FROM containers WHERE user_id = $1 ORDER BY id")
                .bind(user_id)
                .all(&mut *tx)
                .await?;
        for container in &containers {
            self.remove(tx, container, cause).await?;
        }
        let mut keys: Vec<i64> = query("DELETE FROM ssh_keys WHERE user_id = $1 RETURNING id")
            .bind(user_id)
            .values(&mut *tx)
            .await?;
        keys.sort_unstable();
        for key in &keys {
            self.database
                .announce(tx, &outgoing::key_deleted(*key, user_id, cause))
                .await?;
        }
        if buried == 0 && containers.is_empty() && keys.is_empty() {
            return Ok(UserNews::Stale);
        }
        Ok(UserNews::Applied(
            containers
                .into_iter()
                .map(|container| container.id)
                .collect(),
        ))
    }
}

/// The tombstone; 0: it was there.
pub(super) async fn bury(
    tx: &mut Transaction,
    user_id: i64,
    version: i64,
    username: &str,
) -> sqlx::Result<u64> {
    query(
        "INSERT INTO user_cache (user_id, username, display_name, version, deleted_at) \
         VALUES ($1, $2, '', $3, $4) ON CONFLICT (user_id) DO UPDATE SET \
         version = CASE WHEN user_cache.version > excluded.version THEN user_cache.version \
         ELSE excluded.version END, deleted_at = excluded.deleted_at \
         WHERE user_cache.deleted_at IS NULL",
    )
    .bind(user_id)
    .bind(username)
    .bind(version)
    .bind(now_ms())
    .run(tx)
    .await
}

/// Version 0 says nothing about order: the stream's order decides.
pub(super) async fn upsert(
    tx: &mut Transaction,
    user_id: i64,
    version: i64,
    username: &str,
    display_name: &str,
) -> sqlx::Result<UserNews> {
    let upserted = query(
        "INSERT INTO user_cache (user_id, username, display_name, version) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (user_id) DO UPDATE SET username = excluded.username, \
         display_name = excluded.display_name, version = CASE WHEN user_cache.version > \
         excluded.version THEN user_cache.version ELSE excluded.version END \
         WHERE user_cache.deleted_at IS NULL AND ($4 = 0 OR $4 > user_cache.version)",
    )
    .bind(user_id)
    .bind(username)
    .bind(display_name)
    .bind(version)
    .run(tx)
    .await?;
    Ok(match upserted {
        0 => UserNews::Stale,
        _ => UserNews::Applied(Vec::new()),
    })
}
