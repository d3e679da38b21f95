//! Long-lived children: nats-server and the three daemons, each with a log file of its own.
//!
//! A daemon ends with the value that holds it, and with xtask itself however that ends: where the
//! machine has `setpriv`, the kernel sends it SIGTERM when we die.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::child;

/// A daemon dropped without a word, because a step failed, gets this long after SIGTERM.
const DROP_GRACE: Duration = Duration::from_secs(5);

/// How much of a log's end is shown.
const TAIL_LINES: usize = 15;

/// A running process with a name and a log.
pub(crate) struct Daemon {
    name: &'static str,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Starts a program; what it writes is appended to `<logs>/<name>.log`.
    pub(crate) fn start(
        name: &'static str,
        program: &Path,
        logs: &Path,
        configure: impl FnOnce(&mut Command) -> Result<()>,
    ) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = tied_to_us(program);
        configure(&mut command)?;
        let err = out.try_clone().context("cannot open the log twice")?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = child::spawn(&mut command, name)?;
        Ok(Self {
            name,
            log,
            child: Some(child),
        })
    }

    /// Its process id: that of the program itself, since what starts it only replaces itself.
    pub(crate) fn pid(&self) -> Result<u32> {
        let child = self.child.as_ref();
        child
            .map(Child::id)
            .with_context(|| format!("{} was stopped", self.name))
    }

    /// An error once the process has ended, with the last line of its log.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else {
            bail!("{} was stopped", self.name)
        };
        if let Some(status) = child.try_wait().context("cannot wait for a child")? {
            self.child = None;
            bail!(
                "{} ended with {status}: {} (log: {})",
                self.name,
                last_line(&self.log),
                self.log.display()
            );
        }
        Ok(())
    }

    /// Waits until `ready` holds. Ends early when the process does, or when we are asked to stop.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            self.check_running()?;
            if started.elapsed() > limit {
                bail!(
                    "{} is not {what} after {} s: {} (log: {})",
                    self.name,
                    limit.as_secs(),
                    last_line(&self.log),
                    self.log.display()
                );
            }
            child::pause(child::POLL)?;
        }
        Ok(())
    }

    /// SIGTERM, then its exit status; SIGKILL and an error past `grace`. Does not look at Ctrl-C:
    /// this is what Ctrl-C leads to.
    pub(crate) fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        let Some(mut child) = self.child.take() else {
            bail!("{} was stopped", self.name)
        };
        let pid = Pid::from_child(&child);
        // A process that is gone already tells by its status.
        let _ = kill_process(pid, Signal::TERM);
        let started = Instant::now();
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if started.elapsed() < grace => std::thread::sleep(child::POLL),
                Ok(None) | Err(_) => break,
            }
        }
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = child.wait();
        bail!(
            "{} had to be killed: not ended {} s after SIGTERM",
            self.name,
            grace.as_secs()
        )
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        format!(
            "--- the end of {}\n{}\n",
            self.log.display(),
            lines.get(from..).unwrap_or_default().join("\n")
        )
    }

    /// Its log, whole.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_some()
            && let Err(error) = self.stop(DROP_GRACE)
        {
            eprintln!("xtask: {error:#}");
        }
    }
}

fn last_line(log: &Path) -> String {
    let log = fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    log.lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("it wrote nothing")
        .to_owned()
}

/// The program, to be told by the kernel when we die.
fn tied_to_us(program: &Path) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    let has_setpriv = *SETPRIV.get_or_init(|| {
        let mut probe = Command::new("setpriv");
        probe.args(["--pdeathsig", "TERM", "true"]);
        child::try_output(&mut probe, "setpriv", Some(Duration::from_secs(5)))
            .is_ok_and(|output| output.status.success())
    });
    if !has_setpriv {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell script as a daemon, its log in a folder of the test's own.
    struct Fixture {
        logs: PathBuf,
        daemon: Daemon,
    }

    impl Fixture {
        fn start(test: &str, script: &str) -> Self {
            let logs =
                std::env::temp_dir().join(format!("edd-xtask-{test}-{}", std::process::id()));
            fs::create_dir_all(&logs).expect("a folder");
            let daemon = Daemon::start("script", Path::new("/bin/sh"), &logs, |command| {
                command.args(["-c", script]);
                Ok(())
            });
            Self {
                logs,
                daemon: daemon.expect("started"),
            }
        }

        fn wait_for_log(&mut self, text: &str) -> Result<()> {
            let log = self.logs.join("script.log");
            self.daemon
                .wait_until("there", Duration::from_secs(20), || {
                    fs::read_to_string(&log).is_ok_and(|said| said.contains(text))
                })
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.logs);
        }
    }

    #[test]
    fn a_daemon_that_ends_early_is_told_with_its_last_line() {
        let mut fixture = Fixture::start("early", "echo starting; echo port 80 is taken; exit 3");
        let error = fixture.wait_for_log("never said").expect_err("it ended");
        let error = error.to_string();
        assert!(
            error.contains("port 80 is taken") && error.contains("exit status: 3"),
            "{error}"
        );
    }

    #[test]
    fn stop_gives_the_status_that_sigterm_led_to() {
        let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done";
        let mut fixture = Fixture::start("term", script);
        fixture.wait_for_log("ready").expect("ready");
        let status = fixture
            .daemon
            .stop(Duration::from_secs(20))
            .expect("ended by itself");
        assert_eq!(status.code(), Some(5));
        assert!(fixture.daemon.check_running().is_err());
    }

    #[test]
    fn a_deaf_daemon_is_killed_with_its_children() {
        let script = "trap '' TERM; sleep 1000 & echo child $!; wait; wait";
        let mut fixture = Fixture::start("deaf", script);
        fixture.wait_for_log("child ").expect("ready");
        let said = fs::read_to_string(fixture.logs.join("script.log")).expect("a log");
        let child = said.trim().trim_start_matches("child ").to_owned();
        let error = fixture
            .daemon
            .stop(Duration::from_millis(100))
            .expect_err("killed");
        assert!(error.to_string().contains("had to be killed"), "{error:#}");
        // Gone, or not yet reaped by whoever adopts orphans here.
        let started = Instant::now();
        while fs::read_to_string(format!("/proc/{child}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "))
        {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "the daemon's child lives on"
            );
            std::thread::yield_now();
        }
    }
}
