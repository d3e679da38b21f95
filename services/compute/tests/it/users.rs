//! What auth tells about users, and what follows from it.

use std::path::Path;

use edd_events::testing::NatsServer;
use edd_proto::{auth, compute};
use edd_store::{Database, query, testing::database_of};
use prost::Message as _;
use serde_json::json;

use crate::support::{
    ALICE, BOB, Events, Service, auth_on, auth_over_http, eventually, gone, id_of, make_key,
    processes_with, publish,
};

fn created(user_id: i64, username: &str) -> auth::UserCreated {
    auth::UserCreated {
        user_id,
        username: username.to_owned(),
        display_name: username.to_owned(),
        ..Default::default()
    }
}

fn updated(user_id: i64, username: &str) -> auth::UserUpdated {
    auth::UserUpdated {
        user_id,
        username: username.to_owned(),
        ..Default::default()
    }
}

fn deleted(user_id: i64) -> auth::UserDeleted {
    auth::UserDeleted {
        user_id,
        username: "alice".to_owned(),
        ..Default::default()
    }
}

/// Name and whether there is a tombstone.
async fn cached(service: &Service, user_id: i64) -> Option<(String, bool)> {
    query("SELECT username, deleted_at IS NOT NULL FROM user_cache WHERE user_id = $1")
        .bind(user_id)
        .optional(&service.database().await)
        .await
        .unwrap()
}

#[tokio::test]
async fn users_are_cached_in_the_order_of_their_versions() {
    let nats = NatsServer::start().await;
    let service = Service::start(&nats).await;
    // Names are not unique here: the first Sam may be gone before we hear of it.
    publish(&nats, "1", 1, created(1, "sam"), 2).await;
    publish(&nats, "2", 1, created(2, "sam"), 1).await;
    publish(&nats, "1", 3, updated(1, "samuel"), 1).await;
    publish(&nats, "1", 2, updated(1, "old news"), 1).await;
    publish(&nats, "3", 1, created(3, "last"), 1).await;
    eventually("the last user", async || cached(&service, 3).await).await;
    assert_eq!(
        cached(&service, 1).await,
        Some(("samuel".to_owned(), false))
    );
    assert_eq!(cached(&service, 2).await, Some(("sam".to_owned(), false)));
    service.stop().await;
}

#[tokio::test]
async fn a_deleted_user_leaves_nothing_and_never_comes_back() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let service = Service::start(&nats).await;
    let api = service.api;
    publish(&nats, "1", 1, created(1, "alice"), 1).await;
    let first = service.create_running(&json!({ "name": "a" })).await;
    let second = service.create_running(&json!({ "name": "b" })).await;
    let others = api
        .post("/compute/containers", BOB, &json!({ "name": "c" }))
        .await
        .body;
    let key = make_key(&service.folder.path().join("some"));
    let body = json!({ "name": "k", "public_key": key });
    let key_id = api.post("/compute/ssh-keys", ALICE, &body).await.body["id"].clone();
    let bobs_key = api.post("/compute/ssh-keys", BOB, &body).await.body["id"].clone();
    assert!(!processes_with(id_of(&first)).is_empty());

    publish(&nats, "1", 2, deleted(1), 2).await;
    // The token is still good for auth here, as a remembered answer would be.
    eventually("the end of her token", async || {
        let answer = api.get("/compute/containers", ALICE).await;
        (answer.status == 401).then_some(())
    })
    .await;
    for container in [&first, &second] {
        gone(id_of(container)).await;
    }
    // Whatever comes later about her is too late.
    publish(&nats, "1", 9, updated(1, "zombie"), 1).await;
    publish(&nats, "1", 0, created(1, "zombie"), 1).await;
    publish(&nats, "3", 1, created(3, "last"), 1).await;
    eventually("the last user", async || cached(&service, 3).await).await;
    assert_eq!(cached(&service, 1).await, Some(("alice".to_owned(), true)));
    let again = api
        .post("/compute/containers", ALICE, &json!({ "name": "z" }))
        .await;
    again.assert_error(401, "unauthorized");

    let mut events = Events::of_compute(&nats).await;
    let mut ends = Vec::new();
    // The last word comes after all of it.
    let mut confirmed = Vec::new();
    while confirmed
        .last()
        .is_none_or(|last| last != "compute.user.1.purged")
    {
        let message = events.next().await;
        let subject = message.subject.to_string();
        if subject.starts_with("compute.user.1.") {
            confirmed.push(subject.clone());
        }
        if subject.ends_with(".deleted") {
            let headers = message.headers.as_ref().unwrap();
            assert!(headers.get("Edd-Causation-Id").is_some(), "{headers:?}");
            if subject.contains(".container.") {
                let event = compute::ContainerDeleted::decode(message.payload.clone()).unwrap();
                assert_eq!(event.user_id, 1);
            }
            ends.push(subject);
        }
    }
    // Created twice with one event id: confirmed once.
    assert_eq!(
        confirmed,
        ["compute.user.1.cached", "compute.user.1.purged"]
    );
    ends.sort();
    let mut expected = [
        format!("compute.container.{}.deleted", id_of(&first)),
        format!("compute.container.{}.deleted", id_of(&second)),
        format!("compute.sshkey.{key_id}.deleted"),
    ];
    expected.sort();
    assert_eq!(ends, expected);

    // Bob has all that was his.
    let path = format!("/compute/containers/{}", id_of(&others));
    assert_eq!(api.get(&path, BOB).await.status, 200);
    let keys = api.get("/compute/ssh-keys", BOB).await.body;
    assert_eq!(keys["ssh_keys"][0]["id"], bobs_key);
    let left: i64 = query(
        "SELECT (SELECT COUNT(*) FROM containers WHERE user_id = 1) \
         + (SELECT COUNT(*) FROM ssh_keys WHERE user_id = 1) \
         + (SELECT COUNT(*) FROM ingress_requests WHERE container_id NOT IN \
            (SELECT id FROM containers)) \
         + (SELECT COUNT(*) FROM local_addresses WHERE container_id NOT IN \
            (SELECT id FROM containers))",
    )
    .value(&service.database().await)
    .await
    .unwrap();
    assert_eq!(left, 0);
    service.stop().await;
}

#[tokio::test]
async fn the_cache_of_users_is_rebuilt_from_the_archive() {
    let nats = NatsServer::start().await;
    let service = Service::start(&nats).await;
    publish(&nats, "1", 1, created(1, "alice"), 2).await;
    publish(&nats, "2", 1, created(2, "bob"), 1).await;
    publish(&nats, "1", 3, updated(1, "alicia"), 1).await;
    publish(&nats, "1", 2, updated(1, "old news"), 1).await;
    publish(&nats, "4", 1, created(4, "dora"), 1).await;
    publish(&nats, "4", 2, deleted(4), 1).await;
    publish(&nats, "4", 3, updated(4, "zombie"), 1).await;
    publish(&nats, "3", 1, created(3, "last"), 1).await;
    eventually("the last user", async || cached(&service, 3).await).await;
    type Row = (i64, String, String, i64, bool);
    let database = service.database().await;
    let rows = async || -> Vec<Row> {
        query(
            "SELECT user_id, username, display_name, version, deleted_at IS NOT NULL \
             FROM user_cache ORDER BY user_id",
        )
        .all(&database)
        .await
        .unwrap()
    };
    let live = rows().await;
    assert_eq!(live.len(), 4);
    for damage in [
        "UPDATE user_cache SET username = 'x', version = 77, deleted_at = NULL",
        "DELETE FROM user_cache WHERE user_id = 2",
        // Of a time before the archive.
        "INSERT INTO user_cache (user_id, username, display_name, version) \
         VALUES (99, 'old', 'old', 5)",
    ] {
        query(damage).run(&database).await.unwrap();
    }
    let folder = service.stop().await;
    let said = rebuild(folder.path()).await;
    assert!(said.contains("rebuilt from 8 events"), "{said}");
    let mut expected = live;
    expected.push((99, "old".into(), "old".into(), 5, false));
    assert_eq!(rows().await, expected);
}

/// Runs `edd-compute rebuild-projections`; what it says.
async fn rebuild(folder: &Path) -> String {
    let url = database_of(folder).await;
    let rebuilt = tokio::process::Command::new(env!("CARGO_BIN_EXE_edd-compute"))
        .args(["rebuild-projections", "--database-url", &url.to_string()])
        .output()
        .await
        .unwrap();
    assert!(rebuilt.status.success(), "{rebuilt:?}");
    String::from_utf8_lossy(&rebuilt.stdout).into_owned()
}

#[tokio::test]
async fn who_was_deleted_while_the_archive_was_off_is_not_rebuilt() {
    let nats = NatsServer::start().await;
    let service = Service::start(&nats).await;
    publish(&nats, "1", 1, created(1, "alice"), 1).await;
    publish(&nats, "2", 1, created(2, "bob"), 1).await;
    eventually("both users", async || cached(&service, 2).await).await;
    let folder = service.stop().await;

    let url = nats.url();
    let off = ["--nats-url", &url, "--event-store-days=0"];
    let service = Service::start_in(folder, &off, |_| ()).await;
    publish(&nats, "1", 2, deleted(1), 1).await;
    // A dead letter that comes by: only the archive keeps copies of it.
    let js = nats.jetstream().await;
    let bad = js.publish("auth.user.3.created", "no message".into()).await;
    bad.unwrap().await.unwrap();
    let letters = r#"edd_compute_events_total{subject="dlq",result="ignored"} 1"#;
    eventually("the end of alice, and a letter", async || {
        let metrics = service.admin.get("/metrics", None).await.text;
        let is_gone = cached(&service, 1).await.is_some_and(|(_, gone)| gone);
        (is_gone && metrics.lines().any(|line| line == letters)).then_some(())
    })
    .await;
    let folder = service.stop().await;
    let database = Database::open(&database_of(folder.path()).await).await;
    let database = database.unwrap();
    let kept: Vec<String> = query("SELECT event_type FROM event_store ORDER BY id")
        .values(&database)
        .await
        .unwrap();
    // Of auth, and compute's own words about it.
    let expected = ["UserCreated", "UserCached", "UserCreated", "UserCached"];
    assert_eq!(kept, expected, "nothing of the time when it was off");
    let letters = edd_events::event_store::letters(&database, 0, 10).await;
    assert_eq!(letters.unwrap(), []);

    let said = rebuild(folder.path()).await;
    assert!(said.contains("rebuilt from 2 events"), "{said}");
    let users: Vec<(i64, bool)> =
        query("SELECT user_id, deleted_at IS NOT NULL FROM user_cache ORDER BY user_id")
            .all(&database)
            .await
            .unwrap();
    assert_eq!(users, [(1, true), (2, false)]);
}

/// An archive that was switched off keeps what there is for as long as by default.
#[tokio::test]
async fn what_an_archive_has_when_it_is_switched_off_goes_in_time() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    let body = json!({ "name": "a", "ssh_enabled": true });
    service.create_running(&body).await;
    let database = service.database().await;
    let folder = service.stop().await;
    let kept = async || -> Vec<String> {
        query("SELECT event_type FROM event_store ORDER BY event_type")
            .values(&database)
            .await
            .unwrap()
    };
    let before = kept().await;
    let started = "ContainerStarted".to_owned();
    assert!(before.contains(&started), "{before:?}");
    const DAY_MS: i64 = 24 * 3600 * 1000;
    for (kind, days) in [("ContainerSshToggled", 91), ("ContainerStarted", 89)] {
        query("UPDATE event_store SET occurred_at = occurred_at - $1 WHERE event_type = $2")
            .bind(days * DAY_MS)
            .bind(kind)
            .run(&database)
            .await
            .unwrap();
    }
    let off = ["--auth-url", &url, "--event-store-days=0"];
    let service = Service::start_in(folder, &off, |_| ()).await;
    let mut expected = before;
    expected.retain(|kind| kind != "ContainerSshToggled");
    eventually("old events forgotten", async || {
        (kept().await.len() == expected.len()).then_some(())
    })
    .await;
    assert_eq!(kept().await, expected);
    service.stop().await;
}
