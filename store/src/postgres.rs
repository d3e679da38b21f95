//! A transaction on PostgreSQL, which ends with whoever holds it.
//!
//! Not sqlx's: when the future that begins one is dropped between the server's BEGIN and its
//! answer, sqlx 0.9 gives the connection back to the pool with the transaction open. Whoever gets
//! it next believes to have written, and what he wrote is undone with the other's transaction.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool, Postgres};
use sqlx::{Error, raw_sql};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// How long the server may take to undo one; after that the connection is closed, which does it,
/// too.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection in a transaction. Dropped without [`Held::commit`], that has not happened.
pub(crate) struct Held(Option<PoolConnection<Postgres>>);

impl Held {
    /// Begins one with the statements `sql`. Cancellation safe: then there is none.
    pub(crate) async fn begin(pool: &PgPool, sql: &'static str) -> sqlx::Result<Self> {
        // Held before it is sent: whoever gives up waiting for it must end it.
        let mut held = Self(Some(pool.acquire().await?));
        raw_sql(sql).execute(held.connection()?).await?;
        Ok(held)
    }

    /// Ends it, all of it so.
    pub(crate) async fn commit(mut self) -> sqlx::Result<()> {
        raw_sql("COMMIT").execute(self.connection()?).await?;
        // Goes back to the pool.
        self.0 = None;
        Ok(())
    }

    pub(crate) fn connection(&mut self) -> sqlx::Result<&mut PgConnection> {
        self.0.as_deref_mut().ok_or(Error::WorkerCrashed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(mut connection) = self.0.take() else {
            return;
        };
        let Ok(runtime) = Handle::try_current() else {
            // Nobody can ask the server for it; closed, it is undone.
            drop(connection.detach());
            return;
        };
        runtime.spawn(async move {
            // An error where there is none yet, or no more, only warns.
            let ended = raw_sql("ROLLBACK").execute(&mut *connection);
            if !matches!(timeout(ROLLBACK_TIMEOUT, ended).await, Ok(Ok(_))) {
                drop(connection.detach());
            }
        });
    }
}
