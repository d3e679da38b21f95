//! Child processes: each is started here, waited for with Ctrl-C in mind, and ended here.
//!
//! Every child is in a process group of its own. Ctrl-C in a terminal therefore reaches xtask
//! alone, which then ends its children in order. Waiting is polling: xtask has no threads that
//! could be woken, and a child's end noticed 10 ms late costs nothing.

use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a waiting loop looks again.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// How long a child may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(10);

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Ctrl-C, SIGTERM or a closed terminal ended the command.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped by a signal")
    }
}

impl std::error::Error for Interrupted {}

/// From here on SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process, so that what
/// was started is ended and what is half-written is removed.
pub(crate) fn catch_signals() -> Result<()> {
    let flag = STOP.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag))
            .context("cannot install a signal handler")?;
    }
    Ok(())
}

/// True once a signal asked us to stop.
pub(crate) fn interrupted() -> bool {
    STOP.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// [`Interrupted`] once a signal asked us to stop.
pub(crate) fn check_interrupted() -> Result<()> {
    if interrupted() {
        Err(Interrupted.into())
    } else {
        Ok(())
    }
}

/// Waits a moment in a loop that looks for something; ends early with [`Interrupted`].
pub(crate) fn pause(duration: Duration) -> Result<()> {
    check_interrupted()?;
    std::thread::sleep(duration);
    check_interrupted()
}

/// Runs a command with its output on ours. A status other than 0 is an error.
pub(crate) fn run(command: &mut Command, what: &str) -> Result<()> {
    let status = status(command, what)?;
    if !status.success() {
        bail!("{what} ended with {status}");
    }
    Ok(())
}

/// Runs a command with its output on ours and gives its status.
pub(crate) fn status(command: &mut Command, what: &str) -> Result<ExitStatus> {
    let mut child = spawn(command.stdin(Stdio::null()), what)?;
    wait(&mut child, None)
}

/// Runs a command with its stderr on ours and collects its stdout. A status other than 0 is an
/// error.
pub(crate) fn stdout(command: &mut Command, what: &str) -> Result<Vec<u8>> {
    let mut child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()), what)?;
    let stdout = child.stdout.take().map(collect);
    let status = wait(&mut child, None)?;
    if !status.success() {
        bail!("{what} ended with {status}");
    }
    Ok(join(stdout))
}

/// Runs a command and collects its output. A status other than 0 is an error that ends with the
/// last line the command wrote to stderr.
pub(crate) fn output(command: &mut Command, what: &str) -> Result<Output> {
    let output = try_output(command, what, None)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr
            .lines()
            .map(str::trim)
            .rfind(|line| !line.is_empty())
            .unwrap_or("");
        bail!("{what} ended with {}: {last}", output.status);
    }
    Ok(output)
}

/// Runs a command and collects its output and status, for at most `limit`.
pub(crate) fn try_output(
    command: &mut Command,
    what: &str,
    limit: Option<Duration>,
) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = spawn(command, what)?;
    collect_output(child, what, limit)
}

/// Collects the output of a child with piped stdout or stderr and waits for its end, for at most
/// `limit`.
pub(crate) fn finish(child: Child, what: &str, limit: Duration) -> Result<Output> {
    collect_output(child, what, Some(limit))
}

fn collect_output(mut child: Child, what: &str, limit: Option<Duration>) -> Result<Output> {
    // Both pipes are emptied at the same time, or a full one would stop the child.
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let status = wait(&mut child, limit).with_context(|| what.to_owned())?;
    Ok(Output {
        status,
        stdout: join(stdout),
        stderr: join(stderr),
    })
}

fn collect(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe ends the output; what came before it counts.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn join(reader: Option<std::thread::JoinHandle<Vec<u8>>>) -> Vec<u8> {
    reader
        .and_then(|reader| reader.join().ok())
        .unwrap_or_default()
}

/// Starts a command in a process group of its own.
pub(crate) fn spawn(command: &mut Command, what: &str) -> Result<Child> {
    check_interrupted()?;
    command.process_group(0);
    command.spawn().with_context(|| {
        format!(
            "cannot start {what} ({})",
            command.get_program().to_string_lossy()
        )
    })
}

/// Waits for a child's end. Past the limit, or when we are asked to stop, the child is ended.
fn wait(child: &mut Child, limit: Option<Duration>) -> Result<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a child")? {
            return Ok(status);
        }
        if interrupted() {
            stop_group(child, GRACE);
            return Err(Interrupted.into());
        }
        if limit.is_some_and(|limit| started.elapsed() > limit) {
            stop_group(child, Duration::from_secs(1));
            bail!("not done after {:.0?}", started.elapsed());
        }
        std::thread::sleep(POLL);
    }
}

/// Ends a child and everything in its group: SIGTERM, wait, SIGKILL.
fn stop_group(child: &mut Child, grace: Duration) {
    let pid = Pid::from_child(child);
    // A group that is gone already is what we want.
    let _ = kill_process_group(pid, Signal::TERM);
    let started = Instant::now();
    while started.elapsed() < grace {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(POLL);
    }
    let _ = kill_process_group(pid, Signal::KILL);
    let _ = child.wait();
}
