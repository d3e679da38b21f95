//! NATS comes back with an older copy of its streams, under a gateway that runs.

use std::path::Path;

use super::{ready, runs_at};
use crate::support::{Bus, Gateway, Options, eventually};

async fn until_ready(gateway: &Gateway) {
    eventually("ready", || async {
        ready(gateway.admin).await.1 == "ready"
    })
    .await;
}

/// A folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("known").is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("copied");
        }
    }
}

/// The stream is the same by name and by its time of making, and lacks its newest events: what
/// comes now has sequences that were those of others.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_has_lost_its_newest_events_is_noticed_while_running() {
    let mut bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    bus.container("c1", 1, "127.64.0.1", &[]).await;
    gateway
        .until("c1", |table| runs_at(table, "c1", "127.64.0.1"))
        .await;
    until_ready(&gateway).await;
    let (store, older) = (
        bus.server.folder().join("store"),
        bus.server.folder().join("older"),
    );
    bus.server.stop();
    copy(&store, &older);
    bus.server.resume().await;
    for n in 2..6 {
        bus.started("c1", &format!("127.64.0.{n}"), None).await;
    }
    bus.container("c2", 1, "127.64.1.1", &[]).await;
    gateway
        .until("the newest", |table| {
            runs_at(table, "c1", "127.64.0.5") && runs_at(table, "c2", "127.64.1.1")
        })
        .await;
    bus.server.stop();
    std::fs::remove_dir_all(&store).expect("lost");
    std::fs::rename(&older, &store).expect("restored");
    bus.server.resume().await;
    // Without a version, and with the sequence of an older event.
    bus.stopped("c1").await;
    gateway
        .until("the stop", |table| {
            table.container("c1").is_some_and(|c| c.running.is_none())
        })
        .await;
    until_ready(&gateway).await;
    assert!(
        runs_at(&gateway.table(), "c2", "127.64.1.1"),
        "what nobody tells any more stays"
    );
    gateway.stop().await;
}
