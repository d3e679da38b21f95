//! SSH keys: they belong to users.

use edd_events::envelope::Cause;
use edd_store::query;

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
        let mut tx = self.database.begin().await?;
        if is_deleted(&mut tx, user_id).await? {
            return Ok(KeyCreation::OwnerGone);
        }
        let (owned, duplicates): (i64, i64) = query(
            "SELECT COUNT(*), COALESCE(SUM(CASE WHEN fingerprint = $1 THEN 1 ELSE 0 END), 0) FROM ssh_keys WHERE user_id = $2",
        )
        .bind(key.fingerprint())
        .bind(user_id)
        .one(&mut tx)
        .await?;
        if duplicates > 0 {
            return Ok(KeyCreation::Duplicate);
        }
        if owned >= i64::from(keys_max) {
            return Ok(KeyCreation::TooMany);
        }
        let key: SshKey = query(
            "INSERT INTO ssh_keys (user_id, name, public_key, fingerprint, created_at) \
             VALUES ($1, $2, $3, $4, $5) RETURNING *",
        )
        .bind(user_id)
        .bind(name)
        .bind(key.line())
        .bind(key.fingerprint())
        .bind(now_ms())
        .one(&mut tx)
        .await?;
        self.database
            .announce(&mut tx, &outgoing::key_created(&key, cause))
            .await?;
        tx.commit().await?;
        Ok(KeyCreation::Created(key))
    }

    /// All keys of a user, oldest first.
    pub async fn keys_of(&self, user_id: i64) -> sqlx::Result<Vec<SshKey>> {
        query("SELECT * FROM ssh_keys WHERE user_id = $1 ORDER BY id")
            .bind(user_id)
            .all(self.database.sql())
            .await
    }

    /// Deletes a key of this user; false if there is none.
    pub async fn delete_key(&self, user_id: i64, id: i64, cause: &Cause) -> sqlx::Result<bool> {
        let mut tx = self.database.begin().await?;
        let deleted = query("DELETE FROM ssh_keys WHERE id = $1 AND user_id = $2")
            .bind(id)
            .bind(user_id)
            .run(&mut tx)
            .await?;
        if deleted == 0 {
            return Ok(false);
        }
        self.database
            .announce(&mut tx, &outgoing::key_deleted(id, user_id, cause))
            .await?;
        tx.commit().await?;
        Ok(true)
    }
}
