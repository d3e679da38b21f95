//! The files of recordings: written by one thread, each to its end or to what ends it early.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tracing::{info, warn};

use super::{Event, Job, Tape, Waiting, private_folder};
use crate::config::Recordings;
use crate::telemetry::Metrics;

/// How often recordings without a word are looked after.
const LOOK: Duration = Duration::from_secs(1);

/// Owns the files.
pub(super) struct Writer {
    folder: PathBuf,
    bytes_max: u64,
    waiting: Arc<Waiting>,
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
    /// Writes into the folder of `config`; `waiting` is what it has not come to.
    pub(super) fn new(config: &Recordings, waiting: Arc<Waiting>, metrics: Metrics) -> Self {
        Self {
            folder: config.folder.clone(),
            bytes_max: config.bytes_max,
            waiting,
            metrics,
            open: HashMap::new(),
        }
    }

    /// Writes until nobody can send any more.
    pub(super) fn run(mut self, queue: &Receiver<Job>) {
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
                    let bytes = job.event.len();
                    self.waiting.sub(bytes);
                    job.tape.waiting.sub(bytes);
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
