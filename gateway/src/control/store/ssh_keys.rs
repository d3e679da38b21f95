//! The gateway's own SSH keys, as rows.

use edd_store::{Database, query};
use zeroize::Zeroizing;

use super::StoreError;
use crate::ssh::StoredKey;

/// What is there.
pub(super) async fn select(database: &Database) -> Result<Vec<StoredKey>, StoreError> {
    let rows: Vec<(String, String)> = query("SELECT name, secret FROM gateway_keys ORDER BY name")
        .all(database)
        .await?;
    let keys = rows.into_iter().map(|(name, secret)| StoredKey {
        name,
        secret: Zeroizing::new(secret),
    });
    Ok(keys.collect())
}

/// Stores those of `offered` that there are none of yet; what is there after that, which is the
/// same for everybody who does so at the same time.
pub(super) async fn share(
    database: &Database,
    offered: &[StoredKey],
) -> Result<Vec<StoredKey>, StoreError> {
    let mut tx = database.begin().await?;
    for key in offered {
        query(
            "INSERT INTO gateway_keys (name, secret) VALUES ($1, $2) \
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(key.name.as_str())
        .bind(key.secret.as_str())
        .run(&mut tx)
        .await?;
    }
    tx.commit().await?;
    select(database).await
}
