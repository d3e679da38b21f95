//! The connection to the container that is made in advance.

use std::net::SocketAddr;
use std::time::Duration;

use super::rig::{Rig, Sshd, free_address, stdout};
use crate::support::eventually;

/// The client's connection stays open for hours, and at its login the container's sshd was not up
/// yet: the first channel after that was refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spare_that_failed_long_ago_refuses_no_channel() {
    let rig = Rig::start().await;
    let address = free_address();
    rig.put("c1", address, None, |_| {});
    let _master = rig.master("c1").await;
    let at: SocketAddr = rig.target(address);
    let line = rig.server.public_key_line();
    // What is waited for is time itself: the failure is no longer a fresh one.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let _sshd = Sshd::start(&rig.path("c1"), at, &line, &[]).await;
    eventually("no connection is under way", || async {
        rig.shared.gate.upstreams() == 0
    })
    .await;
    assert_eq!(stdout(rig.ssh_over("c1").arg("echo in")).await, "in\n");
}
