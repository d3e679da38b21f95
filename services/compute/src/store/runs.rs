//! How containers run: what users ask for, and what the runtime reports.
//!
//! Each start that is asked for has a number, the `run`. What the runtime says
//! about an older run changes nothing.

use std::net::IpAddr;

use edd_events::envelope::Cause;
use edd_store::{Transaction, query};

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
    pub async fn ask_start(
        &self,
        user_id: i64,
        id: &str,
        cause: &Cause,
    ) -> sqlx::Result<Option<Container>> {
        let mut tx = self.database.begin().await?;
        let Some(container) = owned(&mut tx, user_id, id).await? else {
            return Ok(None);
        };
        if matches!(container.status, Status::Pending | Status::Running) {
            return Ok(Some(container));
        }
        // No event yet: `started` comes when it runs.
        let container = query(
            "UPDATE containers SET status = 'pending', failure = NULL, run = run + 1 \
             WHERE id = $1 RETURNING *",
        )
        .bind(id)
        .one(&mut tx)
        .await?;
        set_run_cause(&mut tx, id, cause).await?;
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
        let mut tx = self.database.begin().await?;
        let Some(container) = owned(&mut tx, user_id, id).await? else {
            return Ok(None);
        };
        if container.status == Status::Stopped {
            return Ok(Some(container));
        }
        let version = bump(&mut tx, id).await?;
        let container: Container = query(
            "UPDATE containers SET status = 'stopped', failure = NULL, announced = FALSE, \
             stopped_at = $1 WHERE id = $2 RETURNING *",
        )
        .bind(now_ms())
        .bind(id)
        .one(&mut tx)
        .await?;
        let entry = outgoing::container_stopped(id, version, cause)?;
        self.database.announce(&mut tx, &entry).await?;
        tx.commit().await?;
        Ok(Some(container))
    }

    /// At the start of the service nothing runs: what should run is to be
    /// started again, as a new run. Returns the ids.
    pub async fn resume_all(&self) -> sqlx::Result<Vec<String>> {
        query(
            "UPDATE containers SET status = 'pending', run = run + 1, \
             run_correlation_id = NULL, run_traceparent = NULL \
             WHERE status IN ('pending', 'running') RETURNING id",
        )
        .values(self.database.sql())
        .await
    }

    /// The container as the runtime should have it, whoever owns it.
    pub async fn wanted(&self, id: &str) -> sqlx::Result<Option<Container>> {
        query("SELECT * FROM containers WHERE id = $1")
            .bind(id)
            .optional(self.database.sql())
            .await
    }

    /// It runs: row and `started`. False if that is not wanted any more.
    pub async fn mark_started(&self, id: &str, run: i64, start: &Start) -> sqlx::Result<bool> {
        let mut tx = self.database.begin().await?;
        let container: Option<Container> = query(
            "UPDATE containers SET status = 'running', external_ip = $1, ssh_host_key = $2, \
             announced = TRUE, started_at = $3, version = version + 1 \
             WHERE id = $4 AND run = $5 AND status = 'pending' RETURNING *",
        )
        .bind(start.external_ip.to_string())
        .bind(&start.ssh_host_key)
        .bind(now_ms())
        .bind(id)
        .bind(run)
        .optional(&mut tx)
        .await?;
        let Some(container) = container else {
            return Ok(false);
        };
        let cause = run_cause(&mut tx, id).await?;
        let entry = outgoing::container_started(&container, start, &cause)?;
        self.database.announce(&mut tx, &entry).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// It could not start, or ended by itself: row, and `stopped` if others
    /// believe that it runs. False if that run is over anyway.
    pub async fn mark_failed(&self, id: &str, run: i64, reason: &str) -> sqlx::Result<bool> {
        let reason: String = reason.chars().take(FAILURE_CHARS_MAX).collect();
        let mut tx = self.database.begin().await?;
        let was_announced: Option<bool> = query(
            "SELECT announced FROM containers \
             WHERE id = $1 AND run = $2 AND status IN ('pending', 'running')",
        )
        .bind(id)
        .bind(run)
        .optional_value(&mut tx)
        .await?;
        let Some(was_announced) = was_announced else {
            return Ok(false);
        };
        query(
            "UPDATE containers SET status = 'failed', failure = $1, announced = FALSE, \
             stopped_at = $2 WHERE id = $3",
        )
        .bind(reason)
        .bind(now_ms())
        .bind(id)
        .run(&mut tx)
        .await?;
        if was_announced {
            let version = bump(&mut tx, id).await?;
            let cause = run_cause(&mut tx, id).await?;
            let entry = outgoing::container_stopped(id, version, &cause)?;
            self.database.announce(&mut tx, &entry).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}

/// Remembers which request asked for the container's run: what comes of it, much
/// later, refers to that.
pub(super) async fn set_run_cause(
    tx: &mut Transaction,
    id: &str,
    cause: &Cause,
) -> sqlx::Result<()> {
    query("UPDATE containers SET run_correlation_id = $1, run_traceparent = $2 WHERE id = $3")
        .bind(&cause.correlation_id)
        .bind(&cause.traceparent)
        .bind(id)
        .run(tx)
        .await
        .map(drop)
}

async fn run_cause(tx: &mut Transaction, id: &str) -> sqlx::Result<Cause> {
    let (correlation_id, traceparent) =
        query("SELECT run_correlation_id, run_traceparent FROM containers WHERE id = $1")
            .bind(id)
            .one(tx)
            .await?;
    Ok(Cause {
        correlation_id,
        causation_id: None,
        traceparent,
    })
}
