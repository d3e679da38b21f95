//! `edd-gateway rebuild`: an empty database from the streams.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use edd_route::{RouteTable, UserId};

use super::runs_at;
use crate::support::{Bus, Gateway, Options};

const FINGERPRINT: &str = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Exit code and what it said.
fn rebuild(
    bus: &Bus,
    folder: &Path,
    admin: SocketAddr,
    database: &str,
    more: &[&str],
) -> (Option<i32>, String) {
    let path = |name: &str| folder.join(name).display().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_edd-gateway"))
        .arg("rebuild")
        .args(["--nats-url", &bus.server.url()])
        .args(["--database-url", database])
        .args(["--routes", &path("routes.yaml")])
        .args(["--state-dir", &path("state")])
        .args(["--container-cidrs", "127.64.0.0/16"])
        .args(["--admin-addr", &admin.to_string()])
        .args(more)
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text.into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_is_filled_from_the_streams() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    for n in 0..20 {
        let rules: &[(u16, u16)] = if n == 3 { &[(80, 8080)] } else { &[] };
        bus.container(&format!("c{n}"), 7, "127.64.0.1", rules)
            .await;
    }
    bus.deleted("c19", 7).await;
    bus.key(3, 7, FINGERPRINT).await;
    let is_whole = |table: &RouteTable| {
        table.containers().count() == 19
            && runs_at(table, "c18", "127.64.0.1")
            && table.container("c18").is_some_and(|c| c.ssh.is_some())
            && table.container("c3").is_some_and(|c| c.rule(80).is_some())
            && table.keys(UserId(7)).len() == 1
    };
    gateway.until("all of it", is_whole).await;
    let (folder, admin) = (Arc::clone(&gateway.folder), gateway.admin);
    let url = |name: &str| format!("sqlite://{}", folder.path().join(name).display());
    let (old, new) = (url("gateway.db"), url("new.db"));
    let (code, text) = rebuild(&bus, folder.path(), admin, &new, &[]);
    assert_eq!(code, Some(1), "not while it runs: {text}");
    assert!(text.contains("stop the gateway first"), "{text}");
    gateway.stop().await;

    let (code, text) = rebuild(&bus, folder.path(), admin, &old, &[]);
    assert_eq!(code, Some(1), "not over what is there: {text}");
    assert!(text.contains("is not empty"), "{text}");
    for (database, more) in [(&new, &[][..]), (&old, &["--yes"])] {
        let (code, text) = rebuild(&bus, folder.path(), admin, database, more);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("19 containers, 1 keys"), "{text}");
    }
    // Nothing is left to hear: what it serves is what is in the database.
    std::fs::remove_file(folder.path().join("state/last-good-table")).unwrap();
    let again = Options {
        folder: Some(Arc::clone(&folder)),
        ..Options::default().flag("--database-url", new)
    };
    let gateway = Gateway::start(again).await;
    gateway.until("the same", is_whole).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_streams_to_replay_nothing_is_touched() {
    let mut bus = Bus::start().await;
    let gateway = Gateway::start(Options::default()).await;
    let (folder, admin) = (Arc::clone(&gateway.folder), gateway.admin);
    gateway.stop().await;
    bus.server.stop();
    let database = format!("sqlite://{}", folder.path().join("gateway.db").display());
    let (code, text) = rebuild(&bus, folder.path(), admin, &database, &["--yes"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("NATS is not there"), "{text}");
    assert!(folder.path().join("gateway.db").exists());
}
