//! Users: registration, change, deletion.

use edd_daemon::store::begin_write;
use edd_events::envelope::Cause;

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
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM users WHERE username = ?)")
            .bind(username.as_str())
            .fetch_one(self.database.pool())
            .await
    }

    /// Creates a user with a first session.
    pub async fn register(
        &self,
        new: NewUser,
        token: TokenHash,
        cause: &Cause,
    ) -> sqlx::Result<Registration> {
        let mut write = begin_write(self.database.pool()).await?;
        if new.never_used {
            let used: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT 1 FROM deleted_usernames WHERE username = ?)",
            )
            .bind(new.username.as_str())
            .fetch_one(&mut *write)
            .await?;
            if used {
                return Ok(Registration::UsernameTaken);
            }
        }
        for _ in 0..PUBLIC_ID_DRAWS {
            let created: Option<UserRow> = sqlx::query_as(
                "INSERT INTO users \
                 (public_id, username, display_name, password_hash, version, created_at) \
                 VALUES (?, ?, ?, ?, 1, ?) ON CONFLICT DO NOTHING \
                 RETURNING id, public_id, username, display_name, version",
            )
            .bind(token::public_id())
            .bind(new.username.as_str())
            .bind(new.display_name.as_str())
            .bind(&new.password_hash)
            .bind(now_ms())
            .fetch_optional(&mut *write)
            .await?;
            if let Some(created) = created.map(user) {
                self.database
                    .announce(&mut write, &events::user_created(&created, cause))
                    .await?;
                let session = self
                    .insert_session(&mut write, created.id, token, cause)
                    .await?;
                write.commit().await?;
                return Ok(Registration::Created(created, session));
            }
            let taken: bool =
                sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM users WHERE username = ?)")
                    .bind(new.username.as_str())
                    .fetch_one(&mut *write)
                    .await?;
            if taken {
                return Ok(Registration::UsernameTaken);
            }
        }
        Err(sqlx::Error::Protocol("no free public id found".to_owned()))
    }

    /// The user of that name and the hash of its password.
    pub async fn credentials(&self, username: &str) -> sqlx::Result<Option<(i64, String)>> {
        sqlx::query_as("SELECT id, password_hash FROM users WHERE username = ?")
            .bind(username)
            .fetch_optional(self.database.pool())
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
        let mut write = begin_write(self.database.pool()).await?;
        let found: Option<UserRow> = sqlx::query_as(
            "SELECT id, public_id, username, display_name, version FROM users WHERE id = ?",
        )
        .bind(id)
        .fetch_optional(&mut *write)
        .await?;
        let Some(mut changed) = found.map(user) else {
            return Ok(None);
        };
        if changed.display_name != display_name.as_str() {
            changed.display_name = display_name.as_str().to_owned();
            changed.version += 1;
            sqlx::query("UPDATE users SET display_name = ?, version = ? WHERE id = ?")
                .bind(&changed.display_name)
                .bind(changed.version)
                .bind(id)
                .execute(&mut *write)
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
        let mut write = begin_write(self.database.pool()).await?;
        let ended: Vec<String> =
            sqlx::query_scalar("DELETE FROM sessions WHERE user_id = ? RETURNING id")
                .bind(id)
                .fetch_all(&mut *write)
                .await?;
        let deleted: Option<UserRow> = sqlx::query_as(
            "DELETE FROM users WHERE id = ? \
             RETURNING id, public_id, username, display_name, version + 1",
        )
        .bind(id)
        .fetch_optional(&mut *write)
        .await?;
        let Some(deleted) = deleted.map(user) else {
            // Ids are given in order and never twice: what is not above the
            // highest one was a user once.
            let highest: Option<i64> =
                sqlx::query_scalar("SELECT seq FROM sqlite_sequence WHERE name = 'users'")
                    .fetch_optional(&mut *write)
                    .await?;
            let existed = (1..=highest.unwrap_or(0)).contains(&id);
            return Ok(if existed {
                Deletion::GoneBefore
            } else {
                Deletion::Unknown
            });
        };
        sqlx::query("INSERT INTO deleted_usernames (username) VALUES (?) ON CONFLICT DO NOTHING")
            .bind(&deleted.username)
            .execute(&mut *write)
            .await?;
        for session in &ended {
            let entry = events::session_invalidated(session, id, cause)?;
            self.database.announce(&mut write, &entry).await?;
        }
        self.database
            .announce(&mut write, &events::user_deleted(&deleted, cause))
            .await?;
        write.commit().await?;
        Ok(Deletion::Deleted)
    }
}
