//! SSH keys: they belong to users.

use edd_daemon::store::begin_write;
use edd_events::envelope::Cause;

use super::{Store, containers::is_deleted, now_ms};
use crate::{events::outgoing, input::PublicKey};

/// A key.
#[derive(Clone, Debug, Eq, PartialEq, sqlx::FromRow)]
pub struct SshKey {
    /// Never given twice.
    pub id: i64,
    /// Whose it is.
    pub user_id: i64,
    /// What its user calls it.
    pub name: String,
    /// Type and base64.
    pub public_key: String,
    /// `SHA256:...`.
    pub fingerprint: String,
    /// Unix time, in milliseconds.
    pub created_at: i64,
}

/// How the registration of a key ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeyCreation {
    /// It is there.
    Created(SshKey),
    /// The user has this key.
    Duplicate,
    /// The user was deleted meanwhile.
    OwnerGone,
    /// The user has as many as he may.
    TooMany,
}

impl Store {
    /// Registers a key of a user.
    pub async fn create_key(
        &self,
        user_id: i64,
        name: &str,
        key: &PublicKey,
        keys_max: u32,
        cause: &Cause,
    ) -> sqlx::Result<KeyCreation> {
        let mut tx = begin_write(self.database.pool()).await?;
        if is_deleted(&mut tx, user_id).await? {
            return Ok(KeyCreation::OwnerGone);
        }
        let (owned, duplicates): (i64, i64) = sqlx::query_as(
            "SELECT COUNT(*), COALESCE(SUM(fingerprint = ?), 0) FROM ssh_keys WHERE user_id = ?",
        )
        .bind(key.fingerprint())
        .bind(user_id)
        .fetch_one(&mut *tx)
        .await?;
        if duplicates > 0 {
            return Ok(KeyCreation::Duplicate);
        }
        if owned >= i64::from(keys_max) {
            return Ok(KeyCreation::TooMany);
        }
        let key: SshKey = sqlx::query_as(
            "INSERT INTO ssh_keys (user_id, name, public_key, fingerprint, created_at) \
             VALUES (?, ?, ?, ?, ?) RETURNING *",
        )
        .bind(user_id)
        .bind(name)
        .bind(key.line())
        .bind(key.fingerprint())
        .bind(now_ms())
        .fetch_one(&mut *tx)
        .await?;
        self.database
            .announce(&mut tx, &outgoing::key_created(&key, cause))
            .await?;
        tx.commit().await?;
        Ok(KeyCreation::Created(key))
    }

    /// All keys of a user, oldest first.
    pub async fn keys_of(&self, user_id: i64) -> sqlx::Result<Vec<SshKey>> {
        sqlx::query_as("SELECT * FROM ssh_keys WHERE user_id = ? ORDER BY id")
            .bind(user_id)
            .fetch_all(self.database.pool())
            .await
    }

    /// Deletes a key of this user; false if there is none.
    pub async fn delete_key(&self, user_id: i64, id: i64, cause: &Cause) -> sqlx::Result<bool> {
        let mut tx = begin_write(self.database.pool()).await?;
        let deleted = sqlx::query("DELETE FROM ssh_keys WHERE id = ? AND user_id = ?")
            .bind(id)
            .bind(user_id)
            .execute(&mut *tx)
            .await?;
        if deleted.rows_affected() == 0 {
            return Ok(false);
        }
        self.database
            .announce(&mut tx, &outgoing::key_deleted(id, user_id, cause))
            .await?;
        tx.commit().await?;
        Ok(true)
    }
}
