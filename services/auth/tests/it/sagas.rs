//! Registration and deletion, until compute says that it has heard.

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use edd_events::{
    bus::{Bus as _, MemoryBus},
    envelope::{Cause, EventMessage, seal},
    event_store,
    stream::COMPUTE,
    subject::EntityId,
};
use edd_proto::{auth, compute};
use prost::Message as _;
use serde_json::Value;

use crate::support::{Account, AuthClient as _, DEADLINE, PASSWORD, Service};

/// Compute's word, as often as given, with one event id.
async fn say<M: EventMessage>(bus: &MemoryBus, user: &Account, message: M, times: usize) {
    bus.ensure(&COMPUTE, 1).await.unwrap();
    let entity = EntityId::from(user.id);
    let entry = seal("edd-compute", &entity, 1, message, &Cause::default());
    for _ in 0..times {
        // Without a message id: the stream takes it again.
        let payload = entry.payload.clone().into();
        let sent = bus.publish(&entry.subject, HeaderMap::new(), payload);
        sent.await.unwrap().await.unwrap();
    }
}

fn cached(user: &Account) -> compute::UserCached {
    compute::UserCached {
        user_id: user.id,
        ..Default::default()
    }
}

fn purged(user: &Account) -> compute::UserPurged {
    compute::UserPurged {
        user_id: user.id,
        ..Default::default()
    }
}

async fn saga(service: &Service, kind: &str, user: &Account) -> Option<Value> {
    let answer = service.admin.get("/api/v1/sagas", None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let id = format!("{kind}:{}", user.id);
    let all = answer.body["sagas"].as_array().unwrap().clone();
    all.into_iter().find(|saga| saga["id"] == id.as_str())
}

/// Waits until a saga is at `state` and `step`.
async fn reaches(service: &Service, kind: &str, user: &Account, state: &str, step: &str) -> Value {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let found = saga(service, kind, user).await;
        if let Some(found) = &found
            && found["state"] == state
            && found["step"] == step
        {
            return found.clone();
        }
        assert!(
            Instant::now() < deadline,
            "{kind} {state} {step}: {found:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn metric(service: &Service, line: &str) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let text = service.admin.get("/metrics", None).await.text;
        if text.lines().any(|found| found == line) {
            return;
        }
        assert!(Instant::now() < deadline, "{line} not in {text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_is_complete_when_compute_knows_the_user() {
    let bus = MemoryBus::new();
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start_on(bus.clone(), folder, &["--saga-timeout=5m"]).await;
    let alice = service.register("alice").await;
    reaches(&service, "registration", &alice, "running", "announced").await;
    say(&bus, &alice, cached(&alice), 3).await;
    let done = reaches(&service, "registration", &alice, "completed", "confirmed").await;
    assert_eq!(done["attempts"], 0);
    assert_eq!(done["deadline"], Value::Null);
    let line = r#"edd_auth_sagas{kind="registration",state="completed"} 1"#;
    metric(&service, line).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_outlives_the_process_and_is_complete_when_compute_is_done() {
    let bus = MemoryBus::new();
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--saga-timeout=1h"];
    let service = Service::start_on(bus.clone(), folder, &flags).await;
    let alice = service.register("alice").await;
    let path = format!("/api/users/{}", alice.id);
    let deleted = service.client.delete(&path, Some(&alice.token)).await;
    assert_eq!(deleted.status, 204, "{deleted:?}");
    // Nobody has to know the name of who is gone.
    reaches(&service, "registration", &alice, "completed", "abandoned").await;
    reaches(&service, "user-deletion", &alice, "running", "announced").await;
    let folder = service.stop().await;
    // Compute speaks while nobody listens, and says it more than once.
    say(&bus, &alice, purged(&alice), 2).await;
    let service = Service::start_on(bus.connection(), folder, &flags).await;
    reaches(&service, "user-deletion", &alice, "completed", "confirmed").await;
    // Too late, and out of order: it stays as it is.
    say(&bus, &alice, cached(&alice), 1).await;
    say(&bus, &alice, purged(&alice), 1).await;
    let bob = service.register("bob").await;
    say(&bus, &bob, cached(&bob), 1).await;
    reaches(&service, "registration", &bob, "completed", "confirmed").await;
    reaches(&service, "registration", &alice, "completed", "abandoned").await;
    reaches(&service, "user-deletion", &alice, "completed", "confirmed").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_told_again_and_then_reported_and_no_user_is_lost() {
    let bus = MemoryBus::new();
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start_on(bus.clone(), folder, &["--saga-timeout=150ms"]).await;
    let alice = service.register("alice").await;
    let failed = reaches(&service, "registration", &alice, "failed", "unconfirmed").await;
    assert_eq!(failed["attempts"], 3);
    metric(
        &service,
        r#"edd_auth_sagas{kind="registration",state="failed"} 1"#,
    )
    .await;
    let subject = format!("auth.user.{}.created", alice.id);
    let deadline = Instant::now() + DEADLINE;
    let told = loop {
        let messages = bus.messages("AUTH").into_iter();
        let told: Vec<_> = messages
            .filter(|kept| kept.subject.as_str() == subject)
            .collect();
        if told.len() == 3 {
            break told;
        }
        assert!(Instant::now() < deadline, "told {} times", told.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut ids = Vec::new();
    let flow = told[0].headers.get("Edd-Correlation-Id").unwrap().clone();
    for kept in &told {
        let event = auth::UserCreated::decode(kept.payload.clone()).unwrap();
        let metadata = event.metadata.unwrap();
        // The same fact: whoever had it finds it stale.
        assert_eq!((event.username.as_str(), metadata.version), ("alice", 1));
        assert_eq!(kept.headers.get("Edd-Correlation-Id"), Some(&flow));
        ids.push(metadata.event_id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "events of their own");
    // The account is not taken away because another service is down.
    assert_eq!(service.client.log_in("alice", PASSWORD).await.status, 200);
    say(&bus, &alice, cached(&alice), 1).await;
    reaches(&service, "registration", &alice, "completed", "confirmed").await;
    metric(
        &service,
        r#"edd_auth_sagas{kind="registration",state="failed"} 0"#,
    )
    .await;
    service.stop().await;
}

/// Dead letters that come by are copied into the archive, unless there is none.
#[tokio::test]
async fn without_an_archive_no_letters_are_kept() {
    for (days, kept) in [("--event-store-days=1", 1), ("--event-store-days=0", 0)] {
        let bus = MemoryBus::new();
        bus.ensure(&COMPUTE, 1).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let service = Service::start_on(bus.clone(), folder, &[days]).await;
        let bad = "no message".into();
        let sent = bus.publish("compute.user.1.purged", HeaderMap::new(), bad);
        sent.await.unwrap().await.unwrap();
        let came = r#"edd_auth_events_total{subject="dlq",result="ignored"} 1"#;
        metric(&service, came).await;
        let database = service.database().await;
        let _folder = service.stop().await;
        let letters = event_store::letters(&database, 0, 10).await.unwrap();
        assert_eq!(letters.len(), kept, "{days}: {letters:?}");
    }
}

#[tokio::test]
async fn without_a_bus_or_with_time_out_0_nobody_waits() {
    let service = Service::start().await;
    let alice = service.register("alice").await;
    assert_eq!(saga(&service, "registration", &alice).await, None);
    service.stop().await;
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start_on(MemoryBus::new(), folder, &["--saga-timeout=0"]).await;
    let alice = service.register("alice").await;
    assert_eq!(saga(&service, "registration", &alice).await, None);
    service.stop().await;
}
