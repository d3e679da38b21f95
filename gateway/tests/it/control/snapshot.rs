//! A stream that has forgotten, and compute's snapshot that tells it anew.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use edd_events::digest::{DIGEST_REQUEST, Digest, Fact};
use edd_events::envelope::{Cause, EventMessage, seal};
use edd_events::event::Payload;
use edd_events::outbox::OutboxEntry;
use edd_events::snapshot::{Pages, SNAPSHOT_REQUEST, no_such_snapshot};
use edd_events::subject::{EntityId, Parsed, parse};
use edd_proto::compute;
use edd_route::UserId;
use edd_store::testing::Postgres;
use futures_util::StreamExt as _;
use prost::Message as _;
use tokio::task::JoinHandle;

use super::{get, request, runs_at};
use crate::support::{Bus, Gateway, Options, eventually};

const FINGERPRINT: &str = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Answers as compute does, with what it is told to.
pub(super) struct Compute {
    pub(super) facts: Arc<Mutex<Vec<OutboxEntry>>>,
    /// The sequence that it says; none: the stream's last.
    sequence: Arc<Mutex<Option<u64>>>,
    asked: Arc<AtomicBool>,
    tasks: [JoinHandle<()>; 2],
}

impl Compute {
    pub(super) async fn start(bus: &Bus, facts: Vec<OutboxEntry>, sequence: Option<u64>) -> Self {
        let facts = Arc::new(Mutex::new(facts));
        let sequence = Arc::new(Mutex::new(sequence));
        let asked = Arc::new(AtomicBool::new(false));
        let client = bus.server.client().await;
        let js = bus.js.clone();
        let mut requests = client.subscribe(SNAPSHOT_REQUEST).await.expect("answers");
        let mut comparisons = client.subscribe(DIGEST_REQUEST).await.expect("answers");
        // An answer on the same connection: the server knows the subscriptions.
        let on_it = async_nats::jetstream::new(client.clone());
        on_it.get_stream("COMPUTE").await.expect("a stream");
        let (digested, asker, log) = (Arc::clone(&facts), client.clone(), js.clone());
        let digests = tokio::spawn(async move {
            while let Some(request) = comparisons.next().await {
                let wanted = compute::DigestRequest::decode(request.payload).expect("a request");
                let mut stream = log.get_stream("COMPUTE").await.expect("a stream");
                let last = stream.info().await.expect("info").state.last_sequence;
                let answer = digest_of(&digested.lock().unwrap()).answer(&wanted, last, None);
                let reply = request.reply.expect("a reply");
                asker.publish(reply, answer.into()).await.expect("sent");
            }
        });
        let shared = (
            Arc::clone(&facts),
            Arc::clone(&sequence),
            Arc::clone(&asked),
        );
        let task = tokio::spawn(async move {
            let (facts, sequence, asked) = shared;
            let mut kept: Option<Pages> = None;
            while let Some(request) = requests.next().await {
                let wanted = compute::SnapshotRequest::decode(request.payload).expect("a request");
                asked.store(true, Ordering::Relaxed);
                if wanted.snapshot_id.is_empty() {
                    let mut stream = js.get_stream("COMPUTE").await.expect("a stream");
                    let last = stream.info().await.expect("info").state.last_sequence;
                    let sequence = sequence.lock().unwrap().unwrap_or(last);
                    kept = Some(Pages::new(sequence, facts.lock().unwrap().clone()));
                }
                let answer = match &kept {
                    Some(pages) => pages.answer(&wanted, None),
                    None => no_such_snapshot(&wanted, None),
                };
                let reply = request.reply.expect("a reply");
                client.publish(reply, answer.into()).await.expect("sent");
            }
        });
        Self {
            facts,
            sequence,
            asked,
            tasks: [task, digests],
        }
    }
}

impl Drop for Compute {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn digest_of(facts: &[OutboxEntry]) -> Digest {
    let mut digest = Digest::default();
    for fact in facts {
        let Parsed::Event(kind, _) = parse(&fact.subject) else {
            panic!("{}", fact.subject);
        };
        let payload = Payload::decode(kind, &fact.payload).expect("a message");
        if let Some(fact) = Fact::of(&payload) {
            digest.add(&fact);
        }
    }
    digest
}

fn fact<M: EventMessage>(id: &str, version: i64, message: M) -> OutboxEntry {
    let entity = EntityId::try_from(id).expect("a good id");
    seal("edd-compute", &entity, version, message, &Cause::default())
}

/// A container of user 7 that runs, as compute tells it.
pub(super) fn container(
    id: &str,
    version: i64,
    address: &str,
    rules: &[(i32, i32)],
) -> Vec<OutboxEntry> {
    let created = compute::ContainerCreated {
        container_id: id.into(),
        user_id: 7,
        name: id.into(),
        ..Default::default()
    };
    let started = compute::ContainerStarted {
        container_id: id.into(),
        external_ip: address.into(),
        ..Default::default()
    };
    let ssh = compute::ContainerSshToggled {
        container_id: id.into(),
        ssh_enabled: true,
        ..Default::default()
    };
    let mut facts = vec![
        fact(id, version, created),
        fact(id, version, started),
        fact(id, version, ssh),
    ];
    facts.extend(rules.iter().map(|(port, target_port)| {
        let rule = compute::IngressRuleRequested {
            container_id: id.into(),
            port: *port,
            target_port: *target_port,
            ..Default::default()
        };
        fact(id, version - 1, rule)
    }));
    facts
}

fn key(id: i64) -> OutboxEntry {
    let message = compute::SshKeyCreated {
        key_id: id,
        user_id: 7,
        fingerprint: FINGERPRINT.into(),
        ..Default::default()
    };
    fact(&id.to_string(), 1, message)
}

/// Forgets all that was said so far, as a week does.
pub(super) async fn forget(bus: &Bus) {
    let stream = bus.js.get_stream("COMPUTE").await.expect("a stream");
    stream.purge().await.expect("purged");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_stream_has_forgotten_comes_from_compute() {
    let bus = Bus::start().await;
    bus.container("c1", 7, "127.64.0.1", &[(80, 8080)]).await;
    forget(&bus).await;
    let mut facts = container("c1", 9, "127.64.0.1", &[(80, 8080)]);
    // More than a page.
    for n in 0..3000 {
        facts.extend(container(&format!("x{n}"), 3, "127.64.9.9", &[]));
    }
    facts.push(key(3));
    let compute = Compute::start(&bus, facts, None).await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    gateway
        .until("the snapshot", |table| {
            runs_at(table, "c1", "127.64.0.1")
                && table.container("x2999").is_some()
                && table.keys(UserId(7)).len() == 1
        })
        .await;
    let c1 = gateway.table().container("c1").cloned().expect("there");
    assert!(c1.ssh.is_some());
    assert_eq!(c1.rule(80).map(|rule| rule.target_port), Some(8080));
    // The stream goes on behind it: older versions say nothing, newer ones do.
    let old = compute::ContainerStopped {
        container_id: "c1".into(),
        ..Default::default()
    };
    bus.publish("c1", 8, old).await;
    let new = compute::ContainerStarted {
        container_id: "c1".into(),
        external_ip: "127.64.0.2".into(),
        ..Default::default()
    };
    bus.publish("c1", 10, new).await;
    gateway
        .until("the newer start", |table| {
            runs_at(table, "c1", "127.64.0.2")
        })
        .await;
    // It does not ask again with a database that knows.
    let folder = Arc::clone(&gateway.folder);
    gateway.stop().await;
    compute.asked.store(false, Ordering::Relaxed);
    let again = Options {
        folder: Some(folder),
        ..Options::default().bus(&bus)
    };
    let gateway = Gateway::start(again).await;
    gateway
        .until("as before", |table| runs_at(table, "c1", "127.64.0.2"))
        .await;
    assert!(!compute.asked.load(Ordering::Relaxed));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_snapshot_does_not_tell_is_gone() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    bus.container("kept", 7, "127.64.0.1", &[(80, 8080), (443, 8443)])
        .await;
    bus.container("gone", 7, "127.64.0.2", &[]).await;
    bus.key(3, 7, FINGERPRINT).await;
    gateway
        .until("both", |table| {
            runs_at(table, "gone", "127.64.0.2") && table.keys(UserId(7)).len() == 1
        })
        .await;
    let folder = Arc::clone(&gateway.folder);
    gateway.stop().await;
    // While it was away for more than a week.
    bus.deleted("gone", 7).await;
    bus.key_deleted(3, 7).await;
    bus.rule_deleted("kept", 443).await;
    forget(&bus).await;
    let facts = container("kept", 9, "127.64.0.1", &[(80, 8080)]);
    let _compute = Compute::start(&bus, facts, None).await;
    let again = Options {
        folder: Some(folder),
        ..Options::default().bus(&bus)
    };
    let gateway = Gateway::start(again).await;
    gateway
        .until("what is left", |table| {
            table.container("gone").is_none()
                && table.keys(UserId(7)).is_empty()
                && table
                    .container("kept")
                    .is_some_and(|kept| kept.rule(80).is_some() && kept.rule(443).is_none())
        })
        .await;
    assert!(runs_at(&gateway.table(), "kept", "127.64.0.1"));
    gateway.stop().await;
}

/// `/readyz`: status code, `status`, `snapshot`; and the metric.
async fn wanted(gateway: &Gateway) -> (u16, String, String, bool) {
    let (code, body) = get(gateway.admin, "/readyz").await;
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let (_, metrics) = request(gateway.admin, "GET", "/metrics").await;
    let is_wanted = metrics.contains("edd_gateway_snapshot_wanted 1\n");
    (code, text("status"), text("snapshot"), is_wanted)
}

async fn until_wanted(gateway: &Gateway, is_wanted: bool) {
    let expected = match is_wanted {
        true => (200, "degraded".into(), "wanted".into(), true),
        false => (200, "ready".into(), "ok".into(), false),
    };
    eventually("the status", || async { wanted(gateway).await == expected }).await;
}

/// What the stream has lost is wanted until compute has told it, also by a process that finds no
/// gap because the one before it has gone on.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_outlives_the_process_that_found_it() {
    let bus = Bus::start().await;
    bus.container("c1", 7, "127.64.0.1", &[]).await;
    forget(&bus).await;
    let mut folder = None;
    for round in 0..2 {
        let options = Options {
            folder: folder.take(),
            ..Options::default().bus(&bus)
        };
        let gateway = Gateway::start(options).await;
        bus.container("c2", 7, &format!("127.64.0.{}", 2 + round), &[])
            .await;
        gateway
            .until("the events", |table| {
                runs_at(table, "c2", &format!("127.64.0.{}", 2 + round))
            })
            .await;
        until_wanted(&gateway, true).await;
        folder = Some(Arc::clone(&gateway.folder));
        gateway.stop().await;
    }
    let mut facts = container("c1", 9, "127.64.0.1", &[]);
    facts.extend(container("c2", 9, "127.64.0.3", &[]));
    let compute = Compute::start(&bus, facts, None).await;
    for is_asked in [true, false] {
        compute.asked.store(false, Ordering::Relaxed);
        let options = Options {
            folder: folder.take(),
            ..Options::default().bus(&bus)
        };
        let gateway = Gateway::start(options).await;
        gateway
            .until("the snapshot", |table| runs_at(table, "c1", "127.64.0.1"))
            .await;
        until_wanted(&gateway, false).await;
        assert_eq!(compute.asked.load(Ordering::Relaxed), is_asked);
        folder = Some(Arc::clone(&gateway.folder));
        gateway.stop().await;
    }
}

/// One that has the database in common with the finder asks in its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_one_gateway_found_is_filled_by_another() {
    let bus = Bus::start().await;
    let url = Postgres::shared().await.database().await.to_string();
    let on = || {
        Options::default()
            .bus(&bus)
            .flag("--database-url", url.clone())
    };
    let other = Gateway::start(on()).await;
    bus.container("c1", 7, "127.64.0.1", &[]).await;
    other
        .until("c1", |table| runs_at(table, "c1", "127.64.0.1"))
        .await;
    until_wanted(&other, false).await;
    // As if the database had been put back to before all that, and the stream had expired.
    let stored = sqlx::PgPool::connect(&url).await.expect("connected");
    sqlx::query("UPDATE meta SET value = 0 WHERE key = 'floor:COMPUTE'")
        .execute(&stored)
        .await
        .expect("set back");
    forget(&bus).await;
    let finder = Gateway::start(on()).await;
    for gateway in [&finder, &other] {
        until_wanted(gateway, true).await;
    }
    finder.stop().await;
    let facts = container("c1", 9, "127.64.0.9", &[]);
    let _compute = Compute::start(&bus, facts, None).await;
    other
        .until("the snapshot", |table| runs_at(table, "c1", "127.64.0.9"))
        .await;
    until_wanted(&other, false).await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_it_serves_what_it_has_and_asks_again() {
    let bus = Bus::start().await;
    bus.container("c1", 7, "127.64.0.1", &[]).await;
    forget(&bus).await;
    // Nobody answers, and events go on.
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    bus.container("c2", 7, "127.64.0.2", &[]).await;
    gateway
        .until("the events", |table| runs_at(table, "c2", "127.64.0.2"))
        .await;
    assert!(gateway.table().container("c1").is_none());
    // One that ends before the stream begins is refused.
    let mut facts = container("c1", 9, "127.64.0.1", &[]);
    facts.extend(container("c2", 9, "127.64.0.2", &[]));
    let compute = Compute::start(&bus, facts, Some(1)).await;
    eventually("a question", || async {
        compute.asked.load(Ordering::Relaxed)
    })
    .await;
    assert!(gateway.table().container("c1").is_none());
    *compute.sequence.lock().unwrap() = None;
    gateway
        .until("the snapshot", |table| runs_at(table, "c1", "127.64.0.1"))
        .await;
    assert!(!compute.facts.lock().unwrap().is_empty());
    gateway.stop().await;
}
