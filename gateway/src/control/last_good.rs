//! The last good table on disk: what the gateway serves when everything else is gone.
//!
//! Written a moment after each change, never on the way of an event; atomically,
//! so that a crash leaves the old file or the new one. A large table takes time:
//! its writer is a thread that stands behind all others where they want the core.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edd_route::RouteTable;
use edd_route::snapshot::{Snapshot, SnapshotError};
use rustix::process::setpriority_process;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::shared::Shared;

/// Changes within this time go into one write.
const COALESCE: Duration = Duration::from_millis(250);

/// A write is followed by a pause of at least so many times its duration.
const WRITE_SHARE: u32 = 8;

/// Pause while a predecessor follows the file: what is removed is to end there within a second.
const FOLLOWED: Duration = Duration::from_millis(100);

/// Pause after a failed write, and the longest of all.
const RETRY: Duration = Duration::from_secs(5);

/// Written and synced at a time, in bytes: what the database has to sync in the meantime waits for
/// no more than this.
const CHUNK: usize = 1 << 20;

/// For setpriority(2): a tenth of what everybody else gets, where a core is wanted by both. Less
/// would hold up a stop, which waits for the file that is being written.
const NICE: i32 = 10;

/// The file's name in `--state-dir`.
const FILE: &str = "last-good-table";

/// Why the file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system refuses it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is no whole table.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// Where the file is.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Reads the file; none if there is none.
///
/// # Errors
/// It is there but cannot be used.
pub fn read(state_dir: &Path) -> Result<Option<Snapshot>, ReadError> {
    match std::fs::read(path(state_dir)) {
        Ok(bytes) => Ok(Some(Snapshot::decode(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Replaces the file: written beside it, synced, renamed.
///
/// # Errors
/// The system refuses; the old file is still there.
fn write(state_dir: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::create_dir_all(state_dir)?;
    let mut file = tempfile_in(state_dir)?;
    let result =
        write_synced(&mut file.0, bytes).and_then(|()| std::fs::rename(&file.1, path(state_dir)));
    if result.is_err() {
        let _ = std::fs::remove_file(&file.1);
        return result;
    }
    // The rename itself lives in the folder.
    File::open(state_dir)?.sync_all()
}

/// Writes and syncs, a bounded part at a time.
fn write_synced(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    for part in bytes.chunks(CHUNK) {
        file.write_all(part)?;
        file.sync_data()?;
    }
    file.sync_all()
}

/// The file tells who may reach what: it is its owner's alone.
fn tempfile_in(state_dir: &Path) -> io::Result<(File, PathBuf)> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = state_dir.join(format!("{FILE}.new"));
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    Ok((file, path))
}

/// Writes the table in force a moment after each change, and at the end.
///
/// A failure is logged and tried again; the table in use goes on. `followed` says whether
/// somebody waits for the file.
pub async fn keep(
    shared: Arc<Shared>,
    mut revision: RevisionWatch,
    followed: Arc<AtomicBool>,
    shutdown: CancellationToken,
) {
    let mut written = None;
    loop {
        let begun = tokio::time::Instant::now();
        let mut failed = false;
        let current = *revision.borrow_and_update();
        if written != Some(current) {
            let table = shared.table();
            let revision = table.revision;
            // Somebody waits for the file, or for the process to end.
            let urgent = followed.load(Ordering::Relaxed) || shutdown.is_cancelled();
            match write_aside(table, shared.config.state_dir.clone(), urgent).await {
                Ok(()) => written = Some(revision),
                Err(error) => {
                    failed = true;
                    let file = path(&shared.config.state_dir);
                    tracing::warn!(file = %file.display(), %error, "cannot write the last good table");
                }
            }
        }
        let pause = pause(begun.elapsed(), failed, followed.load(Ordering::Relaxed));
        if shutdown.is_cancelled() {
            return;
        }
        // What comes within the pause is written in one go.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => continue,
        }
        if written == Some(*revision.borrow()) {
            tokio::select! {
                changed = revision.changed() => if changed.is_err() { return },
                () = shutdown.cancelled() => {}
            }
        }
    }
}

/// Writes on a thread of its own, which unless it is urgent runs behind all others: encoding
/// 100,000 containers would else hold up what changes meanwhile on a machine with few cores.
///
/// Dropped early, the thread still finishes its file.
async fn write_aside(table: Arc<RouteTable>, state_dir: PathBuf, urgent: bool) -> io::Result<()> {
    let (done, written) = oneshot::channel();
    std::thread::Builder::new()
        .name("last-good".to_owned())
        .spawn(move || {
            if !urgent {
                // Refused, it is merely not as polite. On Linux this is the calling thread's alone.
                let _ = setpriority_process(None, NICE);
            }
            let bytes = Snapshot::encode_table(&table, now_ms()).map_err(io::Error::other);
            drop(table);
            let _ = done.send(bytes.and_then(|bytes| write(&state_dir, &bytes)));
        })?;
    // Without a word it panicked.
    written.await.map_err(io::Error::other)?
}

/// Until the next write after one that took so long.
fn pause(took: Duration, failed: bool, followed: bool) -> Duration {
    match (failed, followed) {
        (true, _) => RETRY,
        (false, true) => FOLLOWED,
        // A large table costs time to write: never more than a part of one core.
        (false, false) => (took * WRITE_SHARE).clamp(COALESCE, RETRY),
    }
}

/// The revision in force, as it changes.
pub type RevisionWatch = tokio::sync::watch::Receiver<u64>;

/// Now, as Unix milliseconds.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_broken_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("state");
        assert!(read(&state_dir).unwrap().is_none());
        let snapshot = Snapshot {
            revision: 7,
            taken_ms: 1,
            ..Snapshot::default()
        };
        for _ in 0..2 {
            write(&state_dir, &snapshot.encode().unwrap()).unwrap();
            assert_eq!(read(&state_dir).unwrap().unwrap(), snapshot);
        }
        let whole = std::fs::read(path(&state_dir)).unwrap();
        for len in 0..whole.len() {
            std::fs::write(path(&state_dir), &whole[..len]).unwrap();
            assert!(read(&state_dir).is_err(), "cut at {len}");
        }
    }

    /// R: a large table's write is followed by a long pause, in which nothing that was removed
    /// would end in a process that drains.
    #[test]
    fn whoever_follows_the_file_waits_for_no_pause() {
        let long = Duration::from_millis(400);
        assert_eq!(pause(long, false, false), WRITE_SHARE * long);
        assert_eq!(pause(Duration::ZERO, false, false), COALESCE);
        assert_eq!(pause(long * 100, false, false), RETRY);
        assert_eq!(pause(long * 100, false, true), FOLLOWED);
        assert_eq!(pause(Duration::ZERO, true, true), RETRY);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = Snapshot::default();
        write(folder.path(), &snapshot.encode().unwrap()).unwrap();
        // A folder where the new file should go.
        std::fs::create_dir(folder.path().join("last-good-table.new")).unwrap();
        let newer = Snapshot {
            revision: 9,
            ..Snapshot::default()
        };
        assert!(write(folder.path(), &newer.encode().unwrap()).is_err());
        assert_eq!(read(folder.path()).unwrap().unwrap(), snapshot);
    }
}
