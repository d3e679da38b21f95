//! Events that must be signed: a forged one is a dead letter, never a route.

use std::path::Path;
use std::process::Command;

use async_nats::HeaderMap;
use async_nats::jetstream::message::PublishMessage;
use edd_events::envelope::{Cause, EventMessage, seal};
use edd_events::signature::{SIGNATURE, Signer, Verifier};
use edd_events::subject::EntityId;
use edd_proto::compute;
use tempfile::TempDir;

use super::{messages, runs_at};
use crate::support::{Bus, Gateway, Options, eventually};

/// A key as an operator makes it: NAME.key, and its public half in NAME.pem.
fn make_key(folder: &Path, name: &str) -> Signer {
    let (private, public) = (
        folder.join(format!("{name}.key")),
        folder.join(format!("{name}.pem")),
    );
    let openssl = |args: &[&str], files: &[(&str, &Path)]| {
        let mut command = Command::new("openssl");
        command.args(args);
        for (flag, file) in files {
            command.arg(flag).arg(file);
        }
        let output = command.output().expect("openssl runs");
        assert!(output.status.success(), "{output:?}");
    };
    openssl(&["genpkey", "-algorithm", "ed25519"], &[("-out", &private)]);
    openssl(
        &["pkey", "-pubout"],
        &[("-in", &private), ("-out", &public)],
    );
    Signer::load(&private).expect("a key")
}

struct Compute<'a> {
    bus: &'a Bus,
    signer: Option<&'a Signer>,
}

impl Compute<'_> {
    async fn says<M: EventMessage>(&self, id: &str, message: M) {
        let entity = EntityId::try_from(id).expect("a good id");
        let sealed = seal("edd-compute", &entity, 0, message, &Cause::default());
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", sealed.event_id.as_str());
        if let Some(signer) = self.signer {
            let (id, payload) = (&sealed.event_id, &sealed.payload);
            signer.write(&mut headers, &sealed.subject, id, payload);
        }
        let message = PublishMessage::build()
            .headers(headers)
            .payload(sealed.payload.into());
        let ack = self.bus.js.send_publish(sealed.subject, message).await;
        ack.expect("sent").await.expect("stored");
    }

    async fn container(&self, id: &str, address: &str) {
        let created = compute::ContainerCreated {
            container_id: id.into(),
            user_id: 7,
            name: id.into(),
            ..Default::default()
        };
        self.says(id, created).await;
        let started = compute::ContainerStarted {
            container_id: id.into(),
            external_ip: address.into(),
            ..Default::default()
        };
        self.says(id, started).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_events_are_dead_letters_and_make_no_route() {
    let bus = Bus::start().await;
    let (keys, private) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let signer = make_key(keys.path(), "compute");
    let stranger = make_key(private.path(), "compute");
    let own = make_key(private.path(), "gateway");
    let path = |folder: &TempDir, name: &str| folder.path().join(name).display().to_string();
    let options = Options::default()
        .bus(&bus)
        .flag("--event-keys", keys.path().display().to_string())
        .flag("--event-signing-key", path(&private, "gateway.key"));
    let gateway = Gateway::start(options).await;

    let compute = |signer| Compute { bus: &bus, signer };
    compute(Some(&signer)).container("good", "127.64.0.1").await;
    gateway
        .until("the container", |table| {
            runs_at(table, "good", "127.64.0.1")
        })
        .await;
    // Somebody who may publish, and wants the container's traffic.
    compute(None).container("good", "127.64.0.66").await;
    compute(Some(&stranger))
        .container("evil", "127.64.0.66")
        .await;
    let letters = || async {
        let all = messages(&bus, "COMPUTE").await;
        let mut letters: Vec<_> = all.into_iter().map(|(subject, _)| subject).collect();
        letters.retain(|subject| subject.ends_with(".dlq"));
        letters.sort();
        letters
    };
    let expected = ["created", "created", "started", "started"]
        .map(|action| format!("compute.container.{action}.dlq"));
    eventually("the dead letters", || async { letters().await == expected }).await;

    // What follows is handled as ever, and the gateway signs what it says.
    compute(Some(&signer)).container("next", "127.64.0.2").await;
    gateway
        .until("the next one", |table| runs_at(table, "next", "127.64.0.2"))
        .await;
    let table = gateway.table();
    assert!(runs_at(&table, "good", "127.64.0.1"));
    assert!(table.container("evil").is_none());
    eventually("a word of the gateway", || async {
        !messages(&bus, "GATEWAY").await.is_empty()
    })
    .await;
    let said = bus.js.get_stream("GATEWAY").await.expect("a stream");
    let message = said.get_raw_message(1).await.expect("a message");
    assert!(message.headers.get(SIGNATURE).is_some(), "{message:?}");
    let verifier = Verifier::load(private.path()).expect("keys");
    let id = message.headers.get("Nats-Msg-Id").expect("an id").as_str();
    let checked = verifier.check(
        &message.subject,
        id,
        &message.payload,
        Some(&message.headers),
    );
    assert_eq!(checked, Ok(()), "by {}", own.key_id());
    gateway.stop().await;
}

/// Compute's key does not speak for auth.
#[tokio::test(flavor = "multi_thread")]
async fn each_source_has_its_own_keys() {
    let bus = Bus::start().await;
    let keys = TempDir::new().unwrap();
    let compute = make_key(keys.path(), "compute");
    let _auth = make_key(keys.path(), "auth");
    let flag = keys.path().display().to_string();
    let options = Options::default().bus(&bus).flag("--event-keys", flag);
    let gateway = Gateway::start(options).await;
    let says = Compute {
        bus: &bus,
        signer: Some(&compute),
    };
    says.container("c1", "127.64.0.1").await;
    gateway
        .until("the container", |table| runs_at(table, "c1", "127.64.0.1"))
        .await;
    let deleted = edd_proto::auth::UserDeleted {
        user_id: 7,
        ..Default::default()
    };
    says.says("7", deleted).await;
    eventually("the dead letter", || async {
        let all = messages(&bus, "AUTH").await;
        all.iter()
            .any(|(subject, _)| subject == "auth.user.deleted.dlq")
    })
    .await;
    assert!(
        runs_at(&gateway.table(), "c1", "127.64.0.1"),
        "nothing is gone"
    );
    gateway.stop().await;
}
