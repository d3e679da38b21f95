//! SIGUSR2: this program is started again, to take over from this process.
//!
//! Whatever file is at the program's path by then is started, with the same
//! arguments, environment and standard streams. The path is the one by which this
//! process was started, symbolic links and all: an upgrade may put another file in
//! its place or lead a link elsewhere. The rest is `take_over`'s.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// What makes the new process take over.
const TAKE_OVER: &str = "EDD_GATEWAY_TAKE_OVER";

/// The path by which this program was started. Ask at the start: its file may be another later.
///
/// # Errors
/// The system does not tell.
pub fn program() -> io::Result<PathBuf> {
    let running = std::env::current_exe()?;
    let named = std::env::args_os().next().unwrap_or_default();
    let search = std::env::var_os("PATH").unwrap_or_default();
    Ok(unresolved(Path::new(&named), &search, &running).unwrap_or(running))
}

/// The path that `named` (what the program was called by) stands for, if that is `running`.
fn unresolved(named: &Path, search: &OsStr, running: &Path) -> Option<PathBuf> {
    let is_running = |path: &PathBuf| {
        let id = |path: &Path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.dev(), found.ino()))
        };
        // A caller may name a program as it likes.
        id(path).is_some_and(|found| Some(found) == id(running))
    };
    let absolute = |path: PathBuf| std::path::absolute(path).ok().filter(is_running);
    match named.as_os_str().as_bytes() {
        b"" => None,
        name if name.contains(&b'/') => absolute(named.to_owned()),
        _ => std::env::split_paths(search).find_map(|folder| absolute(folder.join(named))),
    }
}

/// Watches for the signal from here on, so that it does not end this process.
///
/// # Errors
/// Signals cannot be watched.
pub fn asked() -> io::Result<Signal> {
    signal(SignalKind::user_defined2())
}

/// Starts a successor whenever the signal comes, one at a time, until `shutdown`.
///
/// `program` is what [`program`] said at the start.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_the_one_that_it_was_called_by() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("v1")).unwrap();
        std::fs::write(at("v1/program"), "").unwrap();
        std::fs::write(at("other"), "").unwrap();
        std::os::unix::fs::symlink(at("v1"), at("current")).unwrap();
        let running = at("v1/program");
        let by =
            |named: &str, search: &str| unresolved(Path::new(named), OsStr::new(search), &running);
        let link = at("current/program");
        let text = |path: &Path| path.display().to_string();
        assert_eq!(by(&text(&link), ""), Some(link.clone()));
        // As a shell finds it: not in the first folder, in the second.
        let search = format!("{}:{}", text(folder.path()), text(&at("current")));
        assert_eq!(by("program", &search), Some(link));
        // A name that says nothing.
        for named in ["", "program", "sh", "./program", &text(&at("other"))] {
            assert_eq!(by(named, "/nowhere"), None, "{named}");
        }
    }
}
