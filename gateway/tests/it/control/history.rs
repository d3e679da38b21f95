//! The past: tables as they were, and what happened to one name.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use edd_store::testing::{Postgres, database_of};

use super::snapshot::{Compute, container, forget};
use super::{get, runs_at};
use crate::support::{Bus, Gateway, Options, eventually, replace_file};

/// `edd-gateway ARGS`: exit code and what it prints.
async fn edd_gateway(admin: SocketAddr, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edd-gateway"));
    command
        .args(args)
        .env_clear()
        .env("EDD_GATEWAY_ADMIN_ADDR", admin.to_string());
    let run = move || command.output().expect("it starts");
    let output = tokio::task::spawn_blocking(run).await.expect("it ends");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("text");
    (output.status.code().expect("a code"), text)
}

async fn the_past_can_be_asked(url: String) {
    let bus = Bus::start().await;
    let options = Options::routes("routes:\n  - {host: a.example, target: \"127.0.0.1:1\"}\n")
        .bus(&bus)
        .flag("--database-url", url);
    let gateway = Gateway::start(options).await;
    let admin = gateway.admin;
    bus.container("c1", 7, "127.64.0.1", &[(80, 8080)]).await;
    gateway
        .until("c1", |table| {
            let c1 = table.container("c1");
            runs_at(table, "c1", "127.64.0.1") && c1.is_some_and(|c| c.rule(80).is_some())
        })
        .await;
    let first = gateway.table().revision;
    let routes = "routes:\n  - {host: b.example, path: /x, target: \"127.0.0.1:2\"}\n";
    replace_file(&gateway.path("routes.yaml"), routes);
    gateway
        .until("other routes", |table| {
            table.static_specs().all(|spec| spec.host == "b.example")
        })
        .await;
    bus.started("c1", "127.64.0.2", None).await;
    bus.rule_deleted("c1", 80).await;
    bus.deleted("c1", 7).await;
    gateway
        .until("gone", |table| table.container("c1").is_none())
        .await;

    let then = format!("/api/v1/containers?at={first}");
    let (code, answer) = get(admin, &then).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(answer["revision"], first);
    assert_eq!(answer["containers"][0]["address"], "127.64.0.1", "{answer}");
    assert_eq!(answer["containers"][0]["rules"][0]["target_port"], 8080);
    let (_, now) = get(admin, "/api/v1/containers?at=0s").await;
    assert_eq!(now["containers"].as_array().map(Vec::len), Some(0), "{now}");
    let (code, text) = edd_gateway(admin, &["routes", "--at", &first.to_string()]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("a.example/ -> 127.0.0.1:1"), "{text}");
    assert!(!text.contains("b.example"), "{text}");
    let (_, text) = edd_gateway(admin, &["routes"]).await;
    assert!(text.contains("b.example/x -> 127.0.0.1:2"), "{text}");

    let url = "http://c1.compute.localhost/";
    let (_, text) = edd_gateway(admin, &["explain", url, "--at", &first.to_string()]).await;
    assert!(
        text.contains("127.64.0.1:8080") && text.contains("compute.ingress.c1.requested"),
        "{text}"
    );
    // The same by the time at which the last change of that table was made.
    let (_, log) = get(admin, "/api/v1/log?name=c1").await;
    let entries = log["entries"].as_array().expect("entries");
    let then = entries
        .iter()
        .rfind(|entry| entry["revision"].as_u64() <= Some(first));
    let then = then.and_then(|entry| entry["at"].as_str()).expect("a time");
    let revision = first.to_string();
    for question in [&["routes", "--at"][..], &["explain", url, "--at"]] {
        let [by_time, by_revision] = [then, &*revision].map(|at| [question, &[at]].concat());
        let at_time = edd_gateway(admin, &by_time).await;
        assert_eq!(at_time, edd_gateway(admin, &by_revision).await);
        assert_eq!(at_time.0, 0, "{at_time:?}");
    }
    let (_, text) = edd_gateway(admin, &["explain", url]).await;
    assert!(!text.contains("127.64.0.1"), "{text}");

    let (code, text) = edd_gateway(admin, &["log", "c1.compute.localhost"]).await;
    assert_eq!(code, 0, "{text}");
    let changes: Vec<_> = text.lines().collect();
    let expected = [
        "created \"c1\" for user 7  [compute.container.c1.created COMPUTE:1 ",
        "started at 127.64.0.1  [compute.container.c1.started COMPUTE:2 ",
        "ssh on  [compute.container.c1.ssh_toggled COMPUTE:3 ",
        "rule 80 to port 8080  [compute.ingress.c1.requested COMPUTE:4 ",
        "started at 127.64.0.2  [compute.container.c1.started COMPUTE:5 ",
        "rule 80 deleted  [compute.ingress.c1.delete_requested COMPUTE:6 ",
        "container deleted  [compute.container.c1.deleted COMPUTE:7 ",
    ];
    assert_eq!(changes.len(), expected.len(), "{text}");
    for (line, expected) in changes.iter().zip(expected) {
        assert!(
            line.contains(expected) && line.ends_with("by test]"),
            "{line}: {expected}"
        );
    }
    let (_, text) = edd_gateway(admin, &["log", "a.example"]).await;
    assert!(
        text.contains("route a.example/ to 127.0.0.1:1  [routes.yaml]"),
        "{text}"
    );
    assert!(
        text.contains("route a.example/ removed  [routes.yaml]"),
        "{text}"
    );

    for (at, status) in [
        ("999999", 404),
        ("nonsense", 400),
        ("2020-01-01T00:00:00Z", 404),
    ] {
        let (code, _) = get(admin, &format!("/api/v1/routes?at={at}")).await;
        assert_eq!(code, status, "{at}");
    }
    gateway.stop().await;
}

/// Where no event is known nobody else is named, and a page begins with what its line changed.
#[tokio::test(flavor = "multi_thread")]
async fn every_line_says_what_it_comes_from() {
    let bus = Bus::start().await;
    let own = tempfile::tempdir().expect("a folder");
    let database = own.path().join("gateway.db");
    let url = format!("sqlite://{}", database.display());
    let options = Options::default().bus(&bus).flag("--database-url", url);
    let gateway = Gateway::start(options.clone()).await;
    let (folder, admin) = (Arc::clone(&gateway.folder), gateway.admin);
    bus.container("c1", 7, "127.64.0.1", &[]).await;
    for n in 2..5 {
        bus.started("c1", &format!("127.64.0.{n}"), None).await;
    }
    gateway
        .until("the last", |table| runs_at(table, "c1", "127.64.0.4"))
        .await;
    eventually("stored", || async {
        let (_, log) = get(admin, "/api/v1/log?name=c1").await;
        log["entries"].as_array().map(Vec::len) == Some(6)
    })
    .await;
    let (_, text) = edd_gateway(admin, &["log", "c1", "--limit", "1"]).await;
    assert!(
        text.contains("started at 127.64.0.4  [compute.container.c1.started COMPUTE:6 "),
        "{text}"
    );
    assert!(!text.contains("created"), "{text}");
    gateway.stop().await;
    std::fs::remove_file(&database).expect("lost");
    for name in ["gateway.db-wal", "gateway.db-shm"] {
        let _ = std::fs::remove_file(own.path().join(name));
    }
    forget(&bus).await;
    let _compute = Compute::start(&bus, container("c2", 9, "127.64.0.9", &[]), None).await;
    let again = Options {
        folder: Some(folder),
        ..options
    };
    let gateway = Gateway::start(again).await;
    let admin = gateway.admin;
    gateway
        .until("the snapshot", |table| runs_at(table, "c2", "127.64.0.9"))
        .await;
    eventually("stored", || async {
        let (_, log) = get(admin, "/api/v1/log?name=c2").await;
        log["entries"].as_array().map(Vec::len) == Some(3)
    })
    .await;
    let (_, text) = edd_gateway(admin, &["log", "c1"]).await;
    assert!(
        text.contains("started at 127.64.0.4") && text.contains("[into a new database]"),
        "{text}"
    );
    let (_, text) = edd_gateway(admin, &["log", "c2"]).await;
    let from = "[compute.container.c2.started, snapshot up to COMPUTE:6 by edd-compute]";
    assert!(
        text.contains(&format!("started at 127.64.0.9  {from}")),
        "{text}"
    );
    let (_, text) = edd_gateway(admin, &["log", "nobody"]).await;
    assert!(text.contains("nothing is known of nobody"), "{text}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_can_be_asked_with_sqlite() {
    let folder = tempfile::tempdir().expect("a folder");
    the_past_can_be_asked(database_of(folder.path()).await.to_string()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_can_be_asked_with_postgresql() {
    let url = Postgres::shared().await.database().await;
    the_past_can_be_asked(url.to_string()).await;
}

/// Older changes go; what is in force stays known, and is loaded again.
#[tokio::test(flavor = "multi_thread")]
async fn the_past_is_forgotten_down_to_what_is_in_force() {
    let bus = Bus::start().await;
    let options = Options::default().bus(&bus);
    let gateway = Gateway::start(options.clone()).await;
    for n in 0..20 {
        bus.container(&format!("c{n}"), 1, &format!("127.64.0.{n}"), &[(80, 1)])
            .await;
        if n % 2 == 0 {
            bus.deleted(&format!("c{n}"), 1).await;
        }
    }
    gateway
        .until("ten are left", |table| {
            table.containers().len() == 10
                && table.container("c19").is_some_and(|c| c.rule(80).is_some())
        })
        .await;
    let folder = Arc::clone(&gateway.folder);
    gateway.stop().await;
    let options = Options {
        folder: Some(folder),
        ..options
            .flag("--history-days", "0")
            .flag("--history-rows", "0")
    };
    let gateway = Gateway::start(options).await;
    let admin = gateway.admin;
    eventually("only the last change of each", || async {
        let (_, log) = get(admin, "/api/v1/log?name=c1").await;
        log["entries"].as_array().map(Vec::len) == Some(2)
    })
    .await;
    let (_, log) = edd_gateway(admin, &["log", "c1"]).await;
    assert!(
        log.contains("before that: created \"c1\" for user 1, started at 127.64.0.1"),
        "{log}"
    );
    let (_, log) = get(admin, "/api/v1/log?name=c0").await;
    assert_eq!(log["entries"].as_array().map(Vec::len), Some(0), "{log}");
    let (code, now) = get(admin, "/api/v1/containers?at=0s").await;
    assert_eq!(code, 200, "{now}");
    assert_eq!(now["containers"].as_array().map(Vec::len), Some(10));
    gateway.stop().await;
}
