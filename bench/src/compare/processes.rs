//! What a process and its descendants have used: CPU time and memory, from `/proc`.
//!
//! CPU time is the scheduler's own sum of nanoseconds per thread (`schedstat`), user and system
//! together. A thread that ended takes its share away, so a proxy that starts and ends threads
//! would look too cheap; none of those compared here does while it is measured.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// The processes of a proxy.
pub(crate) struct Tree(Vec<u32>);

impl Tree {
    /// A process and all its descendants, as they are now.
    pub(crate) fn of(root: u32) -> Result<Self> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for entry in fs::read_dir("/proc").context("no /proc")?.flatten() {
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            // A process that ends between the two is none of ours: ours are waited for.
            if let Some(pid) = pid
                && let Some(parent) = parent(pid)
            {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut tree = vec![root];
        let mut next = 0;
        while let Some(pid) = tree.get(next) {
            tree.extend(children.remove(pid).unwrap_or_default());
            next += 1;
        }
        let tree = Self(tree);
        if tree.cpu()? == Duration::ZERO {
            bail!("no process {root}");
        }
        Ok(tree)
    }

    /// The CPU time that its threads have used.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut nanos = 0;
        for pid in &self.0 {
            let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
                continue;
            };
            for thread in threads.flatten() {
                // "nanoseconds-on-cpu nanoseconds-waiting slices"
                let used = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
                let used = used.split(' ').next().and_then(|used| used.parse().ok());
                nanos += used.unwrap_or(0);
            }
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Anonymous memory in use, in KiB: heap and stacks, not the program's files.
    pub(crate) fn memory_kib(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in &self.0 {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let anonymous = status
                .lines()
                .find_map(|line| line.strip_prefix("RssAnon:"))
                .and_then(|rest| rest.split_whitespace().next())
                .and_then(|kib| kib.parse::<u64>().ok());
            sum += anonymous.unwrap_or(0);
        }
        if sum == 0 {
            bail!("the proxy has ended");
        }
        Ok(sum)
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name, which may hold anything) state ppid ..."
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}

/// What all cores together have been busy with since boot.
pub(crate) fn machine_busy() -> Result<Duration> {
    /// `USER_HZ`, which the kernel keeps at 100 for `/proc` whatever its own tick.
    const PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/stat").context("no /proc/stat")?;
    // "cpu user nice system idle iowait irq softirq steal guest guest_nice"
    let fields: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    let &[user, nice, system, _, _, irq, softirq, steal, ..] = fields.as_slice() else {
        bail!("/proc/stat is not as it used to be");
    };
    let ticks = user + nice + system + irq + softirq + steal;
    Ok(Duration::from_secs_f64(ticks / PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_work_of_a_process_and_its_children() {
        let mut shell = std::process::Command::new("/bin/sh")
            .args(["-c", "(while :; do :; done) & wait"])
            .spawn()
            .expect("a shell");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let seen = loop {
            let tree = Tree::of(shell.id()).expect("there");
            let used = tree.cpu().expect("readable");
            if tree.0.len() > 1 && used > Duration::from_millis(50) {
                break true;
            }
            if std::time::Instant::now() > deadline {
                break false;
            }
            std::thread::yield_now();
        };
        for pid in Tree::of(shell.id()).expect("there").0 {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("ended");
        }
        shell.wait().expect("waited for");
        assert!(seen, "the child's loop was not counted");
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(Tree::of(u32::MAX >> 1).is_err());
    }
}
