//! Clients and servers written in Python, with what `cargo xtask test` fetched from PyPI.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{DEADLINE, program};

/// How long a whole scenario of a script may take.
const SCENARIO: Duration = Duration::from_secs(180);

/// `tests/it/<script>` with these arguments, not yet started.
fn command(script: &str, args: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it")
        .join(script);
    let mut command = interpreter();
    command.arg(script).args(args);
    command
}

/// A module of the packages that is a program, with these arguments, not yet started.
pub(crate) fn module(name: &str, args: &[&str]) -> Command {
    let mut command = interpreter();
    command.args(["-m", name]).args(args);
    command
}

fn interpreter() -> Command {
    let mut command = Command::new(program("python3", "EDD_PYTHON"));
    command
        .env("PYTHONPATH", packages())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONUNBUFFERED", "1")
        // What a developer's shell says about proxies is not for loopback.
        .env("no_proxy", "*")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The folder of the packages.
fn packages() -> PathBuf {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/dev/tools/python-packages");
    let folder = std::env::var_os("EDD_PYTHON_PACKAGES").map_or(usual, PathBuf::from);
    assert!(
        folder.join("installed").is_file(),
        "the Python packages of the tests are missing: run `cargo xtask test`, which fetches them"
    );
    folder
}

/// Runs a script to its end, which must be a good one; what it printed.
pub(crate) async fn run(script: &str, args: &[&str]) -> String {
    let mut command = command(script, args);
    let output = timeout(SCENARIO, command.output()).await;
    let output = output
        .unwrap_or_else(|_| panic!("{script} {args:?} did not end within {SCENARIO:?}"))
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{script} {args:?}: {}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// A server written in Python; ends with its value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    _child: Child,
}

impl Server {
    /// Starts a script whose first line is the address it listens on.
    pub(crate) async fn start(script: &str, args: &[&str]) -> Self {
        let mut child = command(script, args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let line = timeout(DEADLINE, lines.next_line()).await;
        let line = line.expect("an address in time").expect("text");
        let line = line.unwrap_or_else(|| panic!("{script} ended without an address"));
        // Nothing it says later may block it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self {
            address: line.parse().expect("an address"),
            _child: child,
        }
    }
}
