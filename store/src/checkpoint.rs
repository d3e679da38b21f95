//! SQLite's write-ahead log is copied into the file beside the writers.
//!
//! Left alone, SQLite does it in the commit that made the log long enough, and that commit then
//! waits for the copying and for the disk, twice. Here a task does it a moment after a commit, on
//! a connection of its own; what is written meanwhile is copied the next time. A log can only
//! begin anew when all of it is copied, which under writers without a pause needs one of them to
//! stand still: SQLite's own limit stays as a bound of the log's size, and little is left to copy
//! when it is reached.

use std::time::Duration;

use sqlx::SqlitePool;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// Between two rounds of copying; what is left to copy is what was written in this time.
const PAUSE: Duration = Duration::from_millis(250);

/// Pages of 4 KiB (64 MiB) in the log before the commit that reaches them copies by itself.
pub(crate) const LOG_PAGES_MAX: &str = "16000";

/// Asks for a round; the task ends with the last clone.
#[derive(Clone)]
pub(crate) struct Checkpoints(mpsc::Sender<()>);

impl Checkpoints {
    /// Begins the task.
    pub(crate) fn of(pool: SqlitePool) -> Self {
        let (wanted, rounds) = mpsc::channel(1);
        tokio::spawn(run(pool, rounds));
        Self(wanted)
    }

    /// There was a commit.
    pub(crate) fn committed(&self) {
        // Full: a round is wanted already.
        let _ = self.0.try_send(());
    }
}

async fn run(pool: SqlitePool, mut rounds: mpsc::Receiver<()>) {
    while rounds.recv().await.is_some() && !pool.is_closed() {
        // What fails is tried after the next commit. If it never succeeds, the log grows up to
        // SQLite's limit, and then the commits say why.
        let _ = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
            .execute(&pool)
            .await;
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crate::{Database, DatabaseUrl, query};

    use super::*;

    /// The pages reach the file long before SQLite's own limit.
    #[tokio::test]
    async fn a_commit_reaches_the_file_soon() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let url: DatabaseUrl = format!("sqlite://{}", path.display()).parse().unwrap();
        let database = Database::open(&url).await.unwrap();
        query("CREATE TABLE t (x TEXT)")
            .run(&database)
            .await
            .unwrap();
        let mut transaction = database.begin().await.unwrap();
        query("INSERT INTO t VALUES ('what is to be found')")
            .run(&mut transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        let began = Instant::now();
        while !contains(&std::fs::read(&path).unwrap(), b"what is to be found") {
            assert!(began.elapsed() < Duration::from_secs(20), "not copied");
            tokio::task::yield_now().await;
        }
        database.close().await;
    }

    /// Whoever copies the log keeps it from being cut, without a wait.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_log_that_is_being_copied_is_cut_after_that() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let url: DatabaseUrl = format!("sqlite://{}", path.display()).parse().unwrap();
        let database = Database::open(&url).await.unwrap();
        let other = Database::open(&url).await.unwrap();
        query("CREATE TABLE t (x TEXT)")
            .run(&database)
            .await
            .unwrap();
        let copying = tokio::spawn(async move {
            loop {
                let _ = query("PRAGMA wal_checkpoint(PASSIVE)").run(&other).await;
            }
        });
        for _ in 0..100 {
            let mut transaction = database.begin().await.unwrap();
            query("INSERT INTO t VALUES (hex(randomblob(20000)))")
                .run(&mut transaction)
                .await
                .unwrap();
            transaction.commit().await.unwrap();
            assert!(database.forget_log().await.unwrap());
            let log = std::fs::metadata(folder.path().join("a.db-wal")).unwrap();
            assert_eq!(log.len(), 0);
        }
        copying.abort();
        database.close().await;
    }

    fn contains(bytes: &[u8], text: &[u8]) -> bool {
        bytes.windows(text.len()).any(|window| window == text)
    }
}
