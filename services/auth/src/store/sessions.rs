//! Sessions: found by the hash of their token, ended by log-out, age or number.

use edd_events::envelope::Cause;
use edd_store::{Transaction, query};

use super::{Store, User, now_ms};
use crate::{
    events,
    token::{self, TokenHash},
};

/// How long a session lasts: seven days.
const LIFETIME_MS: i64 = 7 * 24 * 3600 * 1000;

/// Sessions of one user; a new one beyond it ends the oldest.
const SESSIONS_PER_USER_MAX: i64 = 50;

/// Expired sessions removed in one transaction, so that the purge never holds
/// the write lock for long.
const PURGE_MAX: i64 = 1000;

/// A session, without its token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Session {
    /// Names the session in events; no secret.
    pub id: String,
    /// Whose it is.
    pub user_id: i64,
    /// Its end, in milliseconds since the Unix epoch.
    pub expires_at_ms: i64,
}

/// Who holds a valid token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authenticated {
    /// The user.
    pub user: User,
    /// The session.
    pub session: Session,
}

impl Store {
    /// Creates a session for a user whose password was just found right.
    ///
    /// `None` when the user is gone or has another password by now.
    pub async fn log_in(
        &self,
        user_id: i64,
        password_hash: &str,
        token: TokenHash,
        cause: &Cause,
    ) -> sqlx::Result<Option<Session>> {
        let mut write = self.database.begin().await?;
        let still_right: bool =
            query("SELECT EXISTS (SELECT 1 FROM users WHERE id = $1 AND password_hash = $2)")
                .bind(user_id)
                .bind(password_hash)
                .value(&mut write)
                .await?;
        if !still_right {
            return Ok(None);
        }
        let surplus: Vec<String> = query(
            "DELETE FROM sessions WHERE token_hash IN (\
                 SELECT token_hash FROM sessions WHERE user_id = $1 \
                 ORDER BY created_at DESC LIMIT 1000000 OFFSET $2\
             ) RETURNING id",
        )
        .bind(user_id)
        .bind(SESSIONS_PER_USER_MAX - 1)
        .values(&mut write)
        .await?;
        for id in surplus {
            let entry = events::session_invalidated(&id, user_id, cause)?;
            self.database.announce(&mut write, &entry).await?;
        }
        let session = self
            .insert_session(&mut write, user_id, token, cause)
            .await?;
        write.commit().await?;
        Ok(Some(session))
    }

    /// Writes a session and its event within the caller's transaction.
    pub(super) async fn insert_session(
        &self,
        write: &mut Transaction,
        user_id: i64,
        token: TokenHash,
        cause: &Cause,
    ) -> sqlx::Result<Session> {
        let now = now_ms();
        let session = Session {
            id: token::session_id(),
            user_id,
            expires_at_ms: now + LIFETIME_MS,
        };
        query(
            "INSERT INTO sessions (token_hash, id, user_id, created_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(token.as_bytes())
        .bind(&session.id)
        .bind(user_id)
        .bind(now)
        .bind(session.expires_at_ms)
        .run(&mut *write)
        .await?;
        self.database
            .announce(write, &events::session_created(&session, cause)?)
            .await?;
        Ok(session)
    }

    /// Whose token this is, if its session still lives.
    pub async fn authenticate(&self, token: TokenHash) -> sqlx::Result<Option<Authenticated>> {
        let found: Option<(i64, String, String, String, i64, String, i64)> = query(
            "SELECT u.id, u.public_id, u.username, u.display_name, u.version, s.id, s.expires_at \
             FROM sessions s JOIN users u ON u.id = s.user_id \
             WHERE s.token_hash = $1 AND s.expires_at > $2",
        )
        .bind(token.as_bytes())
        .bind(now_ms())
        .optional(self.database.sql())
        .await?;
        Ok(found.map(
            |(user_id, public_id, username, display_name, version, session_id, expires_at_ms)| {
                Authenticated {
                    user: User {
                        id: user_id,
                        public_id,
                        username,
                        display_name,
                        version,
                    },
                    session: Session {
                        id: session_id,
                        user_id,
                        expires_at_ms,
                    },
                }
            },
        ))
    }

    /// Ends a session; false if it had ended before.
    pub async fn log_out(&self, session: &Session, cause: &Cause) -> sqlx::Result<bool> {
        let mut write = self.database.begin().await?;
        let ended = query("DELETE FROM sessions WHERE id = $1")
            .bind(&session.id)
            .run(&mut write)
            .await?;
        if ended == 0 {
            return Ok(false);
        }
        let entry = events::session_invalidated(&session.id, session.user_id, cause)?;
        self.database.announce(&mut write, &entry).await?;
        write.commit().await?;
        Ok(true)
    }

    /// Removes expired sessions, a bounded number; returns how many. Their end
    /// was in their first event, so there is none now.
    pub async fn purge_expired(&self) -> sqlx::Result<u64> {
        let purged = query(
            "DELETE FROM sessions WHERE token_hash IN (\
                 SELECT token_hash FROM sessions WHERE expires_at <= $1 LIMIT $2)",
        )
        .bind(now_ms())
        .bind(PURGE_MAX)
        .run(self.database.sql())
        .await?;
        Ok(purged)
    }
}
