//! Addresses of the local runtime: one per container, reserved until its
//! processes are gone.

use std::net::Ipv4Addr;

use edd_store::query;

use super::Store;
use crate::runtime::address;

/// Draws before giving up: with half of the range taken one try in 2^32 fails.
const DRAWS: usize = 32;

impl Store {
    /// The address of a container, drawn at its first start.
    pub async fn local_address(&self, container_id: &str) -> sqlx::Result<Ipv4Addr> {
        let mut tx = self.database.begin().await?;
        let known: Option<String> =
            query("SELECT address FROM local_addresses WHERE container_id = $1")
                .bind(container_id)
                .optional_value(&mut tx)
                .await?;
        if let Some(address) = known {
            return address
                .parse()
                .map_err(|_| sqlx::Error::Decode("a damaged address".into()));
        }
        for _ in 0..DRAWS {
            let address = address::random();
            let reserved = query(
                "INSERT INTO local_addresses (address, container_id) VALUES ($1, $2) \
                 ON CONFLICT DO NOTHING",
            )
            .bind(address.to_string())
            .bind(container_id)
            .run(&mut tx)
            .await?;
            if reserved == 1 {
                tx.commit().await?;
                return Ok(address);
            }
        }
        Err(sqlx::Error::Protocol(
            "no free address in 127.64.0.0/16".into(),
        ))
    }

    /// Gives an address back.
    pub async fn release_local_address(&self, container_id: &str) -> sqlx::Result<()> {
        query("DELETE FROM local_addresses WHERE container_id = $1")
            .bind(container_id)
            .run(self.database.sql())
            .await
            .map(drop)
    }

    /// Gives back what deleted containers held when the service ended before
    /// their processes.
    pub async fn release_orphaned_addresses(&self) -> sqlx::Result<()> {
        query(
            "DELETE FROM local_addresses \
             WHERE container_id NOT IN (SELECT id FROM containers)",
        )
        .run(self.database.sql())
        .await
        .map(drop)
    }
}
