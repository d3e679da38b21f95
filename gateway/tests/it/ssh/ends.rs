//! What ends sessions: revocation, drain, lost containers. And what does not.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use edd_gateway::ssh::Limits;
use rustix::process::Signal;

use super::fake::{Fake, Vice};
use super::rig::{OWNER, Rig, exit_code, free_address, output, stdout, until_text};
use crate::support::daemon::Daemon;
use crate::support::{DEADLINE, REVOCATION, eventually, free_port};

/// A session that lives until it is ended, and waits for more of its output.
async fn live(rig: &Rig, id: &str) -> (Child, ChildStdout) {
    let mut ssh = rig
        .ssh(id)
        .arg("echo ready; exec cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = ssh.stdout.take().unwrap();
    until_text(&mut pipe, "ready").await;
    (ssh, pipe)
}

/// It must end at once, with a word from the gateway.
async fn ends_now(mut ssh: Child, why: &str) {
    let begin = Instant::now();
    assert_eq!(exit_code(&mut ssh).await, Some(255), "{why}");
    let took = begin.elapsed();
    assert!(took < REVOCATION, "{why}: {took:?}");
    let mut stderr = ssh.stderr.take().unwrap();
    until_text(&mut stderr, "access to this container has ended").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_each_thing_that_admitted_it_and_no_other_does() {
    let rig = Rig::start().await;
    let c1 = rig.container("c1").await;
    let _c2 = rig.container("c2").await;
    let fingerprint = rig.new_key("second");
    let owner = rig
        .key()
        .public_key()
        .fingerprint(russh::keys::HashAlg::Sha256)
        .to_string();
    let both = [(1, owner.as_str()), (2, fingerprint.as_str())];
    rig.put_keys(OWNER, &both);
    let mut other = rig
        .ssh_as(&rig.login("c1"), "second", &[])
        .arg("cat")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut by_key, _pipe) = live(&rig, "c2").await;
    let usual = || rig.put("c1", c1.address, Some(&c1.host_key), |_| {});

    let (ssh, _p) = live(&rig, "c1").await;
    rig.put_keys(OWNER, &both[1..]);
    ends_now(ssh, "key deleted").await;
    assert!(
        other.try_wait().unwrap().is_none(),
        "the other key's session lives"
    );
    assert_eq!(
        exit_code(&mut by_key).await,
        Some(255),
        "the same key elsewhere"
    );
    rig.put_keys(OWNER, &both);
    let (mut untouched, _pipe) = live(&rig, "c2").await;

    let (ssh, _p) = live(&rig, "c1").await;
    rig.put("c1", c1.address, Some(&c1.host_key), |spec| {
        spec.ssh_enabled = false;
    });
    ends_now(ssh, "ssh off").await;
    assert_eq!(exit_code(&mut other).await, Some(255));
    usual();

    let (ssh, _p) = live(&rig, "c1").await;
    rig.put("c1", c1.address, None, |spec| spec.running = None);
    ends_now(ssh, "stopped").await;
    usual();

    let (ssh, _p) = live(&rig, "c1").await;
    rig.put("c1", free_address(), Some(&c1.host_key), |_| {});
    ends_now(ssh, "another address").await;
    usual();

    let (ssh, _p) = live(&rig, "c1").await;
    let id = edd_route::ContainerId::new("c1").unwrap();
    rig.change(|writer| writer.remove_container(&id));
    ends_now(ssh, "deleted").await;

    assert!(
        untouched.try_wait().unwrap().is_none(),
        "the other container's session lives"
    );
    untouched.kill().await.unwrap();
}

/// A client that reads nothing cannot be told, but is cut all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_does_not_wait_for_a_client_that_reads_nothing() {
    let rig = Rig::start().await;
    let c1 = rig.container("c1").await;
    let mut ssh = rig
        .ssh("c1")
        .arg("exec cat /dev/zero")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = ssh.stdout.take().unwrap();
    tokio::io::AsyncReadExt::read_u8(&mut pipe).await.unwrap();
    // Stopped, it does not even take what TCP brings.
    let pid = ssh.id().unwrap().to_string();
    let stop = std::process::Command::new("kill")
        .args(["-STOP", &pid])
        .status();
    assert!(stop.unwrap().success());
    let full = tokio::time::sleep(Duration::from_millis(500));
    full.await;
    rig.put("c1", c1.address, None, |spec| spec.running = None);
    let begin = Instant::now();
    eventually("cut", || async { rig.connections() == 0 }).await;
    assert!(begin.elapsed() < REVOCATION, "{:?}", begin.elapsed());
    ssh.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_on_the_same_address_and_10_000_other_changes_end_nothing() {
    let rig = Rig::start().await;
    let c1 = rig.container("c1").await;
    let _master = rig.master("c1").await;
    let (mut ssh, _pipe) = live(&rig, "c1").await;
    for n in 0..5_000 {
        rig.put(&format!("other{n}"), free_address(), None, |_| {});
        rig.put("c1", c1.address, Some(&c1.host_key), |spec| {
            if let Some(run) = &mut spec.running {
                run.start = 2 + n;
            }
            spec.name = format!("name{n}");
        });
    }
    assert_eq!(stdout(rig.ssh_over("c1").arg("echo in")).await, "in\n");
    assert!(ssh.try_wait().unwrap().is_none());
    ssh.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_takes_no_connections_lets_sessions_live_and_cuts_in_the_end() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let _master = rig.master("c1").await;
    let (mut ssh, mut pipe) = live(&rig, "c1").await;
    let mut shared = rig.ssh_over("c1");
    let mut shared = shared
        .arg("echo ready; exec cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until_text(&mut shared.stdout.take().unwrap(), "ready").await;
    let mut terminal = rig.ssh("c1");
    terminal.args(["-tt", "echo ready; exec cat"]);
    terminal.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut terminal = terminal.spawn().unwrap();
    let mut screen = terminal.stdout.take().unwrap();
    until_text(&mut screen, "ready").await;
    let drain = rig.shared.drain.clone();
    // Longer than all that is looked at before its end.
    let draining = tokio::spawn(async move { drain.run(Duration::from_secs(10)).await });
    eventually("closed", || async {
        TcpStream::connect(rig.address).await.is_err()
    })
    .await;
    // Who sits at a terminal reads of it; a command's output has nothing of it.
    until_text(&mut screen, "The gateway of this connection is going down").await;
    let refused = output(
        rig.ssh_over("c1")
            .args(["-o", "ProxyCommand=false", "echo in"]),
    )
    .await;
    assert_eq!(refused.status.code(), Some(255), "a new channel is refused");
    let ask = ["-O", "forward", "-R", "127.0.0.1:0:127.0.0.1:1"];
    let refused = output(rig.ssh_over("c1").args(ask)).await;
    assert!(!refused.status.success(), "and so is a new forward");
    assert!(ssh.try_wait().unwrap().is_none());
    ssh.stdin
        .as_mut()
        .unwrap()
        .write_all(b"on\n")
        .await
        .unwrap();
    let mut more = [0; 4];
    timeout(DEADLINE, pipe.read_exact(&mut more))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&more, b"\non\n");
    assert!(terminal.try_wait().unwrap().is_none());
    assert_eq!(draining.await.unwrap(), 3);
    assert_eq!(exit_code(&mut terminal).await, Some(255));
    assert_eq!(exit_code(&mut ssh).await, Some(255));
    let mut stderr = ssh.stderr.take().unwrap();
    until_text(&mut stderr, "the gateway is shutting down").await;
    assert_eq!(rig.shared.drain.connections(), 0);
}

/// A master without sessions, a forward that nobody uses: a drain need not wait for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_connections_without_channels_and_those_whose_last_one_ends() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let mut master = rig.master("c1").await;
    let there = free_port();
    let forward = format!("127.0.0.1:{there}:127.0.0.1:1");
    let mut unused = rig.ssh("c1");
    let mut unused = unused.args(["-N", "-R", &forward]).spawn().unwrap();
    eventually("the forward listens", || async {
        TcpStream::connect(("127.0.0.1", there)).await.is_ok()
    })
    .await;
    let (mut ssh, mut pipe) = live(&rig, "c1").await;
    let drain = rig.shared.drain.clone();
    let draining = tokio::spawn(async move { drain.run(10 * DEADLINE).await });
    assert_eq!(exit_code(&mut master).await, Some(255));
    assert_eq!(exit_code(&mut unused).await, Some(255));
    eventually("one is left", || async {
        rig.shared.drain.connections() == 1
    })
    .await;
    let mut input = ssh.stdin.take().unwrap();
    input.write_all(b"on\n").await.unwrap();
    until_text(&mut pipe, "on").await;
    drop(input);
    assert_eq!(exit_code(&mut ssh).await, Some(0));
    let cut = timeout(DEADLINE, draining).await;
    assert_eq!(cut.expect("long before its end").unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_container_ends_its_channel_with_a_word() {
    let rig = Rig::start().await;
    let fake = Fake::start(rig.target(free_address()), Vice::DropsOnExec).await;
    rig.put("c1", fake.address, Some(&fake.host_key), |_| {});
    let output = output(rig.ssh("c1").arg("work")).await;
    assert_eq!(output.status.code(), Some(255));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("the connection to the container was lost"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_does_not_wait_for_clients_that_have_not_logged_in() {
    let rig = Rig::start().await;
    let _silent = TcpStream::connect(rig.address).await.unwrap();
    let mut named = TcpStream::connect(rig.address).await.unwrap();
    named.write_all(b"SSH-2.0-test\r\n").await.unwrap();
    // Its banner and more: it waits for the client's key exchange now.
    let mut banner = [0; 64];
    tokio::io::AsyncReadExt::read_exact(&mut named, &mut banner)
        .await
        .unwrap();
    eventually("both are there", || async { rig.connections() == 2 }).await;
    let begin = Instant::now();
    let cut = rig.shared.drain.run(DEADLINE).await;
    assert_eq!(cut, 0);
    // The second in which a login may still come, far from the drain's end.
    assert!(
        begin.elapsed() < Duration::from_secs(8),
        "{:?}",
        begin.elapsed()
    );
}

/// Who has connected before a drain is served, accepted or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_wait_in_the_listener_are_taken_at_a_drain() {
    let folder = tempfile::TempDir::new().unwrap();
    std::fs::write(folder.path().join("routes.yaml"), "routes: []\n").unwrap();
    let any = ["http", "https", "ssh", "admin"].map(|name| format!("--{name}-addr=127.0.0.1:0"));
    let ports = format!("--ports={}", free_port());
    let flags: Vec<_> = any.into_iter().chain([ports]).collect();
    let mut daemon = Daemon::start(Daemon::command(folder.path(), "exec \"$@\"", &flags));
    let ssh = daemon.address("ssh").await;
    daemon.signal(Signal::STOP);
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(ssh).await.unwrap();
        stream.write_all(b"SSH-2.0-test\r\n").await.unwrap();
        waiting.push(stream);
    }
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::CONT);
    for stream in &mut waiting {
        let mut banner = [0; 8];
        let read = tokio::io::AsyncReadExt::read_exact(stream, &mut banner);
        timeout(DEADLINE, read).await.unwrap().unwrap();
        assert_eq!(&banner, b"SSH-2.0-");
    }
    // Nobody logs in, and nobody is waited for.
    assert_eq!(daemon.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_cap_of_upstreams_a_channel_is_refused_until_another_ends() {
    let rig = Rig::start_tuned(Limits::default(), &[], |config| {
        config.max_upstream_connections = 1;
    })
    .await;
    let _c = rig.container("c1").await;
    let (mut ssh, pipe) = live(&rig, "c1").await;
    let verbose = ["-o", "LogLevel=INFO"];
    let mut ssh_again = rig.ssh_as(&rig.login("c1"), "owner", &verbose);
    let refused = output(ssh_again.arg("echo in")).await;
    assert_eq!(refused.status.code(), Some(255));
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("resource shortage"), "{text}");
    let counted = "connections_refused_total{reason=\"upstream_limit\"}";
    assert!(rig.metrics().contains(counted), "{}", rig.metrics());
    assert!(ssh.try_wait().unwrap().is_none(), "those that live, live");

    drop(pipe);
    ssh.kill().await.unwrap();
    eventually("the place is free", || async {
        rig.shared.gate.upstreams() == 0
    })
    .await;
    assert_eq!(stdout(rig.ssh("c1").arg("echo in")).await, "in\n");
}
