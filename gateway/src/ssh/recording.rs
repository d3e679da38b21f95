//! Recordings of terminal sessions, in asciicast v2 (asciinema's format).
//!
//! Of containers that the operator names, what a terminal showed and its size;
//! never what was typed (it has passwords in it), never a session without a
//! terminal, never what is forwarded. One thread writes all files, fed by a
//! bounded queue: a disk that is slow, full or gone ends recordings and harms
//! no session.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use edd_route::ContainerId;
use serde_json::json;
use time::OffsetDateTime;
use tracing::{info, warn};

use crate::config::Recordings;
use crate::telemetry::Metrics;

/// Jobs that may wait for the disk.
const JOBS_MAX: usize = 4096;

/// Bytes in them.
const BYTES_MAX: usize = 16 << 20;

/// How often recordings without a word are looked after.
const LOOK: Duration = Duration::from_secs(1);

/// Begins recordings.
#[derive(Debug)]
pub(crate) struct Recorder {
    containers: Option<Vec<ContainerId>>,
    jobs: SyncSender<Job>,
    /// Bytes in the queue.
    waiting: Arc<AtomicUsize>,
    next: AtomicU64,
    metrics: Metrics,
}

/// One terminal session's recording. Dropped, it is complete.
#[derive(Debug)]
pub(crate) struct Recording {
    tape: Arc<Tape>,
    begun: Instant,
    jobs: SyncSender<Job>,
    waiting: Arc<AtomicUsize>,
}

/// What a recording and its writer have in common.
#[derive(Debug)]
struct Tape {
    number: u64,
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
        let waiting = Arc::<AtomicUsize>::default();
        let writer = Writer {
            folder: config.folder.clone(),
            bytes_max: config.bytes_max,
            waiting: Arc::clone(&waiting),
            metrics: metrics.clone(),
            open: HashMap::new(),
        };
        std::thread::Builder::new()
            .name("ssh-recordings".into())
            .spawn(move || writer.run(&queue))?;
        Ok(Self {
            containers: config.containers.clone(),
            jobs,
            waiting,
            next: AtomicU64::new(0),
            metrics,
        })
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
            size: (columns, rows),
        } = subject;
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

impl Recording {
    /// What the terminal is shown. Never waits.
    pub(crate) fn output(&self, data: &Bytes) {
        self.put(Event::Output(data.clone()));
    }

    /// The terminal has another size. Never waits.
    pub(crate) fn resize(&self, columns: u32, rows: u32) {
        self.put(Event::Resize(columns, rows));
    }

    fn put(&self, event: Event) {
        if self.tape.torn.load(Ordering::Relaxed) {
            return;
        }
        let bytes = event.len();
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let job = Job {
            tape: Arc::clone(&self.tape),
            at: self.begun.elapsed(),
            event,
        };
        if before + bytes > BYTES_MAX || self.jobs.try_send(job).is_err() {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.tape.torn.store(true, Ordering::Relaxed);
        }
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
            Self::Begin { .. } | Self::End | Self::Resize(..) => 0,
        }
    }
}

struct Writer {
    folder: PathBuf,
    bytes_max: u64,
    waiting: Arc<AtomicUsize>,
    metrics: Metrics,
    open: HashMap<u64, Open>,
}

/// A file that is written.
struct Open {
    tape: Arc<Tape>,
    path: PathBuf,
    file: BufWriter<File>,
    written: u64,
    at: Duration,
    /// The beginning of a character whose end has not come.
    rest: Vec<u8>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Job>) {
        loop {
            let job = match queue.try_recv() {
                Ok(job) => Ok(job),
                // Nothing waits: what was written may be read.
                Err(_) => {
                    self.flush();
                    queue.recv_timeout(LOOK)
                }
            };
            match job {
                Ok(job) => {
                    self.waiting.fetch_sub(job.event.len(), Ordering::Relaxed);
                    self.take(job);
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let left: Vec<u64> = self.open.keys().copied().collect();
        for number in left {
            self.close(number, None);
        }
    }

    fn take(&mut self, job: Job) {
        let Job { tape, at, event } = job;
        let number = tape.number;
        let done = match event {
            Event::Begin { path, header } => self.begin(tape, &path, &header),
            Event::End => {
                self.close(number, None);
                return;
            }
            Event::Output(data) => self.write(number, |open| {
                let text = open.text(&data);
                if text.is_empty() {
                    return Ok(());
                }
                open.event(at, 'o', &text)
            }),
            Event::Resize(columns, rows) => self.write(number, |open| {
                open.event(at, 'r', &format!("{columns}x{rows}"))
            }),
        };
        if let Err(error) = done {
            self.fail(number, &error);
        }
    }

    fn begin(&mut self, tape: Arc<Tape>, path: &Path, header: &str) -> io::Result<()> {
        let path = self.folder.join(path);
        let make = || {
            if let Some(folder) = path.parent() {
                private_folder(folder)?;
            }
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
        };
        let file = make().inspect_err(|error| {
            self.metrics.ssh_recording("failed");
            warn!(path = %path.display(), %error, "a terminal session is not recorded");
        })?;
        info!(path = %path.display(), "recording a terminal session");
        let number = tape.number;
        let open = Open {
            tape,
            path,
            file: BufWriter::new(file),
            written: 0,
            at: Duration::ZERO,
            rest: Vec::new(),
        };
        self.open.insert(number, open);
        self.write(number, |open| open.line(header))
    }

    fn write(
        &mut self,
        number: u64,
        write: impl FnOnce(&mut Open) -> io::Result<()>,
    ) -> io::Result<()> {
        // Closed before: too large, or lost.
        let Some(open) = self.open.get_mut(&number) else {
            return Ok(());
        };
        write(open)?;
        if open.written > self.bytes_max {
            self.close(number, Some(("too_large", "the recording is too large")));
        }
        Ok(())
    }

    /// Ends those that were torn, and those whose end found no room.
    fn look(&mut self) {
        let torn: Vec<(u64, bool)> = self
            .open
            .values()
            .filter(|open| {
                open.tape.torn.load(Ordering::Relaxed) || Arc::strong_count(&open.tape) == 1
            })
            .map(|open| (open.tape.number, open.tape.torn.load(Ordering::Relaxed)))
            .collect();
        for (number, torn) in torn {
            let why = ("torn", "the disk was too slow for the recording");
            self.close(number, torn.then_some(why));
        }
    }

    fn flush(&mut self) {
        let flushed: Vec<(u64, io::Error)> = self
            .open
            .iter_mut()
            .filter_map(|(number, open)| Some((*number, open.file.flush().err()?)))
            .collect();
        for (number, error) in flushed {
            self.fail(number, &error);
        }
        // What was torn has had all that was queued before.
        self.look();
    }

    /// The last event, and the end. `why` it ends before its session does, if so.
    fn close(&mut self, number: u64, why: Option<(&'static str, &str)>) {
        let Some(mut open) = self.open.remove(&number) else {
            return;
        };
        let why = why.or_else(|| {
            let torn = open.tape.torn.load(Ordering::Relaxed);
            torn.then_some(("torn", "the disk was too slow for the recording"))
        });
        let ended = match why {
            Some((_, text)) => open.event(open.at, 'm', text),
            None => Ok(()),
        };
        match ended.and_then(|()| open.file.flush()) {
            Ok(()) => self
                .metrics
                .ssh_recording(why.map_or("complete", |(label, _)| label)),
            Err(error) => self.lost(&open.path, &error),
        }
    }

    fn fail(&mut self, number: u64, error: &io::Error) {
        if let Some(open) = self.open.remove(&number) {
            self.lost(&open.path, error);
            // What it still holds cannot be written either; dropped, it would try.
            let _ = open.file.into_parts();
        }
    }

    fn lost(&self, path: &Path, error: &io::Error) {
        self.metrics.ssh_recording("failed");
        warn!(path = %path.display(), %error, "a recording ends early, its session goes on");
    }
}

impl Open {
    /// The characters that are complete with `data`.
    fn text(&mut self, data: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.rest);
        bytes.extend_from_slice(data);
        let mut text = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let bad = chunk.invalid();
            let is_unfinished = |bad| {
                let error = std::str::from_utf8(bad).err();
                error.is_some_and(|error| error.error_len().is_none())
            };
            if chunks.peek().is_none() && is_unfinished(bad) {
                self.rest = bad.to_vec();
            } else if !bad.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    fn event(&mut self, at: Duration, code: char, text: &str) -> io::Result<()> {
        self.at = at;
        let (seconds, micros) = (at.as_secs(), at.subsec_micros());
        let text = serde_json::to_string(text)?;
        self.line(&format!("[{seconds}.{micros:06}, \"{code}\", {text}]"))
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        self.written += line.len() as u64 + 1;
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")
    }
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
            let folder = self.folder.path().join("recordings/c1");
            let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap();
            let text = std::fs::read_to_string(file.path()).unwrap();
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        }
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
