//! Who is given up, and who is not: keepalives both ways, and what lies before them.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;

use edd_gateway::ssh::{Keepalive, Limits};

use super::rig::{Rig, exit_code, until_text};
use crate::support::{DEADLINE, eventually};

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Two seconds of silence end a connection.
fn impatient() -> Limits {
    Limits {
        keepalive: Keepalive {
            interval: Duration::from_millis(500),
            questions_max: 3,
        },
        ..Limits::default()
    }
}

/// The container's sshd asks whether we live; its questions lie behind what the client does not
/// read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_output_nobody_reads_is_not_given_up_by_the_containers_sshd() {
    let rig = Rig::start_with(impatient(), &[]).await;
    let options = ["ClientAliveInterval=1", "ClientAliveCountMax=2"];
    let sshd = rig.sshd("c1", &options).await;
    rig.put("c1", sshd.address, Some(&sshd.host_key), |_| {});
    let len = 48 << 20;
    let mut ssh = rig
        .ssh("c1")
        .arg(format!("head -c {len} /dev/zero; exit 7"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = ssh.stdout.take().unwrap();
    pipe.read_u8().await.unwrap();
    // What is waited for is time itself: several times what sshd waits.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let mut rest = 1;
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = pipe.read(&mut piece);
        match tokio::time::timeout(DEADLINE, read).await.unwrap().unwrap() {
            0 => break,
            read => rest += read,
        }
    }
    assert_eq!(rest, len);
    assert_eq!(exit_code(&mut ssh).await, Some(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_answers_no_keepalives_is_given_up() {
    let rig = Rig::start_with(impatient(), &[]).await;
    let _c1 = rig.container("c1").await;
    let mut ssh = rig
        .ssh("c1")
        .arg("echo ready; exec cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until_text(ssh.stdout.as_mut().unwrap(), "ready").await;
    // It answers while it runs, for longer than silence is suffered.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(rig.connections(), 1);
    signal(&ssh, Signal::STOP);
    let begun = Instant::now();
    eventually("given up", || async { rig.connections() == 0 }).await;
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    signal(&ssh, Signal::CONT);
    assert_eq!(exit_code(&mut ssh).await, Some(255));
}

/// The gateway cannot even ask it: what was sent before is not taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_vanishes_during_a_download_is_given_up_as_soon() {
    let rig = Rig::start_with(impatient(), &[]).await;
    let _c1 = rig.container("c1").await;
    let mut ssh = rig
        .ssh("c1")
        .arg("exec cat /dev/zero")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = ssh.stdout.take().unwrap();
    pipe.read_u8().await.unwrap();
    let reader = tokio::spawn(async move {
        let mut piece = vec![0; 64 << 10];
        while pipe.read(&mut piece).await.is_ok_and(|read| read > 0) {}
    });
    signal(&ssh, Signal::STOP);
    let begun = Instant::now();
    eventually("given up", || async { rig.connections() == 0 }).await;
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    eventually("the container's session too", || async {
        rig.shared.gate.upstreams() == 0
    })
    .await;
    ssh.kill().await.unwrap();
    reader.await.unwrap();
}

/// A container that is frozen, with an idle session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_answers_no_keepalives_is_given_up() {
    let rig = Rig::start_with(impatient(), &[]).await;
    let _c1 = rig.container("c1").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid").display().to_string();
    let mut ssh = rig
        .ssh("c1")
        // sshd's process of this session is the parent of the shell.
        .arg(format!(
            "echo $PPID > {file}; kill -STOP $PPID; echo stopped; exec cat"
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let mut stderr = ssh.stderr.take().unwrap();
    until_text(&mut stderr, "the connection to the container was lost").await;
    // Stopped it would stay for ever.
    let pid = std::fs::read_to_string(&file).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(exit_code(&mut ssh).await, Some(255));
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
}
