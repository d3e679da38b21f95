//! How containers run: what users ask for, and what the runtime reports.
//!
//! Each start that is asked for has a number, the `run`. What the runtime says
//! about an older run changes nothing.

use std::net::IpAddr;

use edd_daemon::store::begin_write;
use edd_events::envelope::Cause;

use super::{
    Container, Status, Store,
    containers::{bump, owned},
    now_ms,
};
use crate::events::outgoing;

/// Longest reason of a failure that is kept, in characters.
const FAILURE_CHARS_MAX: usize = 300;

/// What a start yields.
#[derive(Clone, Debug)]
pub struct Start {
    /// Where the container can be reached.
    pub external_ip: IpAddr,
    /// The public key line of its SSH server, if it has one.
    pub ssh_host_key: Option<String>,
}

impl Store {
    /// A user wants it to run. `None` for no such container.
    pub async fn ask_start(&self, user_id: i64, id: &str) -> sqlx::Result<Option<Container>> {
        let mut tx = begin_write(self.database.pool()).await?;
        let Some(container) = owned(&mut tx, user_id, id).await? else {
            return Ok(None);
        };
        if matches!(container.status, Status::Pending | Status::Running) {
            return Ok(Some(container));
        }
        // No event yet: `started` comes when it runs.
        let container = sqlx::query_as(
            "UPDATE containers SET status = 'pending', failure = NULL, run = run + 1 \
             WHERE id = ? RETURNING *",
        )
        .bind(id)
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Some(container))
    }

    /// A user wants it to stop: `stopped` is announced before its processes end,
    /// so that the gateway sends nobody there. `None` for no such container.
    pub async fn ask_stop(
        &self,
        user_id: i64,
        id: &str,
        cause: &Cause,
    ) -> sqlx::Result<Option<Container>> {
        let mut tx = begin_write(self.database.pool()).await?;
        let Some(container) = owned(&mut tx, user_id, id).await? else {
            return Ok(None);
        };
        if container.status == Status::Stopped {
            return Ok(Some(container));
        }
        let version = bump(&mut tx, id).await?;
        let container: Container = sqlx::query_as(
            "UPDATE containers SET status = 'stopped', failure = NULL, announced = FALSE, \
             stopped_at = ? WHERE id = ? RETURNING *",
        )
        .bind(now_ms())
        .bind(id)
        .fetch_one(&mut *tx)
        .await?;
        let entry = outgoing::container_stopped(id, version, cause)?;
        self.database.announce(&mut tx, &entry).await?;
        tx.commit().await?;
        Ok(Some(container))
    }

    /// At the start of the service nothing runs: what should run is to be
    /// started again, as a new run. Returns the ids.
    pub async fn resume_all(&self) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar(
            "UPDATE containers SET status = 'pending', run = run + 1 \
             WHERE status IN ('pending', 'running') RETURNING id",
        )
        .fetch_all(self.database.pool())
        .await
    }

    /// The container as the runtime should have it, whoever owns it.
    pub async fn wanted(&self, id: &str) -> sqlx::Result<Option<Container>> {
        sqlx::query_as("SELECT * FROM containers WHERE id = ?")
            .bind(id)
            .fetch_optional(self.database.pool())
            .await
    }

    /// It runs: row and `started`. False if that is not wanted any more.
    pub async fn mark_started(&self, id: &str, run: i64, start: &Start) -> sqlx::Result<bool> {
        let mut tx = begin_write(self.database.pool()).await?;
        let container: Option<Container> = sqlx::query_as(
            "UPDATE containers SET status = 'running', external_ip = ?, ssh_host_key = ?, \
             announced = TRUE, started_at = ?, version = version + 1 \
             WHERE id = ? AND run = ? AND status = 'pending' RETURNING *",
        )
        .bind(start.external_ip.to_string())
        .bind(&start.ssh_host_key)
        .bind(now_ms())
        .bind(id)
        .bind(run)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(container) = container else {
            return Ok(false);
        };
        let entry = outgoing::container_started(&container, start, &Cause::default())?;
        self.database.announce(&mut tx, &entry).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// It could not start, or ended by itself: row, and `stopped` if others
    /// believe that it runs. False if that run is over anyway.
    pub async fn mark_failed(&self, id: &str, run: i64, reason: &str) -> sqlx::Result<bool> {
        let reason: String = reason.chars().take(FAILURE_CHARS_MAX).collect();
        let mut tx = begin_write(self.database.pool()).await?;
        let was_announced: Option<bool> = sqlx::query_scalar(
            "SELECT announced FROM containers \
             WHERE id = ? AND run = ? AND status IN ('pending', 'running')",
        )
        .bind(id)
        .bind(run)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(was_announced) = was_announced else {
            return Ok(false);
        };
        sqlx::query(
            "UPDATE containers SET status = 'failed', failure = ?, announced = FALSE, \
             stopped_at = ? WHERE id = ?",
        )
        .bind(reason)
        .bind(now_ms())
        .bind(id)
        .execute(&mut *tx)
        .await?;
        if was_announced {
            let version = bump(&mut tx, id).await?;
            let entry = outgoing::container_stopped(id, version, &Cause::default())?;
            self.database.announce(&mut tx, &entry).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}
