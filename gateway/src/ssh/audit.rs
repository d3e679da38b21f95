//! What a client connection has done: its record, a line per channel, metrics, recordings.
//!
//! Each channel tells what passes ([`ChannelAudit`]); its line is written when
//! it ends, so that a connection of many channels holds nothing for them but a
//! short list of the first ones. What clients send is cut to bounds and escaped
//! by the log; label values come from fixed lists.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use russh::{ChannelOpenFailure, Sig};
use tokio::time::Instant;

use super::handler::Login;
use super::recording::{Recorder, Recording, Subject};
use super::request::Request;
use super::uplink::Excess;
use crate::telemetry::access::SshChannelRecord;
use crate::telemetry::{Metrics, SshBytes};

/// Of a command, a path, a host: so many characters are logged.
const TEXT_MAX: usize = 256;

/// Requests to run something that the container has not answered: clients send one.
const ASKED_MAX: usize = 16;

/// Channels that the session's own record names.
const NAMED_MAX: usize = 8;

/// One client connection.
pub(crate) struct Audit {
    /// Names it in the log and in the names of recordings.
    session: String,
    metrics: Metrics,
    bytes: SshBytes,
    recorder: Option<Arc<Recorder>>,
    login: OnceLock<Login>,
    channels: AtomicU64,
    /// Locked once per channel, at its end, and at the end of the connection.
    named: Mutex<Vec<String>>,
}

/// One channel of it. Dropped, it has ended and its line is written.
pub(crate) struct ChannelAudit {
    audit: Arc<Audit>,
    /// Its type, as the protocol names it.
    kind: &'static str,
    /// Where to, of a forward.
    target: String,
    begun: Instant,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Locked for requests, which are few, and for output while it is recorded.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Which of the connection's channels; 0: not open yet.
    number: u64,
    terminal: Option<Terminal>,
    /// What the container is to run and has not answered, in order.
    asked: VecDeque<Run>,
    /// What runs, or what was refused last.
    run: Option<Run>,
    /// Whether it runs.
    accepted: bool,
    exit: Option<String>,
    refused: Option<&'static str>,
    recording: Option<Recording>,
}

/// What a container is asked to run.
struct Run {
    /// `shell`, `exec`, `subsystem`.
    request: &'static str,
    command: String,
}

struct Terminal {
    term: String,
    size: (u32, u32),
}

impl Audit {
    /// A connection that has not logged in.
    pub(crate) fn new(metrics: Metrics, recorder: Option<Arc<Recorder>>) -> Arc<Self> {
        Arc::new(Self {
            session: format!("{:016x}", rand::random::<u64>()),
            bytes: metrics.ssh_bytes(),
            metrics,
            recorder,
            login: OnceLock::new(),
            channels: AtomicU64::new(0),
            named: Mutex::default(),
        })
    }

    /// Its id.
    pub(crate) fn session(&self) -> &str {
        &self.session
    }

    /// Who has logged in.
    pub(crate) fn logged_in(&self, login: Login) {
        let _ = self.login.set(login);
    }

    /// The first channels that have ended, and what they were for.
    pub(crate) fn summary(&self) -> String {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        match named.is_empty() {
            true => "-".to_owned(),
            false => named.join("; "),
        }
    }

    /// A channel that is asked for: its type, and where to if it is a forward.
    pub(crate) fn channel(self: &Arc<Self>, kind: &'static str, target: &str) -> ChannelAudit {
        ChannelAudit {
            audit: Arc::clone(self),
            kind,
            target: cut(target),
            begun: Instant::now(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }
}

impl ChannelAudit {
    /// It is open.
    pub(crate) fn opened(&self) {
        self.audit.metrics.ssh_channel(self.kind);
        self.state().number = self.audit.channels.fetch_add(1, Ordering::Relaxed) + 1;
    }

    /// It was not opened.
    pub(crate) fn refused(&self, reason: &ChannelOpenFailure) {
        // The protocol's numbers (RFC 4254, section 5.1), for the gateway's own have words besides.
        let reason = match reason.code() {
            1 => "prohibited",
            2 => "connect_failed",
            3 => "unknown_type",
            4 => "resource_shortage",
            _ => "other",
        };
        self.audit.metrics.ssh_open_failed(reason);
        self.state().refused = Some(reason);
    }

    /// The client asks for something in it; an error if it asks on and on and awaits no answer.
    pub(crate) fn request(&self, request: &Request) -> Result<(), Excess> {
        let mut state = self.state();
        let (request, command) = match request {
            Request::Pty { term, size, .. } => {
                let [columns, rows, ..] = *size;
                state.terminal = Some(Terminal {
                    term: cut(term),
                    size: (columns, rows),
                });
                return Ok(());
            }
            Request::WindowChange([columns, rows, ..]) => {
                if let Some(recording) = &state.recording {
                    recording.resize(*columns, *rows);
                } else if let Some(terminal) = &mut state.terminal {
                    terminal.size = (*columns, *rows);
                }
                return Ok(());
            }
            Request::Shell => ("shell", String::new()),
            Request::Exec(command) => ("exec", cut(&String::from_utf8_lossy(command))),
            Request::Subsystem(name) => ("subsystem", cut(name)),
            _ => return Ok(()),
        };
        if state.asked.len() >= ASKED_MAX {
            return Err(Excess);
        }
        state.asked.push_back(Run { request, command });
        // Not only when it is accepted: what is shown before the answer is to be in it, too. If
        // it is refused, the recording waits for the next.
        if request != "subsystem" && state.recording.is_none() {
            self.record(&mut state);
        }
        Ok(())
    }

    /// The container has answered the first of the requests to run something. One per channel
    /// succeeds (RFC 4254, section 6.5), and not always the first.
    pub(crate) fn answered(&self, accepted: bool) {
        let mut state = self.state();
        let Some(run) = state.asked.pop_front() else {
            return;
        };
        if !state.accepted {
            state.run = Some(run);
            state.accepted = accepted;
        }
    }

    /// The container makes no terminal for it.
    pub(crate) fn has_no_terminal(&self) {
        let mut state = self.state();
        state.terminal = None;
        state.recording = None;
    }

    /// Bytes from the client.
    pub(crate) fn arrived(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        self.audit.bytes.arrived(bytes);
    }

    /// Bytes for the client.
    pub(crate) fn sent(&self, data: &Bytes) {
        self.bytes_out
            .fetch_add(data.len() as u64, Ordering::Relaxed);
        self.audit.bytes.sent(data.len());
        if self.audit.recorder.is_some()
            && let Some(recording) = &self.state().recording
        {
            recording.output(data);
        }
    }

    /// Its process has ended: `0`, `TERM`, ….
    pub(crate) fn exited(&self, how: &str) {
        self.state().exit = Some(cut(how));
    }

    /// Begins a recording if a terminal's session is to have one.
    fn record(&self, state: &mut State) {
        let audit = &*self.audit;
        let (Some(recorder), Some(login), Some(terminal)) =
            (&audit.recorder, audit.login.get(), &state.terminal)
        else {
            return;
        };
        if !recorder.wants(&login.target.id) {
            return;
        }
        state.recording = Some(recorder.begin(&Subject {
            container: &login.target.id,
            session: &audit.session,
            channel: state.number,
            term: &terminal.term,
            size: terminal.size,
        }));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ChannelAudit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChannelAudit").field(&self.kind).finish()
    }
}

impl Drop for ChannelAudit {
    fn drop(&mut self) {
        let audit = &*self.audit;
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(login) = audit.login.get() else {
            return;
        };
        if !state.accepted
            && let Some(run) = state.asked.pop_front()
        {
            state.run = Some(run);
        }
        let (request, command) = match &state.run {
            Some(run) => (run.request, run.command.as_str()),
            None => ("-", ""),
        };
        SshChannelRecord {
            session: &audit.session,
            revision: login.revision,
            container: login.target.id.as_str(),
            channel: state.number,
            kind: self.kind,
            target: dash(&self.target),
            request,
            command: dash(command),
            terminal: state.terminal.is_some(),
            recorded: state.recording.is_some(),
            bytes_in: *self.bytes_in.get_mut(),
            bytes_out: *self.bytes_out.get_mut(),
            exit: state.exit.as_deref().unwrap_or("-"),
            duration: self.begun.elapsed(),
            note: state.refused,
        }
        .log();
        let mut named = audit.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < NAMED_MAX {
            let mut text = self.kind.to_owned();
            for part in [request, command, &self.target] {
                if !part.is_empty() && part != "-" {
                    text.push(' ');
                    text.push_str(part);
                }
            }
            if let Some(exit) = &state.exit {
                text.push_str(" -> ");
                text.push_str(exit);
            }
            if let Some(reason) = state.refused {
                text.push_str(" refused: ");
                text.push_str(reason);
            }
            named.push(text);
        }
    }
}

/// `TERM`, as the protocol writes it.
pub(crate) fn signal(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => name.clone(),
        known => format!("{known:?}"),
    }
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// The first [`TEXT_MAX`] characters.
fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"ä".repeat(TEXT_MAX)).chars().count(), TEXT_MAX);
        let long = cut(&"ä".repeat(TEXT_MAX + 1));
        assert_eq!(long.chars().count(), TEXT_MAX + 1);
        assert!(long.ends_with("ä…"));
    }
}
