//! The archive and the inbox, on the engine of `EDD_TEST_ENGINE`.

use std::time::{Duration, SystemTime};

use edd_events::{
    Metrics,
    bus::{Bus as _, MemoryBus},
    consumer::{Consumer, Verdict},
    envelope::{Cause, seal},
    event::Payload,
    event_store::{
        AppendError, Archived, Expected, PAGE_MAX, TABLES, append, by_aggregate, by_correlation,
        by_type, letters, prune, replay, since,
    },
    inbox,
    outbox::OutboxEntry,
    subject::EntityId,
};
use edd_proto::compute::{ContainerCreated, ContainerDeleted, ContainerStarted};
use edd_store::{Database, Engine, query, testing::database_of};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::support::{Recorder, SPEC, eventually};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn database() -> (TempDir, Database) {
    let folder = tempfile::tempdir().unwrap();
    let url = database_of(folder.path()).await;
    let database = Database::open(&url).await.unwrap();
    database.migrate(TABLES).await.unwrap();
    (folder, database)
}

fn cause(flow: &str) -> Cause {
    Cause {
        correlation_id: Some(flow.into()),
        causation_id: Some("before".into()),
        traceparent: Some(TRACE.into()),
    }
}

fn entity(id: &str) -> EntityId {
    EntityId::try_from(id).unwrap()
}

fn created(id: &str, version: i64, name: &str) -> OutboxEntry {
    let message = ContainerCreated {
        container_id: id.into(),
        user_id: 1,
        name: name.into(),
        ..Default::default()
    };
    seal("edd-compute", &entity(id), version, message, &cause("flow"))
}

fn started(id: &str, version: i64) -> OutboxEntry {
    let message = ContainerStarted {
        container_id: id.into(),
        ..Default::default()
    };
    seal(
        "edd-compute",
        &entity(id),
        version,
        message,
        &cause("other"),
    )
}

fn deleted(id: &str, version: i64) -> OutboxEntry {
    let message = ContainerDeleted {
        container_id: id.into(),
        user_id: 1,
        ..Default::default()
    };
    seal(
        "edd-compute",
        &entity(id),
        version,
        message,
        &cause("other"),
    )
}

async fn put(
    database: &Database,
    entry: &OutboxEntry,
    expected: Expected,
) -> Result<(), AppendError> {
    let mut tx = database.begin().await.unwrap();
    append(&mut tx, entry, expected).await?;
    tx.commit().await.unwrap();
    Ok(())
}

fn versions(events: &[Archived]) -> Vec<(&str, i64)> {
    events
        .iter()
        .map(|event| (event.event_type.as_str(), event.version))
        .collect()
}

#[tokio::test]
async fn an_event_is_archived_whole_and_found_by_what_it_is() {
    let (_folder, database) = database().await;
    let before = SystemTime::now() - Duration::from_secs(5);
    let first = created("a", 1, "box");
    put(&database, &first, Expected::Any).await.unwrap();
    put(&database, &started("a", 2), Expected::Any)
        .await
        .unwrap();
    put(&database, &created("b", 1, "other"), Expected::Any)
        .await
        .unwrap();

    let a = by_aggregate(&database, ("compute.container", "a"), 0, 0, 10)
        .await
        .unwrap();
    assert_eq!(
        versions(&a),
        [("ContainerCreated", 1), ("ContainerStarted", 2)]
    );
    let one = &a[0];
    assert_eq!(one.event_id, first.event_id);
    assert_eq!(one.event_data, first.payload);
    assert_eq!(one.source, "edd-compute");
    assert_eq!(one.correlation_id.as_deref(), Some("flow"));
    assert_eq!(one.causation_id.as_deref(), Some("before"));
    assert!(one.metadata.contains("compute.container.a.created"));
    assert!(one.occurred_at <= one.created_at);
    // As a consumer would get it.
    let event = one.event().unwrap();
    assert_eq!((event.event_id, event.version), (first.event_id.clone(), 1));
    assert_eq!(event.traceparent.as_deref(), Some(TRACE));
    assert!(matches!(event.payload, Payload::ContainerCreated(m) if m.name == "box"));

    let later = by_aggregate(&database, ("compute.container", "a"), 2, 0, 10).await;
    assert_eq!(versions(&later.unwrap()), [("ContainerStarted", 2)]);
    let types = by_type(&database, "ContainerCreated", 0, 10).await.unwrap();
    assert_eq!(types.len(), 2);
    let rest = by_type(&database, "ContainerCreated", types[0].id, 10).await;
    assert_eq!(rest.unwrap(), types[1..]);
    let flow = by_correlation(&database, "flow", 0, 10).await.unwrap();
    assert_eq!(flow.len(), 2);
    assert_eq!(since(&database, before, 0, 10).await.unwrap().len(), 3);
    let later = SystemTime::now() + Duration::from_secs(60);
    assert!(since(&database, later, 0, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn two_who_follow_the_same_version_conflict() {
    let (_folder, database) = database().await;
    put(&database, &created("a", 1, "x"), Expected::Version(0))
        .await
        .unwrap();
    let again = put(&database, &created("a", 1, "x"), Expected::Version(0)).await;
    let Err(AppendError::Conflict {
        aggregate,
        expected,
        found,
    }) = again
    else {
        panic!("{again:?}");
    };
    assert_eq!(
        (aggregate.as_str(), expected, found),
        ("compute.container.a", 0, 1)
    );
    put(&database, &started("a", 2), Expected::Version(1))
        .await
        .unwrap();
    assert!(
        put(&database, &started("a", 2), Expected::Version(1))
            .await
            .is_err()
    );
    let all = by_aggregate(&database, ("compute.container", "a"), 0, 0, 10).await;
    assert_eq!(all.unwrap().len(), 2, "a conflict leaves nothing");
}

#[tokio::test]
async fn pages_are_bounded_and_a_replay_sees_all_in_order() {
    let (_folder, database) = database().await;
    let count = i64::from(PAGE_MAX) + 5;
    let mut tx = database.begin().await.unwrap();
    for version in 1..=count {
        append(&mut tx, &started("a", version), Expected::Any)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    let page = by_type(&database, "ContainerStarted", 0, u32::MAX).await;
    assert_eq!(page.unwrap().len(), PAGE_MAX as usize);
    let mut tx = database.begin().await.unwrap();
    let mut seen = Vec::new();
    let replayed = replay(&mut tx, "compute.container", async |_tx, event| {
        seen.push(event.version);
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(replayed, count as u64);
    assert_eq!(seen, (1..=count).collect::<Vec<_>>());
}

#[tokio::test]
async fn pruning_leaves_what_living_aggregates_are_rebuilt_from() {
    let (_folder, database) = database().await;
    for entry in [
        created("lives", 1, "x"),
        started("lives", 2),
        created("gone", 1, "x"),
        deleted("gone", 2),
    ] {
        put(&database, &entry, Expected::Any).await.unwrap();
    }
    assert_eq!(
        prune(&database, Duration::from_secs(3600)).await.unwrap(),
        0
    );
    query("UPDATE event_store SET occurred_at = occurred_at - 7200000")
        .run(&database)
        .await
        .unwrap();
    put(&database, &created("new", 1, "x"), Expected::Any)
        .await
        .unwrap();
    assert_eq!(
        prune(&database, Duration::from_secs(3600)).await.unwrap(),
        3
    );
    let left = since(&database, SystemTime::UNIX_EPOCH, 0, 10)
        .await
        .unwrap();
    assert_eq!(
        versions(&left),
        [("ContainerStarted", 2), ("ContainerCreated", 1)]
    );
    // What comes next follows the version that was kept.
    put(&database, &started("lives", 3), Expected::Version(2))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_event_is_handled_the_first_time_only() {
    let folder = tempfile::tempdir().unwrap();
    let url = database_of(folder.path()).await;
    let database = Database::open(&url).await.unwrap();
    database.migrate(inbox::TABLE).await.unwrap();
    let mut tx = database.begin().await.unwrap();
    assert!(inbox::first_time(&mut tx, "e1").await.unwrap());
    assert!(!inbox::first_time(&mut tx, "e1").await.unwrap());
    // Not committed: it never was.
    drop(tx);
    let mut tx = database.begin().await.unwrap();
    assert!(inbox::first_time(&mut tx, "e1").await.unwrap());
    assert!(inbox::first_time(&mut tx, "e2").await.unwrap());
    tx.commit().await.unwrap();
    let nine_days = 9 * 24 * 3_600_000_i64;
    query("UPDATE inbox SET handled_at = handled_at - $1 WHERE event_id = 'e1'")
        .bind(nine_days)
        .run(&database)
        .await
        .unwrap();
    assert_eq!(inbox::purge(&database).await.unwrap(), 1);
    let mut tx = database.begin().await.unwrap();
    assert!(inbox::first_time(&mut tx, "e1").await.unwrap());
    assert!(!inbox::first_time(&mut tx, "e2").await.unwrap());
}

/// A consumer's dead letters on the memory bus, in the archive once each.
#[tokio::test]
async fn dead_letters_that_come_by_are_archived() {
    let (_folder, database) = database().await;
    let bus = MemoryBus::new();
    let consumer =
        Consumer::new(bus.clone(), SPEC, 1, Metrics::default()).with_archive(database.clone());
    let shutdown = CancellationToken::new();
    let bad = Recorder::answering(|_| Ok(Verdict::Reject("no such port".into())));
    let consuming = tokio::spawn(consumer.run(bad, shutdown.clone()));
    bus.ensure(&SPEC.stream, 1).await.unwrap();
    let entry = created("a", 1, "box");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", entry.event_id.as_str());
    let sent = bus.publish(&entry.subject, headers, entry.payload.clone().into());
    sent.await.unwrap().await.unwrap();
    eventually("an archived letter", || async {
        !letters(&database, 0, 10).await.unwrap().is_empty()
    })
    .await;
    shutdown.cancel();
    consuming.await.unwrap();
    let archived = letters(&database, 0, 10).await.unwrap();
    let [letter] = &archived[..] else {
        panic!("{archived:?}");
    };
    assert_eq!(letter.subject, "compute.container.a.created");
    assert_eq!((letter.original_sequence, letter.sequence), (1, 2));
    assert_eq!(letter.message_id.as_deref(), Some(entry.event_id.as_str()));
    assert_eq!(letter.reason, "no such port");
    assert_eq!(letter.payload, entry.payload);
    assert_eq!(letter.consumer, "gateway-service");
}

/// Of a batch that came while the database stood still for a moment only those are missing that
/// waited for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_moment_costs_no_more_letters_than_it_lasts() {
    let (_folder, database) = database().await;
    let bus = MemoryBus::new();
    bus.ensure(&SPEC.stream, 1).await.unwrap();
    for n in 0..20 {
        let payload = format!("letter {n}").into();
        let headers = async_nats::HeaderMap::new();
        let sent = bus.publish("compute.container.created.dlq", headers, payload);
        sent.await.unwrap().await.unwrap();
    }
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let consumer = Consumer::new(bus, SPEC, 1, metrics).with_archive(database.clone());
    let mut slow = database.begin().await.unwrap();
    if database.engine() == Engine::Postgres {
        let lock = "LOCK TABLE dead_letter_queue IN EXCLUSIVE MODE";
        query(lock).run(&mut slow).await.unwrap();
    }
    let shutdown = CancellationToken::new();
    let consuming = tokio::spawn(consumer.run(Recorder::new(), shutdown.clone()));
    let handled = || {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let dead = text.lines().find(|line| line.contains("\"dlq\""));
        let count = dead.and_then(|line| line.rsplit(' ').next());
        count.map_or(0, |count| count.parse::<usize>().unwrap())
    };
    eventually("the first", || async { handled() > 0 }).await;
    drop(slow);
    eventually("all", || async { handled() == 20 }).await;
    shutdown.cancel();
    consuming.await.unwrap();
    let archived = letters(&database, 0, 100).await.unwrap();
    assert!(archived.len() >= 18, "{}", archived.len());
}
