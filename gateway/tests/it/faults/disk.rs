//! No space is left for the database and the last good table.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::outage;
use super::site::{CIDRS, Origins, Publisher, Traffic};
use crate::support::Bus;
use crate::support::daemon::Daemon;

/// The gateway as a process in `folder`, and a load on it.
async fn start(bus: &Bus, folder: &Path) -> (Daemon, Traffic) {
    let origins = Origins::start().await;
    std::fs::write(folder.join("routes.yaml"), origins.routes()).expect("written");
    std::fs::create_dir_all(folder.join("certs")).expect("created");
    std::fs::create_dir_all(folder.join("data")).expect("created");
    let mut flags: Vec<String> = ["http", "https", "ssh", "admin"]
        .map(|name| format!("--{name}-addr=127.0.0.1:0"))
        .into();
    flags.extend([
        format!("--nats-url={}", bus.server.url()),
        format!("--container-cidrs={CIDRS}"),
        format!("--ports={}", crate::support::free_port()),
    ]);
    // A file that may not grow is an error here, not the process's end.
    let command = Daemon::command(folder, "trap '' XFSZ; exec \"$@\"", &flags);
    let mut daemon = Daemon::start(command);
    let mut addresses = HashMap::new();
    while addresses.len() < 4 {
        let line = daemon.line("\"listening\"").await;
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let field = |name: &str| {
            let value = line.get(name).or_else(|| line.get("fields")?.get(name));
            value.and_then(|value| value.as_str()).map(str::to_owned)
        };
        if let (Some(name), Some(addr)) = (field("listener"), field("addr")) {
            addresses.insert(name, addr.parse::<SocketAddr>().expect("an address"));
        }
    }
    let publisher = Publisher::start(bus.server.jetstream().await, 1).await;
    let (https, admin) = (addresses["https"], addresses["admin"]);
    let traffic = Traffic::start(origins, publisher, https, admin).await;
    (daemon, traffic)
}

/// Needs no rights: files of the process cannot grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_no_file_can_grow_requests_are_served_and_events_wait() {
    let bus = Bus::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (daemon, mut traffic) = start(&bus, folder.path()).await;
    let pid = Pid::from_raw(daemon.pid().cast_signed()).expect("a process");
    let limit = |current| {
        let before = prlimit(
            Some(pid),
            Resource::Fsize,
            Rlimit {
                current,
                maximum: None,
            },
        );
        before.expect("the limit of one's own process");
    };
    limit(Some(1));
    traffic.publisher().change_for(outage()).await;
    traffic
        .until_ready("degraded", "database", "unavailable")
        .await;
    limit(None);
    traffic.end("disk full (file size limit)").await;
    drop(daemon);
}

/// Above the most that SQLite's log holds (64 MiB), and what five minutes of events leave.
const SIZE: &str = "size=128m";

/// A file system of its own, unmounted at the end.
struct Small(tempfile::TempDir);

impl Small {
    /// None, and a line that says so, where nobody may mount.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", SIZE, "tmpfs"])
            .arg(folder.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            _ => {
                println!("SKIPPED: no right to mount a tmpfs; the file size limit stands for it");
                None
            }
        }
    }

    fn fill(&self) {
        let path = self.0.path().join("fill");
        let mut file = std::fs::File::create(path).expect("created");
        // To the last byte.
        for size in [65536, 512, 1] {
            while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.path().join("fill")).expect("removed");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_requests_are_served_and_events_wait() {
    let Some(small) = Small::mount() else { return };
    let bus = Bus::start().await;
    let (mut daemon, mut traffic) = start(&bus, small.0.path()).await;
    small.fill();
    traffic.publisher().change_for(outage()).await;
    traffic
        .until_ready("degraded", "database", "unavailable")
        .await;
    small.empty();
    traffic.end("disk full (tmpfs)").await;
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
}
