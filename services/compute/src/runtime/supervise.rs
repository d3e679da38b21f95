//! One guest process from its start to its end.
//!
//! The task here owns the process. It ends the guest by closing its stdin, which
//! the guest takes as the order to kill all that it started, and by killing its
//! process group should it not obey. The same happens to a guest whose service
//! was killed: the pipe closes with it.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Take},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::oneshot,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::guest;

/// From the start of the process to its word that it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a guest may take to end after its stdin closed: it waits for its own
/// children for three seconds.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// What a guest may say in all, in bytes.
const WORDS_MAX: u64 = 4096;

/// Why a guest is not ready.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum NotReady {
    /// Somebody has its address and port.
    AddressInUse,
    /// Anything else.
    Failed(String),
}

/// A guest and the task that watches it.
#[derive(Debug)]
pub(super) struct Guest {
    /// Cancelled: the guest is to end.
    pub(super) stop: CancellationToken,
    /// Cancelled: it is gone, with all that it started.
    pub(super) gone: CancellationToken,
}

/// What the task reports.
#[derive(Debug)]
pub(super) struct Reports {
    /// Once: it is ready, or will never be.
    pub(super) ready: oneshot::Receiver<Result<(), NotReady>>,
    /// Why it ended by itself; closed without a value if that was asked for.
    pub(super) ended: oneshot::Receiver<String>,
}

/// Starts a guest and the task that watches it.
pub(super) fn spawn(mut command: Command, tasks: &TaskTracker) -> io::Result<(Guest, Reports)> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        // Its own group: signals of the terminal are for the service, which then
        // ends its guests in order.
        .process_group(0)
        .spawn()?;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("the pipes to the guest are missing"));
    };
    let (ready_sender, ready) = oneshot::channel();
    let (ended_sender, ended) = oneshot::channel();
    let stop = CancellationToken::new();
    let gone = CancellationToken::new();
    let process = Process {
        group: child
            .id()
            .and_then(|pid| Pid::from_raw(pid.try_into().ok()?)),
        child,
        stdin,
        words: BufReader::new(stdout.take(WORDS_MAX)),
    };
    let (stopped, done) = (stop.clone(), gone.clone().drop_guard());
    tasks.spawn(async move {
        process.watch(ready_sender, ended_sender, stopped).await;
        drop(done);
    });
    Ok((Guest { stop, gone }, Reports { ready, ended }))
}

struct Process {
    group: Option<Pid>,
    child: Child,
    stdin: ChildStdin,
    words: BufReader<Take<ChildStdout>>,
}

impl Process {
    async fn watch(
        mut self,
        ready: oneshot::Sender<Result<(), NotReady>>,
        ended: oneshot::Sender<String>,
        stop: CancellationToken,
    ) {
        let is_ready = tokio::select! {
            said = timeout(READY_TIMEOUT, self.first_word()) => {
                said.unwrap_or_else(|_| Err(NotReady::Failed("not ready in time".to_owned())))
            }
            () = stop.cancelled() => Err(NotReady::Failed("stopped".to_owned())),
        };
        let runs = is_ready.is_ok();
        // Nobody to tell: whoever waited gave up, and cancels `stop` as well.
        let _ = ready.send(is_ready);
        if runs {
            tokio::select! {
                status = self.child.wait() => {
                    let reason = self.reason(status).await;
                    self.end().await;
                    let _ = ended.send(reason);
                    return;
                }
                () = stop.cancelled() => {}
            }
        }
        self.end().await;
    }

    async fn first_word(&mut self) -> Result<(), NotReady> {
        let mut line = String::new();
        let read = self.words.read_line(&mut line).await;
        match (read, line.trim_end()) {
            (Ok(1..), guest::READY) => Ok(()),
            (Ok(1..), guest::IN_USE) => Err(NotReady::AddressInUse),
            (Ok(1..), reason) => Err(NotReady::Failed(reason.to_owned())),
            (Ok(0), _) => Err(NotReady::Failed("the guest ended at once".to_owned())),
            (Err(error), _) => Err(NotReady::Failed(format!("cannot hear the guest: {error}"))),
        }
    }

    /// What the guest said last, else how it ended.
    async fn reason(&mut self, status: io::Result<ExitStatus>) -> String {
        let mut words = String::new();
        // A descendant may still hold the pipe: no reason to wait for it.
        let _ = timeout(
            Duration::from_millis(200),
            self.words.read_to_string(&mut words),
        )
        .await;
        match (words.lines().last(), status) {
            (Some(word), _) => word.to_owned(),
            (None, Ok(status)) => format!("the guest ended: {status}"),
            (None, Err(error)) => format!("the guest is lost: {error}"),
        }
    }

    async fn end(mut self) {
        drop(self.stdin);
        if timeout(END_TIMEOUT, self.child.wait()).await.is_err() {
            tracing::warn!("a guest does not end when told to, killed");
        }
        // Also after a good end: a guest that was killed left its children. The
        // number of a group is not given away while it has members.
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = timeout(END_TIMEOUT, self.child.wait()).await;
    }
}
