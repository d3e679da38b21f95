//! The keys of TLS session tickets, as rows.

use edd_store::{Database, query};
use zeroize::Zeroizing;

use super::{StoreError, int};
use crate::tls::{NAME_BYTES, SECRET_BYTES, TicketKey};

/// Slots in force at once: the last one, this one, the next one.
const SLOTS: u64 = 3;

type Row = (i64, Vec<u8>, Vec<u8>);

/// Stores what of `offered` there is no key for yet, forgets those before `oldest`, and returns
/// what is in force after that.
pub(super) async fn share(
    database: &Database,
    offered: &[TicketKey],
    oldest: u64,
) -> Result<Vec<TicketKey>, StoreError> {
    let (first, last) = (int(oldest), int(oldest + SLOTS - 1));
    let kept = select(database, first, last).await?;
    let has = |key: &TicketKey| kept.iter().any(|kept| kept.slot == key.slot);
    // Only when a slot begins: the file has one writer, and others wait for it.
    if offered.iter().all(has) {
        return Ok(kept);
    }
    let mut tx = database.begin().await?;
    for key in offered {
        query(
            "INSERT INTO ticket_keys (slot, name, secret) VALUES ($1, $2, $3) \
             ON CONFLICT (slot) DO NOTHING",
        )
        .bind(int(key.slot))
        .bind(key.name.as_slice())
        .bind(key.secret.as_slice())
        .run(&mut tx)
        .await?;
    }
    let deleted = query("DELETE FROM ticket_keys WHERE slot < $1")
        .bind(first)
        .run(&mut tx)
        .await?;
    tx.commit().await?;
    if deleted > 0 {
        // A file forgets them by `secure_delete`, its log only when it is cut. Should somebody
        // be in the way all the time, it is written over in time.
        if !database.forget_log().await? {
            tracing::debug!("deleted ticket keys are still in the database's log");
        }
    }
    select(database, first, last).await
}

async fn select(database: &Database, first: i64, last: i64) -> Result<Vec<TicketKey>, StoreError> {
    let rows: Vec<Row> = query(
        "SELECT slot, name, secret FROM ticket_keys WHERE slot >= $1 AND slot <= $2 ORDER BY slot",
    )
    .bind(first)
    .bind(last)
    .all(database)
    .await?;
    rows.into_iter().map(key_of).collect()
}

fn key_of((slot, name, secret): Row) -> Result<TicketKey, StoreError> {
    let secret = Zeroizing::new(secret);
    let corrupt = |reason: &str| StoreError::Corrupt {
        table: "ticket_keys",
        row: slot.to_string(),
        reason: reason.to_owned(),
    };
    Ok(TicketKey {
        slot: u64::try_from(slot).map_err(|_| corrupt("a slot before the epoch"))?,
        name: <[u8; NAME_BYTES]>::try_from(name).map_err(|_| corrupt("not a name"))?,
        secret: <[u8; SECRET_BYTES]>::try_from(secret.as_slice())
            .map(Zeroizing::new)
            .map_err(|_| corrupt("not a key"))?,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::control::store::{GatewayStore as _, SqlStore};

    /// How many of the keys can be found in the files of the database.
    fn left(folder: &Path, keys: &[TicketKey]) -> usize {
        let files = std::fs::read_dir(folder).unwrap();
        let contents: Vec<_> = files
            .map(|file| std::fs::read(file.unwrap().path()).unwrap())
            .collect();
        let holds = |secret: &[u8]| {
            let is_in = |file: &Vec<u8>| file.windows(secret.len()).any(|part| part == secret);
            contents.iter().any(is_in)
        };
        keys.iter()
            .filter(|key| holds(key.secret.as_slice()))
            .count()
    }

    #[tokio::test]
    async fn keys_that_are_deleted_are_in_no_file_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("gateway.db").display());
        let store = SqlStore::open(&url.parse().unwrap()).await.unwrap();
        let key = |slot: u64| TicketKey {
            slot,
            name: [u8::try_from(slot).unwrap(); NAME_BYTES],
            secret: Zeroizing::new(std::array::from_fn(|n| {
                u8::try_from(100 * slot % 251)
                    .unwrap()
                    .wrapping_add(u8::try_from(n * 7).unwrap())
            })),
        };
        let first = [1, 2, 3].map(key);
        store.share_ticket_keys(&first, 1).await.unwrap();
        assert_eq!(left(folder.path(), &first), 3);
        let next = [4, 5, 6].map(key);
        let kept = store.share_ticket_keys(&next, 4).await.unwrap();
        assert_eq!(kept.len(), 3);
        assert_eq!(left(folder.path(), &first), 0);
        assert_eq!(left(folder.path(), &next), 3);
    }
}
