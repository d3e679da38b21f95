//! The database: kept over restarts, missing, broken, read-only, lost, older.

use std::path::Path;

use edd_proto::gateway;
use prost::Message as _;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{announced, get, messages, ready, request, runs_at};
use crate::support::{Bus, Gateway, Options, eventually};

/// The same folder again.
fn again(gateway: &Gateway) -> Options {
    Options {
        folder: Some(gateway.folder.clone()),
        ..Options::default()
    }
}

/// Another content for the database's file, without its side files.
fn replace_database(folder: &Path, content: Option<&[u8]>) {
    for name in ["gateway.db-wal", "gateway.db-shm"] {
        let _ = std::fs::remove_file(folder.join(name));
    }
    let file = folder.join("gateway.db");
    match content {
        None => {
            let _ = std::fs::remove_file(file);
        }
        // Whole at once: a gateway that runs may look at any time.
        Some(content) => {
            let beside = folder.join("other.db");
            std::fs::write(&beside, content).expect("written");
            std::fs::rename(beside, file).expect("renamed");
        }
    }
}

/// Puts each in the other's place, at once: where there is nothing a gateway makes a new file.
fn exchange(one: &Path, other: &Path) {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).expect("exchanged");
}

/// Whether the file is a database with this container in it.
async fn has_container(file: std::path::PathBuf, id: &str) -> bool {
    use sqlx::ConnectOptions as _;
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(file)
        .read_only(true);
    let Ok(mut connection) = options.connect().await else {
        return false;
    };
    let found = sqlx::query("SELECT id FROM containers WHERE id = ?").bind(id);
    matches!(found.fetch_optional(&mut connection).await, Ok(Some(_)))
}

/// Everything is in effect that can be without compute, which nobody plays here.
async fn until_all_but_a_snapshot(gateway: &Gateway) {
    eventually("all but a snapshot", || async {
        let (code, body) = get(gateway.admin, "/readyz").await;
        code == 200 && body["database"] == "ok" && body["snapshot"] == "wanted"
    })
    .await;
}

async fn until_ready(gateway: &Gateway) {
    eventually("ready", || async {
        ready(gateway.admin).await.1 == "ready"
    })
    .await;
}

/// A gateway with one container, stopped; its folder.
async fn stopped_with_container(bus: &Bus) -> std::sync::Arc<tempfile::TempDir> {
    let gateway = Gateway::start(Options::default().bus(bus)).await;
    bus.container("c1", 1, "127.64.0.1", &[(80, 8080)]).await;
    gateway
        .until("c1", |table| {
            runs_at(table, "c1", "127.64.0.1")
                && table.container("c1").is_some_and(|c| c.rule(80).is_some())
        })
        .await;
    eventually("the announcement", || async {
        announced(bus).await.len() == 1
    })
    .await;
    let folder = gateway.folder.clone();
    gateway.stop().await;
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_is_kept_over_restarts() {
    let bus = Bus::start().await;
    let folder = stopped_with_container(&bus).await;
    // Only the database is left.
    std::fs::remove_file(folder.path().join("state/last-good-table")).expect("written at the end");
    let options = Options {
        folder: Some(folder),
        ..Options::default()
    };
    let gateway = Gateway::start(options).await;
    until_ready(&gateway).await;
    assert!(runs_at(&gateway.table(), "c1", "127.64.0.1"));
    let options = again(&gateway).bus(&bus);
    gateway.stop().await;
    let gateway = Gateway::start(options).await;
    until_ready(&gateway).await;
    assert!(runs_at(&gateway.table(), "c1", "127.64.0.1"));
    assert_eq!(announced(&bus).await.len(), 1, "nothing is said twice");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_never_go_back() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    bus.container("c1", 1, "127.64.0.1", &[]).await;
    gateway
        .until("c1", |table| runs_at(table, "c1", "127.64.0.1"))
        .await;
    let before = gateway.table().revision;
    let options = again(&gateway).bus(&bus);
    gateway.stop().await;
    let gateway = Gateway::start(options).await;
    until_ready(&gateway).await;
    assert!(gateway.table().revision >= before);
    let before = gateway.table().revision;
    bus.stopped("c1").await;
    gateway
        .until("the stop", |table| {
            table.container("c1").is_some_and(|c| c.running.is_none())
        })
        .await;
    assert!(gateway.table().revision > before);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_database_leaves_the_last_good_table_until_it_is_back() {
    let bus = Bus::start().await;
    let folder = stopped_with_container(&bus).await;
    let path = folder.path().join("gateway.db");
    let good = std::fs::read(&path).expect("closed, so without side files");
    // Format versions from the future: SQLite reads such files and never writes.
    let mut read_only = good.clone();
    read_only[18] = 3;
    read_only[19] = 2;
    for (how, content) in [
        ("corrupt", "no database ".repeat(1000).into_bytes()),
        ("read-only", read_only),
    ] {
        replace_database(folder.path(), Some(&content));
        let options = Options {
            folder: Some(folder.clone()),
            ..Options::default()
        };
        let gateway = Gateway::start(options.bus(&bus)).await;
        assert!(gateway.table().container("c1").is_some(), "{how}");
        eventually("degraded", || async {
            ready(gateway.admin).await
                == (
                    200,
                    "degraded".into(),
                    "connected".into(),
                    "unavailable".into(),
                )
        })
        .await;
        bus.started("c1", &format!("127.64.1.{}", how.len()), None)
            .await;
        replace_database(folder.path(), Some(&good));
        until_ready(&gateway).await;
        gateway
            .until("the event that waited", |table| {
                runs_at(table, "c1", &format!("127.64.1.{}", how.len()))
            })
            .await;
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_there_is_no_reason_not_to_start() {
    let bus = Bus::start().await;
    let folder = stopped_with_container(&bus).await;
    replace_database(folder.path(), None);
    std::fs::create_dir(folder.path().join("gateway.db")).expect("created");
    let options = Options {
        folder: Some(folder.clone()),
        ..Options::default()
    };
    let gateway = Gateway::start(options.bus(&bus)).await;
    eventually("degraded", || async {
        let (code, status, _, database) = ready(gateway.admin).await;
        (code, status.as_str(), database.as_str()) == (200, "degraded", "unavailable")
    })
    .await;
    assert!(runs_at(&gateway.table(), "c1", "127.64.0.1"));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_is_rebuilt_from_the_events_while_the_table_serves() {
    let bus = Bus::start().await;
    let folder = stopped_with_container(&bus).await;
    replace_database(folder.path(), None);
    bus.container("c2", 2, "127.64.0.2", &[]).await;
    let options = Options {
        folder: Some(folder),
        ..Options::default()
    };
    let gateway = Gateway::start(options.bus(&bus)).await;
    let c1 = gateway.table().container("c1").cloned().expect("last good");
    until_ready(&gateway).await;
    gateway
        .until("what came meanwhile", |table| {
            runs_at(table, "c2", "127.64.0.2")
        })
        .await;
    assert!(runs_at(&gateway.table(), "c1", "127.64.0.1"));
    assert!(
        !c1.running.as_ref().expect("it ran").fact.is_revoked(),
        "its connections live on"
    );
    bus.stopped("c1").await;
    gateway
        .until("the stop", |table| {
            table.container("c1").is_some_and(|c| c.running.is_none())
        })
        .await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_keeps_what_the_stream_no_longer_tells() {
    let bus = Bus::start().await;
    let folder = stopped_with_container(&bus).await;
    replace_database(folder.path(), None);
    let stream = bus.js.get_stream("COMPUTE").await.expect("a stream");
    stream.purge().await.expect("expired");
    bus.container("c2", 2, "127.64.0.2", &[]).await;
    let options = Options {
        folder: Some(folder),
        ..Options::default()
    };
    let gateway = Gateway::start(options.bus(&bus)).await;
    until_all_but_a_snapshot(&gateway).await;
    let table = gateway.table();
    assert!(runs_at(&table, "c1", "127.64.0.1") && runs_at(&table, "c2", "127.64.0.2"));
    bus.stopped("c1").await;
    gateway
        .until("the stop", |table| {
            table.container("c1").is_some_and(|c| c.running.is_none())
        })
        .await;
    assert_eq!(announced(&bus).await.len(), 1, "nothing is said twice");
    let options = again(&gateway).bus(&bus);
    gateway.stop().await;
    let gateway = Gateway::start(options).await;
    until_all_but_a_snapshot(&gateway).await;
    assert!(gateway.table().container("c1").is_some());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_is_followed_from_its_start() {
    let bus = Bus::start().await;
    let folder = stopped_with_container(&bus).await;
    bus.js.delete_stream("COMPUTE").await.expect("deleted");
    let options = Options {
        folder: Some(folder),
        ..Options::default()
    };
    let gateway = Gateway::start(options.bus(&bus)).await;
    until_ready(&gateway).await;
    assert!(runs_at(&gateway.table(), "c1", "127.64.0.1"));
    bus.stopped("c1").await;
    gateway
        .until("the stop", |table| {
            table.container("c1").is_some_and(|c| c.running.is_none())
        })
        .await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_lost_while_running_is_rebuilt_too() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    bus.container("c1", 1, "127.64.0.1", &[]).await;
    gateway
        .until("c1", |table| runs_at(table, "c1", "127.64.0.1"))
        .await;
    replace_database(gateway.folder.path(), None);
    // The file alone says nothing: an idle connection may make an empty one
    // before the loss is noticed.
    eventually("a new file with c1", || {
        has_container(gateway.path("gateway.db"), "c1")
    })
    .await;
    until_ready(&gateway).await;
    let options = again(&gateway);
    gateway.stop().await;
    // Without last good table and without NATS: it is all in the new file.
    std::fs::remove_file(
        options
            .folder
            .as_ref()
            .unwrap()
            .path()
            .join("state/last-good-table"),
    )
    .expect("written at the end");
    let gateway = Gateway::start(options).await;
    gateway
        .until("c1 again", |table| runs_at(table, "c1", "127.64.0.1"))
        .await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_older_than_what_was_acknowledged_gets_the_events_again() {
    let bus = Bus::start().await;
    let folder = stopped_with_container(&bus).await;
    let backup = std::fs::read(folder.path().join("gateway.db")).expect("a file");
    let options = || Options {
        folder: Some(folder.clone()),
        ..Options::default()
    };
    let gateway = Gateway::start(options().bus(&bus)).await;
    bus.container("c2", 2, "127.64.0.2", &[]).await;
    bus.stopped("c1").await;
    gateway
        .until("both changes", |table| {
            table.container("c1").is_some_and(|c| c.running.is_none())
                && runs_at(table, "c2", "127.64.0.2")
        })
        .await;
    gateway.stop().await;
    replace_database(folder.path(), Some(&backup));

    let gateway = Gateway::start(options().bus(&bus)).await;
    assert!(runs_at(&gateway.table(), "c2", "127.64.0.2"), "last good");
    until_ready(&gateway).await;
    let table = gateway.table();
    assert!(runs_at(&table, "c2", "127.64.0.2"));
    assert!(table.container("c1").is_some_and(|c| c.running.is_none()));
    gateway.stop().await;
}

/// Statements on a database that nobody has open.
async fn execute(file: std::path::PathBuf, statements: &'static str) {
    use sqlx::{ConnectOptions as _, Connection as _, Executor as _};
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let mut connection = options.connect().await.expect("opened");
    connection.execute(statements).await.expect("executed");
    connection.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_died_before_its_first_commit_is_lost_too() {
    let bus = Bus::start().await;
    let folder = stopped_with_container(&bus).await;
    // What is there when the process ends right after the schema.
    execute(
        folder.path().join("gateway.db"),
        "DELETE FROM containers; DELETE FROM ingress_rules; DELETE FROM inbox; \
         DELETE FROM static_routes; DELETE FROM meta",
    )
    .await;
    let stream = bus.js.get_stream("COMPUTE").await.expect("a stream");
    stream.purge().await.expect("expired");
    let options = Options {
        folder: Some(folder),
        ..Options::default()
    };
    let gateway = Gateway::start(options.bus(&bus)).await;
    let c1 = gateway.table().container("c1").cloned().expect("last good");
    until_all_but_a_snapshot(&gateway).await;
    assert!(runs_at(&gateway.table(), "c1", "127.64.0.1"));
    assert!(!c1.running.as_ref().expect("it ran").fact.is_revoked());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_without_events_keeps_the_last_good_table() {
    let bus = Bus::start().await;
    let folder = stopped_with_container(&bus).await;
    replace_database(folder.path(), None);
    for _ in 0..2 {
        let options = Options {
            folder: Some(folder.clone()),
            ..Options::default()
        };
        let gateway = Gateway::start(options).await;
        until_ready(&gateway).await;
        assert!(runs_at(&gateway.table(), "c1", "127.64.0.1"));
        gateway.stop().await;
        assert!(has_container(folder.path().join("gateway.db"), "c1").await);
    }
    // With events again it goes on from there.
    let options = Options {
        folder: Some(folder),
        ..Options::default()
    };
    let gateway = Gateway::start(options.bus(&bus)).await;
    until_ready(&gateway).await;
    bus.stopped("c1").await;
    gateway
        .until("the stop", |table| {
            table.container("c1").is_some_and(|c| c.running.is_none())
        })
        .await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_database_that_fails_before_the_replay_unroutes_nothing() {
    let mut bus = Bus::start().await;
    let folder = stopped_with_container(&bus).await;
    let backup = std::fs::read(folder.path().join("gateway.db")).expect("a file");
    let options = || Options {
        folder: Some(folder.clone()),
        ..Options::default()
    };
    let gateway = Gateway::start(options().bus(&bus)).await;
    bus.container("c2", 2, "127.64.0.2", &[]).await;
    gateway
        .until("c2", |table| runs_at(table, "c2", "127.64.0.2"))
        .await;
    gateway.stop().await;
    replace_database(folder.path(), Some(&backup));
    bus.server.stop();

    let gateway = Gateway::start(options().bus(&bus)).await;
    let database = |wanted: &'static str| {
        let admin = gateway.admin;
        eventually(
            wanted,
            move || async move { ready(admin).await.3 == wanted },
        )
    };
    // Behind the table that serves, so it waits for the events.
    eventually("an open database", || async {
        ready(gateway.admin).await.3 != "unavailable"
    })
    .await;
    let (file, away) = (gateway.path("gateway.db"), gateway.path("away.db"));
    std::fs::create_dir(&away).expect("made");
    exchange(&file, &away);
    database("unavailable").await;
    exchange(&file, &away);
    database("lost").await;
    assert!(
        runs_at(&gateway.table(), "c2", "127.64.0.2"),
        "it serves on"
    );
    bus.server.resume().await;
    until_ready(&gateway).await;
    assert!(runs_at(&gateway.table(), "c2", "127.64.0.2"));
    assert!(runs_at(&gateway.table(), "c1", "127.64.0.1"));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_from_the_file_is_announced_with_its_revision() {
    let bus = Bus::start().await;
    let folder = stopped_with_container(&bus).await;
    let options = Options {
        folder: Some(folder),
        ..Options::routes("routes:\n- host: new.localhost\n  target: 127.0.0.1:9\n")
    };
    let gateway = Gateway::start(options.bus(&bus)).await;
    until_ready(&gateway).await;
    let revision = i64::try_from(gateway.table().revision).expect("small");
    eventually("the announcement", || async {
        messages(&bus, "GATEWAY").await.iter().any(|(_, payload)| {
            gateway::RouterRefreshed::decode(&**payload).is_ok_and(|message| {
                message.route_count == 1 && message.metadata.is_some_and(|m| m.version == revision)
            })
        })
    })
    .await;
    gateway.stop().await;
}

/// Whatever the reason, what the database takes of a batch is in force, and the rest comes again
/// and becomes a dead letter at last: no event keeps all others waiting.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_the_database_does_not_take_holds_up_no_other() {
    use sqlx::ConnectOptions as _;
    let bus = Bus::start().await;
    let folder = std::sync::Arc::new(tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("own.db");
    let options = Options {
        folder: Some(folder),
        ..Options::default()
    };
    let url = format!("sqlite://{}", file.display());
    let gateway = Gateway::start(options.bus(&bus).flag("--database-url", url)).await;
    until_ready(&gateway).await;
    let beside = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
    let mut beside = beside.connect().await.expect("connected");
    sqlx::raw_sql(
        "CREATE TRIGGER refused BEFORE INSERT ON containers WHEN NEW.id = 'bad' \
         BEGIN SELECT RAISE(ABORT, 'refused'); END",
    )
    .execute(&mut beside)
    .await
    .expect("made");
    for id in ["c0", "bad", "c1", "c2"] {
        bus.created(id, 1).await;
    }
    gateway
        .until("the others", |table| {
            ["c0", "c1", "c2"]
                .iter()
                .all(|id| table.container(id).is_some())
        })
        .await;
    assert!(gateway.table().container("bad").is_none());
    let retried = "edd_gateway_events_total{subject=\"compute.container.*.created\",\
                   result=\"retried\"}";
    eventually("it is to come again", || async {
        let (_, metrics) = request(gateway.admin, "GET", "/metrics").await;
        metrics.contains(retried)
    })
    .await;
    sqlx::raw_sql("DROP TRIGGER refused")
        .execute(&mut beside)
        .await
        .expect("dropped");
    gateway
        .until("it comes again", |table| table.container("bad").is_some())
        .await;
    until_ready(&gateway).await;
    gateway.stop().await;
}

/// No event is at fault for a database that takes none: it waits, and is no dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_takes_no_event_at_all_makes_no_dead_letters() {
    use sqlx::ConnectOptions as _;
    let bus = Bus::start().await;
    let folder = std::sync::Arc::new(tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("own.db");
    let options = Options {
        folder: Some(folder),
        ..Options::default()
    };
    let url = format!("sqlite://{}", file.display());
    let gateway = Gateway::start(options.bus(&bus).flag("--database-url", url)).await;
    until_ready(&gateway).await;
    let beside = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
    let mut beside = beside.connect().await.expect("connected");
    // A constraint of a schema that is not ours.
    sqlx::raw_sql(
        "CREATE TRIGGER refused BEFORE INSERT ON journal \
         BEGIN SELECT RAISE(ABORT, 'refused'); END",
    )
    .execute(&mut beside)
    .await
    .expect("made");
    bus.created("c0", 1).await;
    bus.created("c1", 1).await;
    let metrics = || async { request(gateway.admin, "GET", "/metrics").await.1 };
    let breaker = "edd_gateway_consumer_breaker{stream=\"COMPUTE\"}";
    eventually("consumption pauses", || async {
        let metrics = metrics().await;
        assert!(!metrics.contains("result=\"retried\""), "{metrics}");
        metrics.contains(&format!("{breaker} 1")) || metrics.contains(&format!("{breaker} 2"))
    })
    .await;
    sqlx::raw_sql("DROP TRIGGER refused")
        .execute(&mut beside)
        .await
        .expect("dropped");
    gateway
        .until("both", |table| {
            ["c0", "c1"].iter().all(|id| table.container(id).is_some())
        })
        .await;
    let metrics = metrics().await;
    assert!(!metrics.contains("result=\"retried\""), "{metrics}");
    gateway.stop().await;
}
