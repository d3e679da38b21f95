//! The keys of TLS session tickets, as rows.

use edd_daemon::store::begin_write;
use sqlx::SqlitePool;
use zeroize::Zeroizing;

use super::StoreError;
use crate::tls::{NAME_BYTES, SECRET_BYTES, TicketKey};

/// Slots in force at once: the last one, this one, the next one.
const SLOTS: u64 = 3;

type Row = (i64, Vec<u8>, Vec<u8>);

/// Stores what of `offered` there is no key for yet, forgets those before `oldest`, and returns
/// what is in force after that.
pub(super) async fn share(
    pool: &SqlitePool,
    offered: &[TicketKey],
    oldest: u64,
) -> Result<Vec<TicketKey>, StoreError> {
    let (first, last) = (int(oldest), int(oldest + SLOTS - 1));
    let kept = select(pool, first, last).await?;
    let has = |key: &TicketKey| kept.iter().any(|kept| kept.slot == key.slot);
    // Only when a slot begins: the file has one writer, and others wait for it.
    if offered.iter().all(has) {
        return Ok(kept);
    }
    let mut tx = begin_write(pool).await?;
    for key in offered {
        sqlx::query(
            "INSERT INTO ticket_keys (slot, name, secret) VALUES ($1, $2, $3) \
             ON CONFLICT (slot) DO NOTHING",
        )
        .bind(int(key.slot))
        .bind(key.name.as_slice())
        .bind(key.secret.as_slice())
        .execute(&mut *tx)
        .await?;
    }
    sqlx::query("DELETE FROM ticket_keys WHERE slot < $1")
        .bind(first)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    select(pool, first, last).await
}

async fn select(pool: &SqlitePool, first: i64, last: i64) -> Result<Vec<TicketKey>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT slot, name, secret FROM ticket_keys WHERE slot >= $1 AND slot <= $2 ORDER BY slot",
    )
    .bind(first)
    .bind(last)
    .fetch_all(pool)
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

fn int(slot: u64) -> i64 {
    i64::try_from(slot).unwrap_or(i64::MAX)
}
