//! The gateway's binary as a process that is sent signals and replaced.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::DEADLINE;

/// A running process; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Daemon {
    /// The command that runs the gateway in `folder`, bound to loopback and to free ports.
    ///
    /// `script` is run by `sh` with the program and its arguments as `$@`.
    pub(crate) fn command(folder: &Path, script: &str, flags: &[String]) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_edd-gateway")])
            .args(["serve", "--platform-domain=localhost"])
            .args(["--ports-addr=127.0.0.1", "--drain-timeout=5s"])
            .args(flags)
            .current_dir(folder)
            .env_clear()
            .env("EDD_GATEWAY_LOG_FORMAT", "json")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Starts it and follows its output.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let (sender, lines) = mpsc::channel(10_000);
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        tokio::spawn(async move {
            while let Ok(Some(line)) = out.next_line().await {
                let _ = sender.try_send(line);
            }
        });
        Self { child, lines }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// The next line with this text.
    pub(crate) async fn line(&mut self, text: &str) -> String {
        let find = async {
            let mut before = Vec::new();
            loop {
                match self.lines.recv().await {
                    Some(line) if line.contains(text) => return line,
                    Some(line) => before.push(line),
                    None => panic!("it ended without {text}: {before:#?}"),
                }
            }
        };
        let found = timeout(DEADLINE, find).await;
        found.unwrap_or_else(|_| panic!("no line with {text}"))
    }

    /// All lines that are left, up to its end.
    pub(crate) async fn rest(&mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Ok(Some(line)) = timeout(DEADLINE, self.lines.recv()).await {
            rest.push(line);
        }
        rest
    }

    /// Where a listener of it is, from its log.
    pub(crate) async fn address(&mut self, listener: &str) -> SocketAddr {
        let line = self.line(&format!("\"listener\":\"{listener}\"")).await;
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        line["addr"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).unwrap();
        kill_process(pid, signal).expect("sent");
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = timeout(DEADLINE, self.child.wait()).await;
        ended.expect("an end in time").expect("a status")
    }
}
