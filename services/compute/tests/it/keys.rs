//! SSH keys of users.

use std::process::Command;

use edd_events::testing::NatsServer;
use edd_proto::compute;
use serde_json::{Value, json};

use crate::support::{ALICE, BOB, Events, Service, auth_on, auth_over_http, id_of, make_key};

const KEYS: &str = "/compute/ssh-keys";

/// A public line made by the machine's ssh-keygen, comment and all.
fn keygen(options: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let status = Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-C", "me @home", "-f"])
        .arg(&file)
        .args(options)
        .status()
        .unwrap();
    assert!(status.success(), "{options:?}");
    std::fs::read_to_string(file.with_extension("pub")).unwrap()
}

/// What the machine's ssh-keygen says of a public line.
fn fingerprint(line: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.pub");
    std::fs::write(&file, line).unwrap();
    let output = Command::new("ssh-keygen")
        .arg("-lf")
        .arg(&file)
        .output()
        .unwrap();
    let words = String::from_utf8(output.stdout).unwrap();
    words.split(' ').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn keys_come_and_go_and_are_told() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let mut events = Events::of_compute(&nats).await;
    let service = Service::start(&nats).await;
    let api = service.api;
    let line = keygen(&["-t", "ed25519"]);
    let bare = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let answer = api
        .post(
            KEYS,
            ALICE,
            &json!({ "name": "laptop", "public_key": line }),
        )
        .await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let id = answer.body["id"].as_i64().unwrap();
    assert_eq!(answer.body["public_key"], bare);
    assert_eq!(answer.body["fingerprint"], fingerprint(&line));

    let subject = format!("compute.sshkey.{id}.created");
    let (event, created) = events.expect::<compute::SshKeyCreated>(&subject).await;
    assert_eq!(
        (event.key_id, event.user_id, event.name.as_str()),
        (id, 1, "laptop")
    );
    assert_eq!(
        (event.public_key, event.fingerprint),
        (bare, fingerprint(&line))
    );

    let again = api
        .post(KEYS, ALICE, &json!({ "name": "again", "public_key": line }))
        .await;
    again.assert_error(409, "duplicate_key");
    let bobs = api
        .post(KEYS, BOB, &json!({ "name": "shared", "public_key": line }))
        .await;
    assert_eq!(bobs.status, 201, "{bobs:?}");
    let bobs_id = bobs.body["id"].as_i64().unwrap();
    let subject = format!("compute.sshkey.{bobs_id}.created");
    events.expect::<compute::SshKeyCreated>(&subject).await;

    let list = api.get(KEYS, ALICE).await;
    assert_eq!(list.body["ssh_keys"], json!([answer.body]));
    let own = format!("{KEYS}/{id}");
    for nothing in [
        &format!("{KEYS}/{bobs_id}"),
        "/compute/ssh-keys/x",
        "/compute/ssh-keys/999",
    ] {
        api.delete(nothing, ALICE)
            .await
            .assert_error(404, "not_found");
    }
    assert_eq!(api.delete(&own, ALICE).await.status, 204);
    api.delete(&own, ALICE).await.assert_error(404, "not_found");
    let subject = format!("compute.sshkey.{id}.deleted");
    let (event, deleted) = events.expect::<compute::SshKeyDeleted>(&subject).await;
    assert_eq!((event.key_id, event.user_id), (id, 1));
    assert!(deleted > created);
    assert_eq!(api.get(KEYS, ALICE).await.body["ssh_keys"], json!([]));
    assert_eq!(api.get(KEYS, BOB).await.body["ssh_keys"][0]["id"], bobs_id);
    service.stop().await;
}

#[tokio::test]
async fn strong_keys_are_taken_and_others_refused() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    let post = async |key: &str| {
        service
            .api
            .post(KEYS, ALICE, &json!({ "name": "k", "public_key": key }))
            .await
    };
    for options in [
        ["-t", "ecdsa", "-b", "256"],
        ["-t", "ecdsa", "-b", "384"],
        ["-t", "ecdsa", "-b", "521"],
        ["-t", "rsa", "-b", "2048"],
    ] {
        let line = keygen(&options);
        let answer = post(&line).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        assert_eq!(
            answer.body["fingerprint"],
            fingerprint(&line),
            "{options:?}"
        );
    }
    // A hardware key cannot be made here; this one was.
    let hardware = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIC1xFkK3JrBEAWJ8qfusMvXIUw+xkDzE2wIlhxeSGkiBAAAABHNzaDo= me";
    let answer = post(hardware).await;
    assert_eq!(answer.status, 201, "{answer:?}");

    let good = keygen(&["-t", "ed25519"]);
    let small = keygen(&["-t", "rsa", "-b", "1024"]);
    let flipped = good.replace("ssh-ed25519 ", "ssh-rsa ");
    let dss = "ssh-dss AAAAB3NzaC1kc3MAAACBAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAHAAAAFQCAAAAAAAAAAAAAAAAAAAAAAAAAAwAAAAECAAAAAQU=";
    let two = format!("{good}{good}");
    let options = format!("from=\"*\" {good}");
    let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjE=\n";
    for bad in [
        "",
        "x",
        "ssh-ed25519",
        &good[..40],
        &small,
        &flipped,
        dss,
        &two,
        &options,
        private,
    ] {
        post(bad).await.assert_error(400, "invalid_key");
    }
    let nameless = json!({ "name": "", "public_key": good });
    let answer = service.api.post(KEYS, ALICE, &nameless).await;
    answer.assert_error(400, "invalid_value");
    service.stop().await;
}

#[tokio::test]
async fn there_are_no_more_than_the_quota() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url, "--keys-per-user=1"]).await;
    for expected in [201, 403] {
        let key = make_key(&service.folder.path().join("some"));
        let body = json!({ "name": "k", "public_key": key });
        let answer = service.api.post(KEYS, ALICE, &body).await;
        assert_eq!(answer.status, expected, "{answer:?}");
        std::fs::remove_file(service.folder.path().join("some")).unwrap();
    }
    service.stop().await;
}

#[tokio::test]
async fn a_container_remembers_its_keys_as_long_as_they_exist() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    let api = service.api;
    let key = make_key(&service.folder.path().join("some"));
    let body = json!({ "name": "k", "public_key": key });
    let id = api.post(KEYS, ALICE, &body).await.body["id"].clone();
    let stranger = json!({ "name": "a", "ssh_key_ids": [id] });
    let answer = api.post("/compute/containers", BOB, &stranger).await;
    answer.assert_error(400, "unknown_key");
    let container = service
        .create(&json!({ "name": "a", "ssh_key_ids": [id, id] }))
        .await;
    assert_eq!(container["ssh_key_ids"], json!([id]));
    assert_eq!(api.delete(&format!("{KEYS}/{id}"), ALICE).await.status, 204);
    let path = format!("/compute/containers/{}", id_of(&container));
    let seen: Value = api.get(&path, ALICE).await.body;
    assert_eq!(seen["ssh_key_ids"], json!([]));
    service.stop().await;
}
