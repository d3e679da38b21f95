//! Ending everything that a process started, without `unsafe` and without
//! trusting process groups: SSH sessions leave them.
//!
//! The guest is the "subreaper" of its descendants: whatever daemonises becomes
//! its child instead of init's, so that a walk over `/proc` finds all of them.

use std::{
    collections::HashMap,
    fs, io,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, getpid, kill_process, wait},
};

/// How long killed processes may take to vanish.
const VANISH_TIMEOUT: Duration = Duration::from_secs(3);
/// Between looks at the process table.
const VANISH_POLL: Duration = Duration::from_millis(5);

/// Makes this process the parent of its orphaned descendants.
pub(super) fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(getpid()))?)
}

/// Takes note of all children that ended; true if `watched` was among them.
pub(super) fn reap(watched: Option<Pid>) -> bool {
    let mut seen = false;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, _))) => seen |= Some(pid) == watched,
            Err(Errno::INTR) => {}
            // None ended, or there are no children.
            Ok(None) | Err(_) => return seen,
        }
    }
}

/// Kills all descendants of this process and waits until they are gone.
/// Blocks for at most [`VANISH_TIMEOUT`]; false if some are left.
pub(super) fn kill_descendants() -> bool {
    let deadline = Instant::now() + VANISH_TIMEOUT;
    loop {
        reap(None);
        let left = descendants(getpid());
        if left.is_empty() {
            return true;
        }
        for pid in left {
            // It may be gone already.
            let _ = kill_process(pid, Signal::KILL);
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(VANISH_POLL);
    }
}

/// All processes below `root`, those that ended but were not reaped included.
fn descendants(root: Pid) -> Vec<Pid> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok());
        let Some(pid) = pid else { continue };
        // Gone between the listing and here: no descendant of anybody.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        if let Some(parent) = parent(&stat) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![root.as_raw_nonzero().get()];
    while let Some(pid) = next.pop() {
        // Removed, so that a table that changed under us has no circles.
        for child in children.remove(&pid).unwrap_or_default() {
            next.push(child);
            found.extend(Pid::from_raw(child));
        }
    }
    found
}

/// The fourth field of `/proc/PID/stat`; the second, the name, may hold blanks
/// and parentheses.
fn parent(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes_cannot_confuse_the_table() {
        assert_eq!(parent("12 (a) b (c) S 7 12 12"), Some(7));
        assert_eq!(parent("12 (sshd) S 1"), Some(1));
        for bad in ["", "12", "12 (x)", "12 (x) S", "12 (x) S y"] {
            assert_eq!(parent(bad), None, "{bad}");
        }
    }

    #[test]
    fn descendants_hold_children() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        assert!(descendants(getpid()).contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!descendants(getpid()).contains(&pid));
    }
}
