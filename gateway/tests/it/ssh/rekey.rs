//! New keys in the middle of what goes on, begun by the container.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::rig::{Rig, noise, within};
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
