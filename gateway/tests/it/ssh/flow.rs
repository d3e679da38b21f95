//! What a slow side does: it is waited for, in bounded memory, and nobody else notices.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin};
use tokio::task::JoinHandle;

use super::rig::{Rig, exit_code, noise, stdout, within};
use crate::support::{DEADLINE, eventually};

/// What may lie between two processes with `ssh`, gateway and `sshd` in the way: their windows
/// (2 MiB each way and hop), our queue, pipes and sockets.
const IN_BETWEEN_MAX: usize = 24 << 20;

/// Counts what a process takes.
struct Feed {
    taken: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Feed {
    fn start(mut input: ChildStdin, data: Vec<u8>) -> Self {
        let taken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&taken);
        let task = tokio::spawn(async move {
            for chunk in data.chunks(16 << 10) {
                if input.write_all(chunk).await.is_err() {
                    return;
                }
                count.fetch_add(chunk.len(), Ordering::Relaxed);
            }
            let _ = input.shutdown().await;
        });
        Self { taken, task }
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Waits until nothing moves any more; how much went in.
    async fn stalled(&self) -> usize {
        let mut last = usize::MAX;
        within(DEADLINE, "a stall", async {
            while last != self.taken() || last == 0 {
                last = self.taken();
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
        })
        .await;
        last
    }
}

fn piped(rig: &Rig, run: &str) -> Child {
    rig.ssh_over("c1")
        .arg(run)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn read_all(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    within(2 * DEADLINE, "the whole output", from.read_to_end(&mut all))
        .await
        .unwrap();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_asleep_holds_the_writer_and_nothing_is_lost() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let data = noise(48 << 20);
    let mut ssh = rig
        .ssh("c1")
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let feed = Feed::start(ssh.stdin.take().unwrap(), data.clone());
    let taken = feed.stalled().await;
    assert!(taken < IN_BETWEEN_MAX, "{taken} bytes are somewhere");
    let back = read_all(ssh.stdout.take().unwrap()).await;
    assert!(back == data, "{} of {} bytes", back.len(), data.len());
    assert_eq!(exit_code(&mut ssh).await, Some(0));
    feed.task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_upload_leaves_other_sessions_of_its_connection_alone() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let mut master = rig.master("c1").await;
    // Reads no more, and ends with the test's folder.
    let run = format!(
        "read line; while [ -e {} ]; do sleep 0.2; done",
        rig.at("known_hosts")
    );
    let mut stalled = piped(&rig, &run);
    let mut data = b"begin\n".to_vec();
    data.extend(noise(48 << 20));
    let feed = Feed::start(stalled.stdin.take().unwrap(), data);
    let taken = feed.stalled().await;
    assert!(taken < IN_BETWEEN_MAX, "{taken} bytes are somewhere");

    for n in 0..3 {
        let run = format!("echo {n}");
        let mut command = rig.ssh_over("c1");
        let echo = stdout(command.arg(&run));
        let text = within(Duration::from_secs(5), "a command", echo).await;
        assert_eq!(text, format!("{n}\n"));
    }
    // A download beside it is not slowed either.
    let mut command = rig.ssh_over("c1");
    let download = stdout(command.arg("head -c 4000000 /dev/zero | tr '\\0' x"));
    let text = within(Duration::from_secs(10), "a download", download).await;
    assert_eq!(text.len(), 4_000_000);
    // Nor an interactive one: what is typed comes back.
    let mut shell = piped(&rig, "cat");
    let mut typed = shell.stdin.take().unwrap();
    let mut shown = shell.stdout.take().unwrap();
    for key in *b"hello" {
        typed.write_all(&[key]).await.unwrap();
        let back = within(Duration::from_secs(5), "an echo", shown.read_u8()).await;
        assert_eq!(back.unwrap(), key);
    }

    assert!(feed.taken() < IN_BETWEEN_MAX);
    master.kill().await.unwrap();
    let none = || {
        rig.metrics()
            .contains("upstream_connections{state=\"active\"} 0")
    };
    eventually("no connection to the container", || async { none() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_when_the_container_reads_again() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let _master = rig.master("c1").await;
    let go = rig.at("go");
    let wait = format!("while [ ! -e {go} ]; do sleep 0.05; done; cksum");
    let data = noise(24 << 20);
    let mut ssh = piped(&rig, &wait);
    let feed = Feed::start(ssh.stdin.take().unwrap(), data.clone());
    feed.stalled().await;
    std::fs::write(&go, "").unwrap();
    let there = String::from_utf8(read_all(ssh.stdout.take().unwrap()).await).unwrap();
    assert_eq!(exit_code(&mut ssh).await, Some(0));
    std::fs::write(rig.path("data"), &data).unwrap();
    let here = std::process::Command::new("cksum")
        .stdin(std::fs::File::open(rig.path("data")).unwrap())
        .output();
    assert_eq!(there, String::from_utf8(here.unwrap().stdout).unwrap());
}
