//! Recordings of terminal sessions, in asciicast v2 (asciinema's format).
//!
//! Of containers that the operator names, what a terminal showed and its size;
//! never what was typed (it has passwords in it), never a session without a
//! terminal, never what is forwarded. One thread writes all files, fed by a
//! bounded queue: a disk that is slow, full or gone ends recordings and harms
//! no session. Of the queue each recording may fill as much as it leaves free, so
//! that a flood tears its own and no other.

mod writer;

use std::convert::Infallible;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use edd_route::ContainerId;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::writer::Writer;
use crate::config::Recordings;
use crate::telemetry::Metrics;

/// Jobs that may wait for the disk.
const JOBS_MAX: usize = 4096;

/// Bytes in them.
const BYTES_MAX: usize = 16 << 20;

/// Columns or rows of the largest terminal that is worth playing.
const SIZE_MAX: u32 = 9999;

/// Begins recordings.
#[derive(Debug)]
pub(crate) struct Recorder {
    containers: Option<Vec<ContainerId>>,
    jobs: SyncSender<Job>,
    /// In the queue.
    waiting: Arc<Waiting>,
    next: AtomicU64,
    metrics: Metrics,
    /// Taken once.
    end: Mutex<Option<RecordingsEnd>>,
}

/// The writer's end: it is over when all that was recorded is written.
#[derive(Debug)]
pub struct RecordingsEnd(oneshot::Receiver<Infallible>);

/// What waits for the disk.
#[derive(Debug, Default)]
struct Waiting {
    jobs: AtomicUsize,
    bytes: AtomicUsize,
}

/// One terminal session's recording. Dropped, it is complete.
#[derive(Debug)]
pub(crate) struct Recording {
    tape: Arc<Tape>,
    begun: Instant,
    jobs: SyncSender<Job>,
    waiting: Arc<Waiting>,
}

/// What a recording and its writer have in common.
#[derive(Debug)]
struct Tape {
    number: u64,
    /// Of this recording.
    waiting: Waiting,
    /// Something could not be queued, so nothing after it may be written.
    torn: AtomicBool,
}

#[derive(Debug)]
struct Job {
    tape: Arc<Tape>,
    at: Duration,
    event: Event,
}

#[derive(Debug)]
enum Event {
    Begin { path: PathBuf, header: String },
    End,
    Output(Bytes),
    Resize(u32, u32),
}

/// What is recorded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'s> {
    /// The container.
    pub(crate) container: &'s ContainerId,
    /// The session's id, as the access log has it.
    pub(crate) session: &'s str,
    /// Which of its channels.
    pub(crate) channel: u64,
    /// The terminal's type.
    pub(crate) term: &'s str,
    /// Its columns and rows.
    pub(crate) size: (u32, u32),
}

impl Recorder {
    /// Makes the folder and starts the writer, which ends with the last recording.
    ///
    /// # Errors
    /// The folder cannot be made, the thread not started.
    pub(crate) fn start(config: &Recordings, metrics: Metrics) -> io::Result<Self> {
        private_folder(&config.folder)?;
        let (jobs, queue) = sync_channel(JOBS_MAX);
        let waiting = Arc::<Waiting>::default();
        let writer = Writer::new(config, Arc::clone(&waiting), metrics.clone());
        let (alive, end) = oneshot::channel();
        std::thread::Builder::new()
            .name("ssh-recordings".into())
            .spawn(move || {
                writer.run(&queue);
                drop(alive);
            })?;
        Ok(Self {
            containers: config.containers.clone(),
            jobs,
            waiting,
            next: AtomicU64::new(0),
            metrics,
            end: Mutex::new(Some(RecordingsEnd(end))),
        })
    }

    /// What the end of the process waits for; for the first who asks.
    pub(crate) fn end(&self) -> Option<RecordingsEnd> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.take()
    }

    /// Whether terminal sessions of this container are recorded.
    pub(crate) fn wants(&self, container: &ContainerId) -> bool {
        let named = self.containers.as_ref();
        named.is_none_or(|named| named.contains(container))
    }

    /// Begins one.
    pub(crate) fn begin(&self, subject: &Subject<'_>) -> Recording {
        let begun = SystemTime::now();
        let seconds = begun.duration_since(UNIX_EPOCH).unwrap_or_default();
        let Subject {
            container,
            session,
            channel,
            term,
            size,
        } = subject;
        let (columns, rows) = shown(*size);
        let name = format!("{}-{session}-{channel}.cast", stamp(begun));
        let header = json!({
            "version": 2,
            "width": columns,
            "height": rows,
            "timestamp": seconds.as_secs(),
            "title": format!("{container} {session}"),
            "env": { "TERM": term },
        });
        let recording = Recording {
            tape: Arc::new(Tape {
                number: self.next.fetch_add(1, Ordering::Relaxed),
                waiting: Waiting::default(),
                torn: AtomicBool::new(false),
            }),
            begun: Instant::now(),
            jobs: self.jobs.clone(),
            waiting: Arc::clone(&self.waiting),
        };
        self.metrics.ssh_recording("begun");
        recording.put(Event::Begin {
            path: Path::new(container.as_str()).join(name),
            header: header.to_string(),
        });
        recording
    }
}

impl RecordingsEnd {
    /// Waits until everything is written, which needs the recorder and all recordings dropped;
    /// false if that took longer than `limit`.
    pub async fn wait(self, limit: Duration) -> bool {
        timeout(limit, self.0).await.is_ok()
    }
}

impl Recording {
    /// What the terminal is shown. Never waits.
    pub(crate) fn output(&self, data: &Bytes) {
        self.put(Event::Output(data.clone()));
    }

    /// The terminal has another size. Never waits.
    pub(crate) fn resize(&self, columns: u32, rows: u32) {
        let (columns, rows) = shown((columns, rows));
        self.put(Event::Resize(columns, rows));
    }

    fn put(&self, event: Event) {
        if self.tape.torn.load(Ordering::Relaxed) {
            return;
        }
        let bytes = event.len();
        // What begins and ends recordings takes the last places, too.
        let is_bound = bytes > 0;
        let own = self.tape.waiting.add(bytes);
        let all = self.waiting.add(bytes);
        let fits = own.leaves_room_in(&all);
        let job = Job {
            tape: Arc::clone(&self.tape),
            at: self.begun.elapsed(),
            event,
        };
        if (is_bound && !fits) || self.jobs.try_send(job).is_err() {
            self.tape.waiting.sub(bytes);
            self.waiting.sub(bytes);
            self.tape.torn.store(true, Ordering::Relaxed);
        }
    }
}

/// Jobs and bytes.
struct Amount {
    jobs: usize,
    bytes: usize,
}

impl Amount {
    /// Whether this, of one recording, is no more than what is free beside `all`.
    fn leaves_room_in(&self, all: &Self) -> bool {
        self.jobs <= JOBS_MAX.saturating_sub(all.jobs)
            && self.bytes <= BYTES_MAX.saturating_sub(all.bytes)
    }
}

impl Waiting {
    /// Counts a job; what waits with it.
    fn add(&self, bytes: usize) -> Amount {
        Amount {
            jobs: self.jobs.fetch_add(1, Ordering::Relaxed) + 1,
            bytes: self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes,
        }
    }

    fn sub(&self, bytes: usize) {
        self.jobs.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // If this finds no room, the writer sees that nobody else holds the tape.
        self.put(Event::End);
    }
}

impl Event {
    fn len(&self) -> usize {
        match self {
            Self::Output(data) => data.len(),
            // Its line.
            Self::Resize(..) => 32,
            Self::Begin { .. } | Self::End => 0,
        }
    }
}

/// A size that players take: clients say 0 for one that they do not know, and whatever they like.
fn shown((columns, rows): (u32, u32)) -> (u32, u32) {
    let or = |told: u32, usual: u32| match told {
        0 => usual,
        told => told.min(SIZE_MAX),
    };
    (or(columns, 80), or(rows, 24))
}

/// Makes a folder that is its owner's alone, if there is none.
fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// `20260131T120000Z`.
fn stamp(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    struct Rig {
        folder: tempfile::TempDir,
        recorder: Recorder,
        registry: Registry,
    }

    fn rig(bytes_max: u64, containers: Option<&[&str]>) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let config = Recordings {
            folder: folder.path().join("recordings"),
            containers: containers
                .map(|ids| ids.iter().map(|id| ContainerId::new(id).unwrap()).collect()),
            bytes_max,
        };
        let recorder = Recorder::start(&config, metrics).unwrap();
        Rig {
            folder,
            recorder,
            registry,
        }
    }

    impl Rig {
        fn begin(&self) -> Recording {
            self.recorder.begin(&Subject {
                container: &ContainerId::new("c1").unwrap(),
                session: "0123456789abcdef",
                channel: 1,
                term: "xterm",
                size: (80, 24),
            })
        }

        fn wait_for(&self, result: &str) {
            let wanted = format!("ssh_recordings_total{{result=\"{result}\"}} 1");
            let begun = Instant::now();
            loop {
                let mut text = String::new();
                prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
                if text.contains(&wanted) {
                    return;
                }
                assert!(begun.elapsed() < LIMIT, "{text}");
                std::thread::yield_now();
            }
        }

        fn lines(&self) -> Vec<serde_json::Value> {
            lines(&self.folder)
        }
    }

    fn lines(folder: &tempfile::TempDir) -> Vec<serde_json::Value> {
        let folder = folder.path().join("recordings/c1");
        let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn characters_are_kept_whole_and_what_is_none_is_replaced() {
        let rig = rig(1 << 20, None);
        let recording = rig.begin();
        for piece in [b"a\xe2\x82".as_slice(), b"\xac\xff", b"b\x1b[0m\r\n"] {
            recording.output(&Bytes::copy_from_slice(piece));
        }
        recording.resize(100, 40);
        drop(recording);
        rig.wait_for("complete");
        let lines = rig.lines();
        assert_eq!(lines[0]["version"], 2);
        assert_eq!(
            (&lines[0]["width"], &lines[0]["height"]),
            (&80.into(), &24.into())
        );
        let events: Vec<_> = lines[1..].iter().map(|line| (&line[1], &line[2])).collect();
        let expected = [
            ("o", "a"),
            ("o", "€\u{fffd}"),
            ("o", "b\u{1b}[0m\r\n"),
            ("r", "100x40"),
        ];
        assert_eq!(events.len(), expected.len());
        for ((code, text), (wanted_code, wanted)) in events.iter().zip(expected) {
            assert_eq!(
                (code.as_str(), text.as_str()),
                (Some(wanted_code), Some(wanted))
            );
        }
    }

    #[test]
    fn sizes_are_such_as_players_take() {
        assert_eq!(shown((0, 0)), (80, 24));
        assert_eq!(shown((0, 50)), (80, 50));
        assert_eq!(shown((132, 43)), (132, 43));
        assert_eq!(shown((70_000, u32::MAX)), (9999, 9999));
        let rig = rig(1 << 20, None);
        let recording = rig.begin();
        recording.resize(0, 0);
        recording.resize(70_000, 1);
        drop(recording);
        rig.wait_for("complete");
        let lines = rig.lines();
        let sizes: Vec<_> = lines[1..].iter().map(|line| line[2].as_str()).collect();
        assert_eq!(sizes, [Some("80x24"), Some("9999x1")]);
    }

    #[tokio::test]
    async fn the_end_comes_when_all_is_written() {
        let rig = rig(u64::MAX, None);
        let end = rig.recorder.end().expect("for the first");
        assert!(rig.recorder.end().is_none());
        let recording = rig.begin();
        // Small ones, so that there is something to do.
        for _ in 0..JOBS_MAX / 4 {
            recording.output(&Bytes::from_static(b"0123456789abcdef"));
        }
        drop(recording);
        let Rig {
            folder, recorder, ..
        } = rig;
        drop(recorder);
        assert!(end.wait(LIMIT).await);
        assert_eq!(lines(&folder).len(), 1 + JOBS_MAX / 4);
    }

    #[tokio::test]
    async fn the_end_is_not_waited_for_longer_than_asked() {
        let rig = rig(u64::MAX, None);
        let _recording = rig.begin();
        let end = rig.recorder.end().expect("for the first");
        assert!(!end.wait(Duration::from_millis(1)).await);
    }

    #[test]
    fn a_recording_that_is_too_large_ends_with_a_mark() {
        let rig = rig(10_000, None);
        let recording = rig.begin();
        for _ in 0..100 {
            recording.output(&Bytes::from(vec![b'x'; 1000]));
        }
        rig.wait_for("too_large");
        let lines = rig.lines();
        assert!(lines.len() < 15);
        assert_eq!(lines.last().unwrap()[1], "m");
        drop(recording);
    }

    #[test]
    fn what_the_disk_is_too_slow_for_ends_with_a_mark_and_costs_no_time() {
        let rig = rig(u64::MAX, None);
        let recording = rig.begin();
        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        // No disk is that fast: a queue's worth at once, and more.
        let begun = Instant::now();
        while !recording.tape.torn.load(Ordering::Relaxed) {
            recording.output(&piece);
            assert!(begun.elapsed() < LIMIT);
        }
        rig.wait_for("torn");
        assert_eq!(rig.lines().last().unwrap()[1], "m");
    }

    #[test]
    fn a_flood_tears_its_own_recording_and_no_other() {
        for piece in [vec![b'x'; 256 << 10], vec![b'x']] {
            let mut rig = rig(u64::MAX, None);
            // A disk that takes nothing.
            let (jobs, _queue) = sync_channel(JOBS_MAX);
            rig.recorder.jobs = jobs;
            let floods = [rig.begin(), rig.begin()];
            let piece = Bytes::from(piece);
            let torn = |recording: &Recording| recording.tape.torn.load(Ordering::Relaxed);
            while !floods.iter().all(torn) {
                for flood in &floods {
                    flood.output(&piece);
                }
            }
            let other = rig.begin();
            for _ in 0..100 {
                other.output(&Bytes::from(vec![b'y'; 1 << 10]));
                other.resize(80, 24);
            }
            assert!(!torn(&other), "pieces of {}", piece.len());
            let held: usize = floods
                .iter()
                .map(|flood| flood.tape.waiting.bytes.load(Ordering::Relaxed))
                .sum();
            assert!(held <= BYTES_MAX, "{held}");
        }
    }

    #[test]
    fn a_folder_that_is_gone_ends_recordings_only() {
        let rig = rig(1 << 20, None);
        std::fs::remove_dir_all(rig.folder.path().join("recordings")).unwrap();
        std::fs::write(rig.folder.path().join("recordings"), "a file").unwrap();
        let recording = rig.begin();
        recording.output(&Bytes::from_static(b"x"));
        drop(recording);
        rig.wait_for("failed");
    }

    #[test]
    fn only_named_containers_are_recorded() {
        let some = rig(1, Some(&["c1"]));
        assert!(some.recorder.wants(&ContainerId::new("c1").unwrap()));
        assert!(!some.recorder.wants(&ContainerId::new("c2").unwrap()));
        assert!(
            rig(1, None)
                .recorder
                .wants(&ContainerId::new("c2").unwrap())
        );
    }
}
