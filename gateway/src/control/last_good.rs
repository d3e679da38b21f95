//! The last good table on disk: what the gateway serves when everything else is gone.
//!
//! Written a moment after each change, never on the way of an event; atomically,
//! so that a crash leaves the old file or the new one. A large table takes time:
//! its writer is a thread that stands behind all others where they want the core.
//! A thread cannot be made more important again without rights that a gateway does
//! not have: at the end it is given up, and another one writes the newest table.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
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

/// For setpriority(2): a tenth of what everybody else gets, where a core is wanted by both.
const NICE: i32 = 10;

/// One write while the process ends; the file before it stays then.
const END_MAX: Duration = Duration::from_secs(5);

/// The file's name in `--state-dir`.
const FILE: &str = "last-good-table";

/// A new file beside it. Two may be written at once, when one is given up.
const NEW: &str = "last-good-table.new";
const NEW_URGENT: &str = "last-good-table.urgent";

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

/// Reads the file, and when it was written; none if there is none.
///
/// # Errors
/// It is there but cannot be used.
pub fn read(state_dir: &Path) -> Result<Option<(Snapshot, SystemTime)>, ReadError> {
    match read_file(&path(state_dir)) {
        Ok((bytes, written_at)) => Ok(Some((Snapshot::decode(&bytes)?, written_at))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read_file(path: &Path) -> io::Result<(Vec<u8>, SystemTime)> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok((bytes, file.metadata()?.modified()?))
}

/// Whether a write goes on. Given up, it puts nothing in place any more.
#[derive(Debug, Default)]
struct Going(AtomicU8);

const WRITES: u8 = 0;
const PLACES: u8 = 1;
const GIVEN_UP: u8 = 2;

impl Going {
    /// False: it is too late, its file is about to be there.
    fn give_up(&self) -> bool {
        self.turns(GIVEN_UP)
    }

    /// Asked before the file is put in place; false: it must not be.
    fn may_place(&self) -> bool {
        self.turns(PLACES)
    }

    fn turns(&self, into: u8) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        let turned = self.0.compare_exchange(WRITES, into, success, failure);
        turned.is_ok()
    }

    /// An error once it is given up.
    fn check(&self) -> io::Result<()> {
        match self.0.load(Ordering::Acquire) {
            GIVEN_UP => Err(given_up()),
            _ => Ok(()),
        }
    }
}

fn given_up() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "given up for a newer table")
}

/// Replaces the file: written beside it as `new`, synced, renamed.
///
/// # Errors
/// The system refuses, or it is given up; the old file is still there.
fn write(state_dir: &Path, new: &str, bytes: &[u8], going: &Going) -> io::Result<()> {
    std::fs::create_dir_all(state_dir)?;
    let mut file = file_in(state_dir, new)?;
    let result = write_synced(&mut file.0, bytes, going).and_then(|()| match going.may_place() {
        true => std::fs::rename(&file.1, path(state_dir)),
        false => Err(given_up()),
    });
    if result.is_err() {
        let _ = std::fs::remove_file(&file.1);
        return result;
    }
    // The rename itself lives in the folder.
    File::open(state_dir)?.sync_all()
}

/// Writes and syncs, a bounded part at a time.
fn write_synced(file: &mut File, bytes: &[u8], going: &Going) -> io::Result<()> {
    for part in bytes.chunks(CHUNK) {
        going.check()?;
        file.write_all(part)?;
        file.sync_data()?;
    }
    file.sync_all()
}

/// The file tells who may reach what: it is its owner's alone.
fn file_in(state_dir: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = state_dir.join(name);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    Ok((file, path))
}

/// Writes the table in force a moment after each change, at once when `shutdown` is asked for, and
/// the newest one when no other comes any more: that is `over`, and it ends then.
///
/// A failure is logged and tried again; the table in use goes on. `followed` says whether
/// somebody waits for the file.
pub async fn keep(
    shared: Arc<Shared>,
    mut revision: RevisionWatch,
    followed: Arc<AtomicBool>,
    shutdown: CancellationToken,
    over: CancellationToken,
) {
    let mut written = None;
    loop {
        let begun = tokio::time::Instant::now();
        let (is_ending, is_last) = (shutdown.is_cancelled(), over.is_cancelled());
        let mut failed = false;
        let current = *revision.borrow_and_update();
        if written != Some(current) {
            let table = shared.table();
            let revision = table.revision;
            // Somebody waits for the file, or for the process to end.
            let urgent = followed.load(Ordering::Relaxed) || is_ending;
            let write = Write::begin(table, shared.config.state_dir.clone(), urgent);
            match end_of(write, urgent, &shutdown).await {
                Ok(()) => written = Some(revision),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    failed = true;
                    let file = path(&shared.config.state_dir);
                    tracing::warn!(file = %file.display(), %error, "cannot write the last good table");
                }
            }
        }
        if is_last {
            return;
        }
        if shutdown.is_cancelled() {
            let news = async {
                match failed {
                    true => tokio::time::sleep(RETRY).await,
                    false => {
                        if revision.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    }
                }
            };
            tokio::select! {
                () = news, if is_ending => {}
                () = over.cancelled() => {}
                // What came while the last one was written.
                () = std::future::ready(()), if !is_ending => {}
            }
            continue;
        }
        let pause = pause(begun.elapsed(), failed, followed.load(Ordering::Relaxed));
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

/// A write on a thread of its own, which unless it is urgent runs behind all others: encoding
/// 100,000 containers would else hold up what changes meanwhile on a machine with few cores.
///
/// Dropped, the thread still finishes its file if it is not given up.
struct Write {
    going: Arc<Going>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Write {
    fn begin(table: Arc<RouteTable>, state_dir: PathBuf, urgent: bool) -> io::Result<Self> {
        let (say, done) = oneshot::channel();
        let going = Arc::new(Going::default());
        let begun = Self {
            going: Arc::clone(&going),
            done,
        };
        std::thread::Builder::new()
            .name("last-good".to_owned())
            .spawn(move || {
                if !urgent {
                    // Refused, it is merely not as polite. On Linux this is the calling thread's
                    // alone.
                    let _ = setpriority_process(None, NICE);
                }
                let new = if urgent { NEW_URGENT } else { NEW };
                let bytes = Snapshot::encode_table(&table, now_ms()).map_err(io::Error::other);
                drop(table);
                // Nobody waits any more: it was given up.
                let _ = say.send(bytes.and_then(|bytes| write(&state_dir, new, &bytes, &going)));
            })?;
        Ok(begun)
    }
}

/// What came of it. When the process is to end, one that is not urgent is given up, and one that
/// is may not take longer than [`END_MAX`].
async fn end_of(
    write: io::Result<Write>,
    urgent: bool,
    shutdown: &CancellationToken,
) -> io::Result<()> {
    let Write { going, mut done } = write?;
    // Without a word it panicked.
    let said = |said: Result<io::Result<()>, oneshot::error::RecvError>| match said {
        Ok(outcome) => outcome,
        Err(error) => Err(io::Error::other(error)),
    };
    tokio::select! {
        outcome = &mut done => return said(outcome),
        () = shutdown.cancelled() => {}
    }
    if !urgent && going.give_up() {
        return Err(given_up());
    }
    match tokio::time::timeout(END_MAX, &mut done).await {
        Ok(outcome) => said(outcome),
        Err(late) => {
            // Whoever comes after this process has a newer one.
            going.give_up();
            Err(late.into())
        }
    }
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
            write(
                &state_dir,
                NEW,
                &snapshot.encode().unwrap(),
                &Going::default(),
            )
            .unwrap();
            assert_eq!(read(&state_dir).unwrap().unwrap().0, snapshot);
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
        write(
            folder.path(),
            NEW,
            &snapshot.encode().unwrap(),
            &Going::default(),
        )
        .unwrap();
        // A folder where the new file should go.
        std::fs::create_dir(folder.path().join("last-good-table.new")).unwrap();
        let newer = Snapshot {
            revision: 9,
            ..Snapshot::default()
        };
        let bytes = newer.encode().unwrap();
        assert!(write(folder.path(), NEW, &bytes, &Going::default()).is_err());
        assert_eq!(read(folder.path()).unwrap().unwrap().0, snapshot);
    }

    /// At the end there is no time for it, and what comes after it is newer.
    #[test]
    fn what_is_given_up_is_not_put_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = Snapshot::default().encode().unwrap();
        let going = Going::default();
        assert!(going.give_up());
        let given_up = write(folder.path(), NEW, &bytes, &going).unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::Interrupted);
        assert!(read(folder.path()).unwrap().is_none());
        let left = std::fs::read_dir(folder.path()).unwrap();
        assert_eq!(left.count(), 0, "nothing half written stays");
        // Too late: whoever gives up waits for it.
        let going = Going::default();
        write(folder.path(), NEW, &bytes, &going).unwrap();
        assert!(!going.give_up());
        assert!(read(folder.path()).unwrap().is_some());
    }

    /// A disk that hangs, or a core that everybody wants.
    #[tokio::test(start_paused = true)]
    async fn a_write_under_way_does_not_hold_up_the_end() {
        let under_way = || {
            let going = Arc::new(Going::default());
            let (say, done) = oneshot::channel();
            let write = Write {
                going: Arc::clone(&going),
                done,
            };
            (say, going, write)
        };
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let begun = tokio::time::Instant::now();
        let (_hangs, going, write) = under_way();
        let polite = end_of(Ok(write), false, &shutdown).await.unwrap_err();
        assert_eq!(polite.kind(), io::ErrorKind::Interrupted);
        assert!(begun.elapsed().is_zero() && !going.may_place());
        let (_hangs, going, write) = under_way();
        let urgent = end_of(Ok(write), true, &shutdown).await.unwrap_err();
        assert_eq!(urgent.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() == END_MAX && !going.may_place());
        // Its file is about to be there.
        let (say, going, write) = under_way();
        assert!(going.may_place());
        say.send(Ok(())).unwrap();
        end_of(Ok(write), false, &shutdown).await.unwrap();
    }
}
