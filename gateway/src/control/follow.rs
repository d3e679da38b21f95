//! Serving after the control path has gone to a successor: the table follows the
//! last good table, which the successor writes a moment after each change.
//!
//! What drains here for a while still ends when the thing that admitted it is
//! removed. Nothing is written.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use edd_route::snapshot::Snapshot;
use edd_route::{RouteTable, TableWriter};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::last_good;
use crate::shared::Shared;

/// How often the file is looked at: a tenth of the second in which a removed thing's connections
/// must have ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Which writing of the file it is.
type Stamp = Option<(u64, u64, SystemTime)>;

/// Follows the file until `shutdown`.
pub async fn run(
    shared: Arc<Shared>,
    revision: watch::Sender<u64>,
    common: watch::Sender<u64>,
    shutdown: CancellationToken,
) {
    let mut writer = TableWriter::new(RouteTable::clone(&shared.table()));
    let mut seen = stamp(&shared);
    loop {
        let wait = tokio::time::sleep(LOOK_INTERVAL);
        if shutdown.run_until_cancelled(wait).await.is_none() {
            return;
        }
        let now = stamp(&shared);
        if now == seen {
            continue;
        }
        let state_dir = shared.config.state_dir.clone();
        let read = tokio::task::spawn_blocking(move || last_good::read(&state_dir)).await;
        match read {
            Ok(Ok(Some((snapshot, _)))) => {
                seen = now;
                take(&shared, &mut writer, snapshot, &revision);
                // With others on the database the file does not tell whether they know it.
                if shared.config.database_url.path().is_some() {
                    common.send_replace(*revision.borrow());
                }
            }
            Ok(Ok(None)) => seen = now,
            // Replaced whole, so what is broken stays so until the next writing.
            Ok(Err(error)) => {
                tracing::warn!(%error, "the successor's table cannot be read");
                seen = now;
            }
            Err(error) => tracing::error!(%error, "the successor's table was not read"),
        }
    }
}

fn take(
    shared: &Shared,
    writer: &mut TableWriter,
    snapshot: Snapshot,
    revision: &watch::Sender<u64>,
) {
    let wanted = snapshot.revision;
    if wanted <= writer.table().revision {
        return;
    }
    writer.set_statics(snapshot.statics);
    writer.replace_dynamic(snapshot.containers, snapshot.keys);
    if let Some(published) = writer.publish(wanted) {
        tracing::debug!(revision = wanted, "following the successor");
        shared.swap(published);
        revision.send_replace(wanted);
    }
}

fn stamp(shared: &Shared) -> Stamp {
    let file = last_good::path(&shared.config.state_dir);
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
}
