//! What a slow side does: it is waited for, in bounded memory, and nobody else notices.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, HashAlg, PrivateKey};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::{JoinHandle, JoinSet};

use super::rig::{
    Rig, Sshd, command, exit_code, free_address, noise, output, stdout, unix_user, within,
};
use crate::support::process::Process;
use crate::support::{Bus, DEADLINE, eventually, free_port};

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

/// `head -c 64M /dev/zero | ssh gw cat | (sleep 6; wc -c)` hung for ever after 2 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_asleep_holds_the_writer_and_nothing_is_lost() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let data = noise(64 << 20);
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
        let text = within(DEADLINE, "a command", echo).await;
        assert_eq!(text, format!("{n}\n"));
    }
    // A download beside it is not slowed either.
    let mut command = rig.ssh_over("c1");
    let download = stdout(command.arg("head -c 4000000 /dev/zero | tr '\\0' x"));
    let text = within(DEADLINE, "a download", download).await;
    assert_eq!(text.len(), 4_000_000);
    // Nor an interactive one: what is typed comes back.
    let mut shell = piped(&rig, "cat");
    let mut typed = shell.stdin.take().unwrap();
    let mut shown = shell.stdout.take().unwrap();
    for key in *b"hello" {
        typed.write_all(&[key]).await.unwrap();
        let back = within(DEADLINE, "an echo", shown.read_u8()).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_go_on_beside_one_that_stands() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let _master = rig.master("c1").await;
    let run = format!(
        "read line; while [ -e {} ]; do sleep 0.2; done",
        rig.at("known_hosts")
    );
    let mut stalled = piped(&rig, &run);
    let mut data = b"begin\n".to_vec();
    data.extend(noise(48 << 20));
    let feed = Feed::start(stalled.stdin.take().unwrap(), data);
    feed.stalled().await;
    let data = noise(24 << 20);
    let mut ssh = piped(&rig, "cat");
    let upload = Feed::start(ssh.stdin.take().unwrap(), data.clone());
    let back = read_all(ssh.stdout.take().unwrap()).await;
    assert!(back == data, "{} of {} bytes", back.len(), data.len());
    assert_eq!(exit_code(&mut ssh).await, Some(0));
    upload.task.await.unwrap();
    let taken = feed.taken();
    assert!(
        taken < IN_BETWEEN_MAX,
        "the one that stands took {taken} bytes"
    );
}

/// Key exchanges come in the middle of all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_uploads_and_downloads_share_a_connection_that_rekeys() {
    let rig = Arc::new(Rig::start().await);
    let _c = rig.container("c1").await;
    let socket = format!("ControlPath={}", rig.at("master"));
    let options = [
        "-N",
        "-o",
        &socket,
        "-o",
        "ControlMaster=yes",
        "-o",
        "RekeyLimit=4M",
    ];
    let _master = rig
        .ssh_as(&rig.login("c1"), "owner", &options)
        .spawn()
        .unwrap();
    eventually("the master's socket", || async {
        rig.path("master").exists()
    })
    .await;
    let mut runs = JoinSet::new();
    for n in 0..8 {
        let rig = Arc::clone(&rig);
        runs.spawn(async move {
            let data = noise((8 << 20) + n);
            let mut ssh = piped(&rig, "cat");
            let upload = Feed::start(ssh.stdin.take().unwrap(), data.clone());
            let back = read_all(ssh.stdout.take().unwrap()).await;
            assert!(back == data, "{n}: {} of {} bytes", back.len(), data.len());
            assert_eq!(exit_code(&mut ssh).await, Some(0));
            upload.task.await.unwrap();
        });
    }
    runs.join_all().await;
}

/// Uploads `len` bytes by this `ssh` into a reader that takes `rate` bytes a second and writes to
/// the file `count` how many it has; the most that was under way at once.
async fn slow_reader(mut ssh: Command, count: &Path, len: usize, rate: usize) -> usize {
    let run = format!(
        "n=0; while :; do c=$(head -c {} | wc -c); n=$((n + c)); echo $n >{}; \
         [ $c = 0 ] && exit; sleep 0.1; done",
        rate / 10,
        count.display()
    );
    let mut ssh = ssh.arg(run).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = ssh.stdin.take().unwrap();
    let chunk = noise(64 << 10);
    let (mut taken, mut under_way) = (0, 0);
    for sent in (0..len).step_by(chunk.len()) {
        input.write_all(&chunk).await.unwrap();
        let text = std::fs::read_to_string(count).unwrap_or_default();
        // Empty while it is being written.
        taken = text.trim().parse().unwrap_or(taken);
        under_way = under_way.max((sent + chunk.len()).saturating_sub(taken));
    }
    drop(input);
    assert_eq!(ssh.wait().await.unwrap().code(), Some(0));
    let taken = std::fs::read_to_string(count).unwrap();
    assert_eq!(taken.trim(), len.to_string());
    under_way
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_into_a_slow_reader_stays_small_under_way() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let count = rig.path("count");
    let upload = slow_reader(rig.ssh("c1"), &count, 64 << 20, 20_000_000);
    let under_way = within(4 * DEADLINE, "the upload", upload).await;
    assert!(
        under_way < IN_BETWEEN_MAX,
        "{under_way} bytes were somewhere"
    );
}

/// What uploading `len` bytes into a reader of 5 MB/s adds to the memory of a gateway that is a
/// process of its own, at the most, in KiB.
async fn memory_for_a_slow_reader(len: usize) -> usize {
    let bus = Bus::start().await;
    let folder = tempfile::TempDir::new().unwrap();
    let [ssh_port, ports] = [free_port(), free_port()].map(|port| port.to_string());
    let url = bus.server.url();
    let flags = [
        "--platform-domain=localhost",
        "--container-cidrs=127.64.0.0/16",
        "--nats-url",
        &url,
        "--container-ssh-port",
        &ssh_port,
        "--ports",
        &ports,
    ];
    let gateway = Process::start(folder.path(), 4096, &flags).await;
    let at = |name: &str| folder.path().join(name);
    let line = at("data/ssh_client_ed25519.pub");
    eventually("the gateway's key", || async { line.exists() }).await;
    let line = std::fs::read_to_string(line).unwrap();
    let address = SocketAddr::new(free_address(), ssh_port.parse().unwrap());
    let sshd = Sshd::start(&at("sshd"), address, line.trim_end(), &[]).await;
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    key.write_openssh_file(at("key"), LineEnding::LF).unwrap();
    let fingerprint = key.public_key().fingerprint(HashAlg::Sha256).to_string();
    bus.created("c1", 1).await;
    let host_key = Some(&*sshd.host_key);
    bus.started("c1", &address.ip().to_string(), host_key).await;
    bus.ssh("c1", true).await;
    bus.key(5, 1, &fingerprint).await;
    let ssh = || {
        let mut ssh = command("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-i"])
            .arg(at("key"))
            .args(["-p", &gateway.addresses["ssh"].port().to_string()])
            .args(["-l", &format!("{}.c1", unix_user()), "127.0.0.1"]);
        ssh
    };
    eventually("a login", || async {
        output(ssh().arg("true")).await.status.success()
    })
    .await;
    let before = gateway.peak_kib();
    let under_way = slow_reader(ssh(), &at("count"), len, 5_000_000).await;
    let grown = gateway.peak_kib() - before;
    println!("{under_way} bytes under way at most; {before} KiB, and {grown} more");
    grown
}

/// 64 MiB and more would be the upload itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_into_a_reader_of_five_megabytes_a_second_costs_little_memory() {
    let grown = memory_for_a_slow_reader(96 << 20).await;
    assert!(grown < 32 << 10, "{grown} KiB");
}

/// The same in full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes four minutes, by hand"]
async fn a_gibibyte_into_a_reader_of_five_megabytes_a_second_costs_little_memory() {
    let grown = memory_for_a_slow_reader(1 << 30).await;
    assert!(grown < 32 << 10, "{grown} KiB");
}

/// What a container sends on channels that it opened waits for the client in bounded memory; one
/// that stands is closed, and the others run on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_forward_that_stands_is_closed_and_others_go_on() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    // It takes connections and reads nothing.
    let stands = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let [there, there_too] = [free_port(), free_port()];
    let options = [
        "-N",
        "-R",
        &format!("127.0.0.1:{there}:{}", stands.local_addr().unwrap()),
        "-R",
        &format!("127.0.0.1:{there_too}:{}", echo.local_addr().unwrap()),
    ];
    let _ssh = rig
        .ssh_as(&rig.login("c1"), "owner", &options)
        .spawn()
        .unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    eventually("the forwards listen", || async {
        TcpStream::connect(("127.0.0.1", there_too)).await.is_ok()
    })
    .await;
    let mut pusher = TcpStream::connect(("127.0.0.1", there)).await.unwrap();
    let pushing = tokio::spawn(async move {
        let chunk = noise(64 << 10);
        let mut pushed = 0;
        while pusher.write_all(&chunk).await.is_ok() {
            pushed += chunk.len();
        }
        pushed
    });
    let _standing = within(DEADLINE, "a connection", stands.accept())
        .await
        .unwrap();
    // All the while, until the one that stands is closed.
    let mut talks = 0;
    while !pushing.is_finished() {
        let talk = async {
            let mut socket = TcpStream::connect(("127.0.0.1", there_too)).await.unwrap();
            let mut back = [0; 10_000];
            socket.write_all(&noise(10_000)).await.unwrap();
            socket.read_exact(&mut back).await.unwrap();
        };
        within(DEADLINE, "an echo", talk).await;
        talks += 1;
        assert!(talks < 100_000, "nobody closes it");
    }
    let pushed = pushing.await.unwrap();
    assert!(pushed > 16 << 20 && pushed < 64 << 20, "{pushed} bytes");
}
