//! New keys in the middle of what goes on, begun by the container or the gateway.

use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use edd_gateway::ssh::Limits;

use super::rig::{Rig, exit_code, noise, stdout, within};
use crate::support::{DEADLINE, eventually, free_port};

/// More windows towards the client, over one connection to the container, than russh promises to
/// stand during a key exchange that the gateway begins; with the container's it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_remote_forwards_share_a_connection_whose_container_rekeys() {
    let rig = Rig::start().await;
    let sshd = rig.sshd("c1", &["RekeyLimit=2M"]).await;
    rig.put("c1", sshd.address, Some(&sshd.host_key), |_| {});
    let local = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = free_port();
    let forward = format!("127.0.0.1:{there}:{}", local.local_addr().unwrap());
    let mut ssh = rig
        .ssh_as(&rig.login("c1"), "owner", &["-N", "-R", &forward])
        .spawn()
        .unwrap();
    let data = Arc::new(noise(12 << 20));
    let mut runs = JoinSet::new();
    let expected = Arc::clone(&data);
    let taking = tokio::spawn(async move {
        let mut runs = JoinSet::new();
        while let Ok((mut socket, _)) = local.accept().await {
            let expected = Arc::clone(&expected);
            runs.spawn(async move {
                let mut all = Vec::new();
                socket.read_to_end(&mut all).await.unwrap();
                // The first ones only ask whether somebody listens.
                let is_whole = all.is_empty() || all == *expected;
                socket.write_all(&[u8::from(is_whole)]).await.unwrap();
            });
        }
    });
    eventually("the forward listens", || async {
        TcpStream::connect(("127.0.0.1", there)).await.is_ok()
    })
    .await;
    for _ in 0..6 {
        let data = Arc::clone(&data);
        runs.spawn(async move {
            let mut socket = TcpStream::connect(("127.0.0.1", there)).await.unwrap();
            socket.write_all(&data).await.unwrap();
            socket.shutdown().await.unwrap();
            assert_eq!(socket.read_u8().await.unwrap(), 1);
        });
    }
    within(4 * DEADLINE, "all of them", runs.join_all()).await;
    assert!(ssh.try_wait().unwrap().is_none(), "nothing was cut");
    taking.abort();
    ssh.kill().await.unwrap();
}

/// A connection that lives for long enough gets new keys from the gateway, towards the client and
/// towards the container: here after every megabyte, with data going both ways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_begins_key_exchanges_itself() {
    let limits = Limits {
        rekey_bytes: 1 << 20,
        ..Limits::default()
    };
    let rig = Arc::new(Rig::start_with(limits, &[]).await);
    // Its log tells who began.
    let sshd = rig.sshd("c1", &["LogLevel=DEBUG1"]).await;
    rig.put("c1", sshd.address, Some(&sshd.host_key), |_| {});
    let (socket, log) = (format!("ControlPath={}", rig.at("master")), rig.at("log"));
    let options = [
        "-N",
        "-E",
        &log,
        "-o",
        "LogLevel=DEBUG1",
        "-o",
        &socket,
        "-o",
        "ControlMaster=yes",
    ];
    let mut master = rig
        .ssh_as(&rig.login("c1"), "owner", &options)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the master's socket", || async {
        rig.path("master").exists()
    })
    .await;
    let data = noise(24 << 20);
    std::fs::write(rig.path("data"), &data).unwrap();
    let mut echo = rig.ssh_over("c1");
    echo.arg("cat")
        .stdin(std::fs::File::open(rig.path("data")).unwrap())
        .stdout(std::fs::File::create(rig.path("back")).unwrap());
    let mut echo = echo.spawn().unwrap();
    // Somebody else's short commands are not hurt either.
    for n in 0..5 {
        let run = format!("echo {n}");
        assert_eq!(stdout(rig.ssh_over("c1").arg(run)).await, format!("{n}\n"));
    }
    assert_eq!(exit_code(&mut echo).await, Some(0));
    assert!(std::fs::read(rig.path("back")).unwrap() == data);
    assert!(master.try_wait().unwrap().is_none(), "nothing was cut");
    for (whose, path) in [("client", "log"), ("container", "c1/log")] {
        let text = std::fs::read_to_string(rig.path(path)).unwrap();
        let count = text.matches("SSH2_MSG_KEXINIT received").count();
        // Each connection's first ones: of the client one, of the container one for each channel.
        assert!(count > 15, "{whose}: {count} key exchanges");
    }
    master.kill().await.unwrap();
}
