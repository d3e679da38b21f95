//! Users: registration, change, deletion.

use edd_events::envelope::Cause;
use edd_store::{Transaction, query};

use super::{Session, Store, now_ms};
use crate::{
    events,
    identity::{DisplayName, Username},
    token::{self, TokenHash},
};

/// Draws of a public id before giving up. With a million users one draw fails
/// in two thousand.
const PUBLIC_ID_DRAWS: usize = 8;

/// A user as the others know it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User {
    /// At least 1, never given twice.
    pub id: i64,
    /// Six characters, unique.
    pub public_id: String,
    /// Unique among living users.
    pub username: String,
    /// What the user is called.
    pub display_name: String,
    /// Of the user's events; grows with each change.
    pub version: i64,
}

/// What a registration needs.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// The wanted name.
    pub username: Username,
    /// What the user is called.
    pub display_name: DisplayName,
    /// argon2id in PHC form.
    pub password_hash: String,
    /// Whether the name must not have been a deleted user's.
    pub never_used: bool,
}

/// How a registration ended.
#[derive(Clone, Debug)]
pub enum Registration {
    /// The user exists and is logged in.
    Created(User, Session),
    /// Somebody has that name, or had it and `never_used` was asked for.
    UsernameTaken,
}

/// How a deletion ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Deletion {
    /// The user was there and is gone now.
    Deleted,
    /// The user was gone before.
    GoneBefore,
    /// There never was such a user.
    Unknown,
}

type UserRow = (i64, String, String, String, i64);

pub(super) fn user((id, public_id, username, display_name, version): UserRow) -> User {
    User {
        id,
        public_id,
        username,
        display_name,
        version,
    }
}

impl Store {
    /// Whether somebody has this name now.
    pub async fn is_taken(&self, username: &Username) -> sqlx::Result<bool> {
        query("SELECT EXISTS (SELECT 1 FROM users WHERE username = $1)")
            .bind(username.as_str())
            .value(self.database.sql())
            .await
    }

    /// Creates a user with a first session.
    pub async fn register(
        &self,
        new: NewUser,
        token: TokenHash,
        cause: &Cause,
    ) -> sqlx::Result<Registration> {
        let mut write = self.database.begin().await?;
        if new.never_used {
            let used: bool =
                query("SELECT EXISTS (SELECT 1 FROM deleted_usernames WHERE username = $1)")
                    .bind(new.username.as_str())
                    .value(&mut write)
                    .await?;
            if used {
                return Ok(Registration::UsernameTaken);
            }
        }
        for _ in 0..PUBLIC_ID_DRAWS {
            let created: Option<UserRow> = query(
                "INSERT INTO users \
                 (public_id, username, display_name, password_hash, version, created_at) \
                 VALUES ($1, $2, $3, $4, 1, $5) ON CONFLICT DO NOTHING \
                 RETURNING id, public_id, username, display_name, version",
            )
            .bind(token::public_id())
            .bind(new.username.as_str())
            .bind(new.display_name.as_str())
            .bind(&new.password_hash)
            .bind(now_ms())
            .optional(&mut write)
            .await?;
            if let Some(created) = created.map(user) {
                self.database
                    .announce(&mut write, &events::user_created(&created, cause))
                    .await?;
                self.await_cached(&mut write, &created, cause).await?;
                let session = self
                    .insert_session(&mut write, created.id, token, cause)
                    .await?;
                write.commit().await?;
                return Ok(Registration::Created(created, session));
            }
            let taken: bool = query("SELECT EXISTS (SELECT 1 FROM users WHERE username = $1)")
                .bind(new.username.as_str())
                .value(&mut write)
                .await?;
            if taken {
                return Ok(Registration::UsernameTaken);
            }
        }
        Err(sqlx::Error::Protocol("no free public id found".to_owned()))
    }

    /// The user of that name and the hash of its password.
    pub async fn credentials(&self, username: &str) -> sqlx::Result<Option<(i64, String)>> {
        query("SELECT id, password_hash FROM users WHERE username = $1")
            .bind(username)
            .optional(self.database.sql())
            .await
    }

    /// Changes what a user is called; `None` if there is no such user. The name
    /// it has already is no change and no event.
    pub async fn rename(
        &self,
        id: i64,
        display_name: &DisplayName,
        cause: &Cause,
    ) -> sqlx::Result<Option<User>> {
        let mut write = self.database.begin().await?;
        let found: Option<UserRow> =
            query("SELECT id, public_id, username, display_name, version FROM users WHERE id = $1")
                .bind(id)
                .optional(&mut write)
                .await?;
        let Some(mut changed) = found.map(user) else {
            return Ok(None);
        };
        if changed.display_name != display_name.as_str() {
            changed.display_name = display_name.as_str().to_owned();
            changed.version += 1;
            query("UPDATE users SET display_name = $1, version = $2 WHERE id = $3")
                .bind(&changed.display_name)
                .bind(changed.version)
                .bind(id)
                .run(&mut write)
                .await?;
            self.database
                .announce(&mut write, &events::user_updated(&changed, cause))
                .await?;
            write.commit().await?;
        }
        Ok(Some(changed))
    }

    /// Deletes a user with all sessions.
    pub async fn delete_user(&self, id: i64, cause: &Cause) -> sqlx::Result<Deletion> {
        let mut write = self.database.begin().await?;
        if self.delete_in(&mut write, id, cause).await?.is_none() {
            let existed: bool = query("SELECT EXISTS (SELECT 1 FROM deleted_users WHERE id = $1)")
                .bind(id)
                .value(&mut write)
                .await?;
            return Ok(if existed {
                Deletion::GoneBefore
            } else {
                Deletion::Unknown
            });
        }
        write.commit().await?;
        Ok(Deletion::Deleted)
    }

    /// Likewise, in a transaction; who it was, if there was such a user.
    pub(super) async fn delete_in(
        &self,
        write: &mut Transaction,
        id: i64,
        cause: &Cause,
    ) -> sqlx::Result<Option<User>> {
        let ended: Vec<String> = query("DELETE FROM sessions WHERE user_id = $1 RETURNING id")
            .bind(id)
            .values(&mut *write)
            .await?;
        let deleted: Option<UserRow> = query(
            "DELETE FROM users WHERE id = $1 \
             RETURNING id, public_id, username, display_name, version + 1",
        )
        .bind(id)
        .optional(&mut *write)
        .await?;
        let Some(deleted) = deleted.map(user) else {
            return Ok(None);
        };
        query("INSERT INTO deleted_users (id) VALUES ($1)")
            .bind(id)
            .run(&mut *write)
            .await?;
        query("INSERT INTO deleted_usernames (username) VALUES ($1) ON CONFLICT DO NOTHING")
            .bind(&deleted.username)
            .run(&mut *write)
            .await?;
        for session in &ended {
            let entry = events::session_invalidated(session, id, cause)?;
            self.database.announce(&mut *write, &entry).await?;
        }
        self.database
            .announce(&mut *write, &events::user_deleted(&deleted, cause))
            .await?;
        self.await_purged(&mut *write, &deleted, cause).await?;
        Ok(Some(deleted))
    }
}
