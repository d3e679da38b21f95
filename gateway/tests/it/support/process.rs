//! The gateway's binary as a process of its own, for what one process cannot do to itself.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::DEADLINE;

/// A running `edd-gateway serve`; killed when dropped.
pub(crate) struct Process {
    pub(crate) addresses: HashMap<String, SocketAddr>,
    lines: mpsc::Receiver<String>,
    child: Child,
}

impl Process {
    /// Starts it in `folder` with at most `files` open files, and waits until it listens.
    pub(crate) async fn start(folder: &Path, files: u32, flags: &[&str]) -> Self {
        std::fs::write(folder.join("routes.yaml"), "routes: []\n").unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &files.to_string()])
            .arg(env!("CARGO_BIN_EXE_edd-gateway"))
            .args(["serve", "--log-format=json", "--ports-addr=127.0.0.1"])
            .args(
                ["http", "https", "ssh", "admin"].map(|name| format!("--{name}-addr=127.0.0.1:0")),
            )
            .args(flags)
            .current_dir(folder)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let (sender, lines) = mpsc::channel(10_000);
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        for reader in [
            Box::new(out) as Box<dyn tokio::io::AsyncRead + Send + Unpin>,
            Box::new(err),
        ] {
            let sender = sender.clone();
            let mut reader = BufReader::new(reader).lines();
            tokio::spawn(async move {
                while let Ok(Some(line)) = reader.next_line().await {
                    let _ = sender.try_send(line);
                }
            });
        }
        let mut process = Self {
            addresses: HashMap::new(),
            lines,
            child,
        };
        while process.addresses.len() < 4 {
            let line = process.line("\"listening\"").await;
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            let field = |name: &str| {
                let value = line.get(name).or_else(|| line.get("fields")?.get(name));
                value.and_then(|value| value.as_str()).map(str::to_owned)
            };
            if let (Some(name), Some(addr)) = (field("listener"), field("addr")) {
                process.addresses.insert(name, addr.parse().unwrap());
            }
        }
        process
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// The most memory it had in use so far, in KiB.
    pub(crate) fn peak_kib(&self) -> usize {
        let pid = self.child.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number
            .and_then(|number| number.parse().ok())
            .expect("a number")
    }

    /// The next line of its log with this text.
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
}
