//! `edd-gateway rebuild`: an empty database from the streams.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use edd_proto::compute;
use edd_route::{RouteTable, UserId};
use edd_store::{Database, DatabaseUrl, query};

use super::snapshot::{Compute, container, forget};
use super::{announced, ready, runs_at};
use crate::support::{Bus, DEADLINE, Gateway, Options, eventually, free_port};
use rustix::process::{Pid, Signal, kill_process};

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
    let rule = compute::IngressRuleRequested {
        container_id: "c4".into(),
        port: 80,
        target_port: 9,
        ..Default::default()
    };
    bus.publish("c4", 5, rule).await;
    bus.key(3, 7, FINGERPRINT).await;
    let is_whole = |table: &RouteTable| {
        table.containers().count() == 19
            && runs_at(table, "c18", "127.64.0.1")
            && table.container("c18").is_some_and(|c| c.ssh.is_some())
            && table.container("c3").is_some_and(|c| c.rule(80).is_some())
            && table.container("c4").is_some_and(|c| c.rule(80).is_some())
            && table.keys(UserId(7)).len() == 1
    };
    gateway.until("all of it", is_whole).await;
    let (folder, admin) = (Arc::clone(&gateway.folder), gateway.admin);
    let rule = ("c4".to_owned(), 80, Some(9));
    let told = async || {
        announced(&bus)
            .await
            .into_iter()
            .filter(|r| *r == rule)
            .count()
    };
    eventually("the rule is announced", || async { told().await == 1 }).await;
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
        assert_eq!(text.contains("what it held before"), !more.is_empty());
    }
    assert_eq!(told().await, 1, "told again it is the same event");
    // What was there before is all there still.
    let kept = kept(folder.path());
    assert_eq!(kept.len(), 1, "{kept:?}");
    let before = Database::open(&DatabaseUrl::Sqlite(kept[0].clone()))
        .await
        .expect("opened");
    let lines: i64 = query("SELECT COUNT(*) FROM journal WHERE name = 'c19'")
        .value(&before)
        .await
        .expect("read");
    assert!(lines > 0);
    before.close().await;
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

/// Databases that were put aside.
fn kept(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).expect("a folder");
    let files = files.map(|file| file.expect("a file").path());
    let is_kept = |path: &PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy();
        name.starts_with("gateway.db.old-") && !name.ends_with("-wal") && !name.ends_with("-shm")
    };
    files.filter(is_kept).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_touched_where_it_cannot_be_rebuilt() {
    let mut bus = Bus::start().await;
    let gateway = Gateway::start(Options::default()).await;
    let (folder, admin) = (Arc::clone(&gateway.folder), gateway.admin);
    eventually("its database", || async { ready(admin).await.3 == "ok" }).await;
    gateway.stop().await;
    let database = format!("sqlite://{}", folder.path().join("gateway.db").display());
    let refused = |bus: &Bus, code: i32, why: &str| {
        let (found, text) = rebuild(bus, folder.path(), admin, &database, &["--yes"]);
        assert_eq!(found, Some(code), "{text}");
        assert!(text.contains(why), "{text}");
        assert!(folder.path().join("gateway.db").exists(), "{text}");
        assert_eq!(kept(folder.path()), [] as [PathBuf; 0]);
    };
    let stream = bus.js.get_stream("COMPUTE").await.expect("a stream");
    assert_eq!(stream.cached_info().state.last_sequence, 0);
    refused(&bus, 1, "nothing was ever published to COMPUTE");
    bus.js.delete_stream("COMPUTE").await.expect("deleted");
    refused(&bus, 1, "NATS has no stream COMPUTE");
    edd_events::stream::ensure(&bus.js, &edd_events::stream::COMPUTE, 1)
        .await
        .expect("made");
    bus.created("c1", 7).await;
    std::fs::write(folder.path().join("routes.yaml"), "routes: 7\n").expect("written");
    refused(&bus, 64, "routes.yaml:1:");
    bus.server.stop();
    refused(&bus, 1, "NATS is not there");
}

/// Clients know the gateway by them.
#[tokio::test(flavor = "multi_thread")]
async fn the_ssh_keys_in_a_database_are_taken_over() {
    let bus = Bus::start().await;
    bus.created("c1", 7).await;
    let options = Options::default().bus(&bus).flag("--ssh-keys", "database");
    let gateway = Gateway::start(options).await;
    let (folder, admin) = (Arc::clone(&gateway.folder), gateway.admin);
    let file = folder.path().join("gateway.db");
    let url = format!("sqlite://{}", file.display());
    eventually("its database", || async { ready(admin).await.3 == "ok" }).await;
    let stored = async || -> Vec<(String, String)> {
        let database = Database::open(&url.parse().expect("a URL"))
            .await
            .expect("opened");
        let keys = query("SELECT name, secret FROM gateway_keys ORDER BY name").all(&database);
        let keys = keys.await.expect("read");
        database.close().await;
        keys
    };
    eventually("keys", || async { !stored().await.is_empty() }).await;
    gateway.stop().await;
    let before = stored().await;
    let (code, text) = rebuild(&bus, folder.path(), admin, &url, &["--yes"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(stored().await, before);
}

/// What the streams have lost only compute can tell: a database without it is not called rebuilt.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_streams_have_lost_has_to_come_from_compute() {
    let bus = Bus::start().await;
    bus.container("c1", 7, "127.64.0.1", &[]).await;
    forget(&bus).await;
    bus.container("c2", 7, "127.64.0.2", &[]).await;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("routes.yaml"), "routes: []\n").expect("a file");
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let rebuilt = |name: &str| {
        let url = format!("sqlite://{}", folder.path().join(name).display());
        tokio::task::block_in_place(|| rebuild(&bus, folder.path(), admin, &url, &[]))
    };
    let (code, text) = rebuilt("half.db");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the database is not whole"), "{text}");
    let facts = ["c1", "c2"].map(|id| container(id, 9, "127.64.0.1", &[]));
    let _compute = Compute::start(&bus, facts.concat(), None).await;
    let (code, text) = rebuilt("whole.db");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("2 containers"), "{text}");
}

/// How far a database says that it has COMPUTE, if it is there and says so.
async fn floor(file: &Path) -> Option<i64> {
    use sqlx::{ConnectOptions as _, Connection as _};
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(file)
        .read_only(true);
    let mut connection = options.connect().await.ok()?;
    let floor = sqlx::query_scalar("SELECT value FROM meta WHERE key = 'floor:COMPUTE'")
        .fetch_optional(&mut connection)
        .await;
    let _ = connection.close().await;
    floor.ok().flatten()
}

/// All is acknowledged long ago, for a database that is gone: what a stopped rebuild has
/// not read, the next gateway reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_stopped_halfway_is_gone_on_with() {
    const COUNT: usize = 3000;
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    for n in 0..COUNT {
        bus.created(&format!("c{n}"), 7).await;
    }
    let is_whole = |table: &RouteTable| table.containers().count() == COUNT;
    gateway.until("all of it", is_whole).await;
    let (folder, admin) = (Arc::clone(&gateway.folder), gateway.admin);
    gateway.stop().await;
    let last = i64::try_from(COUNT).unwrap();
    let mut halfway = None;
    for attempt in 0..5 {
        let file = folder.path().join(format!("new{attempt}.db"));
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut child = Command::new(env!("CARGO_BIN_EXE_edd-gateway"))
            .arg("rebuild")
            .args(["--nats-url", &bus.server.url()])
            .args(["--database-url", &format!("sqlite://{}", file.display())])
            .args(["--routes", &path("routes.yaml")])
            .args(["--state-dir", &path("state")])
            .args(["--container-cidrs", "127.64.0.0/16"])
            .args(["--admin-addr", &admin.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        let begun = Instant::now();
        while floor(&file).await.is_none_or(|floor| floor == 0) {
            assert!(begun.elapsed() < DEADLINE, "nothing is read");
        }
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).expect("sent");
        let ended = tokio::task::spawn_blocking(move || child.wait());
        let ended = tokio::time::timeout(DEADLINE, ended).await;
        let status = ended
            .expect("an end in time")
            .expect("waited")
            .expect("a status");
        if !status.success() {
            halfway = Some(file);
            break;
        }
    }
    let file = halfway.expect("stopped before it was done");
    let floor = floor(&file).await.expect("it began");
    assert!(floor < last, "{floor} is more than it has read");
    // What it serves is what the database and the streams tell.
    std::fs::remove_file(folder.path().join("state/last-good-table")).unwrap();
    let again = Options {
        folder: Some(Arc::clone(&folder)),
        ..Options::default()
    };
    let url = format!("sqlite://{}", file.display());
    let gateway = Gateway::start(again.bus(&bus).flag("--database-url", url)).await;
    gateway.until("the rest", is_whole).await;
    gateway.stop().await;
}
