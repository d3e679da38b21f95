//! SIGUSR2: this program is started again, to take over from this process.
//!
//! Whatever file is at the program's path by then is started, with the same
//! arguments, environment and standard streams. The rest is `take_over`'s.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// What makes the new process take over.
const TAKE_OVER: &str = "EDD_GATEWAY_TAKE_OVER";

/// Watches for the signal from here on, so that it does not end this process.
///
/// # Errors
/// Signals cannot be watched.
pub fn asked() -> io::Result<Signal> {
    signal(SignalKind::user_defined2())
}

/// Starts a successor whenever the signal comes, one at a time, until `shutdown`.
///
/// `program` is where this program was found when it started: its file may be another now.
pub async fn whenever(mut asked: Signal, program: PathBuf, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(asked.recv()).await.is_some() {
        info!(program = %program.display(), "starting a successor");
        let mut successor = Command::new(&program);
        successor
            .args(std::env::args_os().skip(1))
            .env(TAKE_OVER, "true")
            // Ours by now, and named for our process.
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES")
            .env_remove("LISTEN_PID")
            .stdin(Stdio::null());
        match successor.spawn() {
            // It outlives this process if it takes over, and then never ends here.
            Ok(mut child) => match child.wait().await {
                Ok(ended) => warn!(%ended, "the successor has ended, going on"),
                Err(error) => error!(%error, "the successor is out of sight"),
            },
            Err(error) => error!(program = %program.display(), %error, "no successor"),
        }
    }
}
