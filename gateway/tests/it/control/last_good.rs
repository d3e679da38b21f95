//! The last good table: served when everything else is gone.

use std::fs::File;
use std::time::{Duration, Instant, SystemTime};

use edd_daemon::cli::Exit;
use edd_route::snapshot::Snapshot;
use rustix::process::Signal;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpStream;

use super::replicas::process;
use super::{get, ready, runs_at};
use crate::support::{Bus, Gateway, Options, eventually, replace_file};

const ROUTES: &str = "routes:\n- host: site.localhost\n  target: 127.0.0.1:9\n";

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_when_everything_else_is_gone() {
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
    // It was stopped an hour ago.
    let written_at = SystemTime::now() - Duration::from_secs(3600);
    let file = File::options()
        .write(true)
        .open(folder.path().join("state/last-good-table"));
    file.expect("written at the end")
        .set_modified(written_at)
        .expect("set");

    let options = Options {
        folder: Some(folder),
        routes: "routes: [{".into(),
        ..Options::default()
    };
    let gateway = Gateway::start(options.bus(&bus)).await;
    let table = gateway.table();
    assert!(runs_at(&table, "c1", "127.64.0.1"));
    assert_eq!(table.statics().iter().len(), 1);
    assert!(table.revision >= revision);
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
    let (_, body) = get(gateway.admin, "/readyz").await;
    let since = OffsetDateTime::from(written_at)
        .format(&Rfc3339)
        .expect("a time");
    let since = &since[..19];
    assert!(
        body["stale_since"]
            .as_str()
            .is_some_and(|s| s.starts_with(since)),
        "{body}: {since}"
    );
    gateway.stop().await;
}

/// Without NATS, without the database, without both: until it listens with the last good table.
#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_takes_less_than_a_second() {
    for (has_nats, has_database) in [(false, true), (true, false), (false, false)] {
        let mut bus = Bus::start().await;
        let gateway = Gateway::start(Options::routes(ROUTES).bus(&bus)).await;
        bus.container("c1", 1, "127.64.0.1", &[]).await;
        gateway
            .until("c1", |table| runs_at(table, "c1", "127.64.0.1"))
            .await;
        let folder = gateway.folder.clone();
        gateway.stop().await;
        if !has_nats {
            bus.server.stop();
        }
        if !has_database {
            for name in ["gateway.db", "gateway.db-wal", "gateway.db-shm"] {
                let _ = std::fs::remove_file(folder.path().join(name));
            }
            std::fs::create_dir(folder.path().join("gateway.db")).expect("in its place");
        }
        // Other tests may have the processor at any one moment, not at five.
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            let options = Options {
                folder: Some(folder.clone()),
                ..Options::routes(ROUTES).bus(&bus)
            };
            let begun = Instant::now();
            let gateway = Gateway::start(options).await;
            TcpStream::connect(gateway.addresses.http)
                .await
                .expect("it listens");
            fastest = fastest.min(begun.elapsed());
            assert!(runs_at(&gateway.table(), "c1", "127.64.0.1"));
            gateway.stop().await;
            if fastest < Duration::from_secs(1) {
                break;
            }
        }
        println!("NATS {has_nats}, database {has_database}: after {fastest:?}");
        assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    }
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
                Snapshot::decode(&bytes).is_ok_and(|snapshot| {
                    let hosts: Vec<_> = snapshot.statics.iter().map(|s| &s.host).collect();
                    hosts == [&format!("h{n}.localhost")]
                })
            })
        })
        .await;
    }
    gateway.stop().await;
}

/// It is written after pauses, the longer the larger it is; the end waits for none of them.
#[tokio::test(flavor = "multi_thread")]
async fn what_changes_just_before_the_end_is_in_it() {
    const COUNT: usize = 2_000;
    let bus = Bus::start().await;
    for n in 0..COUNT {
        bus.created(&format!("c{n}"), 1).await;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (mut gateway, admin) = process(folder.path(), &bus, "sqlite://gateway.db").await;
    let file = folder.path().join("data/last-good-table");
    let written = || {
        let bytes = std::fs::read(&file).ok()?;
        let snapshot = Snapshot::decode(&bytes).expect("whole");
        let c0 = snapshot.containers.iter().find(|c| c.id.as_str() == "c0")?;
        let address = c0.running.as_ref().map(|run| run.address.to_string());
        Some((snapshot.containers.len(), address.unwrap_or_default()))
    };
    for address in ["", "127.64.0.1", "127.64.0.2"] {
        if !address.is_empty() {
            bus.started("c0", address, None).await;
        }
        let expected = Some((COUNT, address.to_owned()));
        eventually("it is written", || async { written() == expected }).await;
    }
    // The pause after that has just begun.
    let last = "127.64.0.3";
    bus.started("c0", last, None).await;
    let wait = format!("/api/v1/wait?container=c0&address={last}&timeout=60s");
    assert_eq!(get(admin, &wait).await.0, 200);
    gateway.signal(Signal::TERM);
    assert!(gateway.ended().await.success());
    assert_eq!(written(), Some((COUNT, last.to_owned())));
    let names = std::fs::read_dir(folder.path().join("data")).expect("a folder");
    let names = names.map(|entry| entry.expect("an entry").file_name());
    let left = names.filter(|name| name.to_string_lossy().starts_with("last-good-table"));
    assert_eq!(left.count(), 1, "nothing half written stays");
}
