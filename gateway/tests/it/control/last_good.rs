//! The last good table: served when everything else is gone.

use std::time::{Duration, Instant};

use edd_daemon::cli::Exit;

use super::{ready, runs_at};
use crate::support::{Bus, Gateway, Options, eventually, replace_file};

const ROUTES: &str = "routes:\n- host: site.localhost\n  target: 127.0.0.1:9\n";

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_within_a_second_when_everything_else_is_gone() {
    let mut bus = Bus::start().await;
    let gateway = Gateway::start(Options::routes(ROUTES).bus(&bus)).await;
    bus.container("c1", 1, "127.64.0.1", &[(80, 8080)]).await;
    gateway
        .until("c1", |table| {
            table.container("c1").is_some_and(|c| c.rule(80).is_some())
        })
        .await;
    let revision = gateway.table().revision;
    let folder = gateway.folder.clone();
    gateway.stop().await;
    bus.server.stop();
    for name in ["gateway.db", "gateway.db-wal", "gateway.db-shm"] {
        let _ = std::fs::remove_file(folder.path().join(name));
    }
    std::fs::create_dir(folder.path().join("gateway.db")).expect("in the database's place");

    let options = Options {
        folder: Some(folder),
        routes: "routes: [{".into(),
        ..Options::default()
    };
    let begun = Instant::now();
    let gateway = Gateway::start(options.bus(&bus)).await;
    let took = begun.elapsed();
    println!("served the last good table after {took:?}");
    let table = gateway.table();
    assert!(runs_at(&table, "c1", "127.64.0.1"));
    assert_eq!(table.statics().iter().len(), 1);
    assert!(table.revision >= revision);
    assert!(took < Duration::from_secs(5), "{took:?}");
    eventually("degraded", || async {
        ready(gateway.admin).await
            == (
                200,
                "degraded".into(),
                "disconnected".into(),
                "unavailable".into(),
            )
    })
    .await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_wins_over_its_static_routes() {
    let gateway = Gateway::start(Options::routes(ROUTES)).await;
    let folder = gateway.folder.clone();
    gateway.stop().await;
    let options = Options {
        folder: Some(folder),
        ..Options::routes("routes:\n- host: other.localhost\n  target: 127.0.0.1:9\n")
    };
    let gateway = Gateway::start(options).await;
    let hosts: Vec<_> = gateway
        .table()
        .static_specs()
        .map(|spec| spec.host.clone())
        .collect();
    assert_eq!(hosts, ["other.localhost"]);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_file_is_ignored() {
    let gateway = Gateway::start(Options::routes(ROUTES)).await;
    let folder = gateway.folder.clone();
    gateway.stop().await;
    let file = folder.path().join("state/last-good-table");
    let mut bytes = std::fs::read(&file).expect("written at the end");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    let options = Options {
        folder: Some(folder.clone()),
        ..Options::routes(ROUTES)
    };
    let gateway = Gateway::start(options).await;
    assert_eq!(gateway.table().statics().iter().len(), 1);
    gateway.stop().await;

    // Corrupt and no routes: nothing to serve.
    std::fs::write(&file, b"garbage").expect("written");
    let options = Options {
        folder: Some(folder),
        ..Options::routes("routes: 7\n")
    };
    match Gateway::try_start(options).await {
        Err(Exit::Usage(lines)) => {
            assert!(
                lines.iter().any(|line| line.contains("routes.yaml:1:")),
                "{lines:?}"
            );
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("started without anything to serve"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_follows_every_change_within_moments() {
    let gateway = Gateway::start(Options::routes(ROUTES)).await;
    let file = gateway.path("state/last-good-table");
    for n in 0..3 {
        let text = format!("routes:\n- host: h{n}.localhost\n  target: 127.0.0.1:9\n");
        replace_file(&gateway.path("routes.yaml"), &text);
        eventually("the file", || async {
            std::fs::read(&file).is_ok_and(|bytes| {
                edd_route::snapshot::Snapshot::decode(&bytes).is_ok_and(|snapshot| {
                    let hosts: Vec<_> = snapshot.statics.iter().map(|s| &s.host).collect();
                    hosts == [&format!("h{n}.localhost")]
                })
            })
        })
        .await;
    }
    gateway.stop().await;
}
