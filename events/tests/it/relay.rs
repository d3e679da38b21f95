//! The relay between a database that fails and a stream that is removed.

use std::time::Duration;

use edd_events::{
    Metrics,
    bus::{AnyBus, Bus as _, MemoryBus},
    outbox::{self, OutboxEntry, Published, Relay},
    stream::COMPUTE,
};
use edd_store::{Database, DatabaseUrl, Engine, query, query_dynamic, testing::Postgres};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::support::{DEADLINE, created, eventually, server};

/// A database with an outbox.
struct Outbox {
    database: Database,
    _folder: Option<TempDir>,
}

/// Counts what its relays publish.
struct Counting {
    registry: Registry,
    metrics: Metrics,
}

/// A relay at work.
struct Relaying {
    task: JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Outbox {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(folder.path().join("outbox.db"));
        Self {
            _folder: Some(folder),
            ..Self::at(&url).await
        }
    }

    async fn at(url: &DatabaseUrl) -> Self {
        let database = Database::open(url).await.unwrap();
        database.migrate(outbox::TABLE).await.unwrap();
        Self {
            database,
            _folder: None,
        }
    }

    async fn write(&self, numbers: std::ops::Range<usize>) {
        let mut transaction = self.database.begin().await.unwrap();
        for n in numbers {
            let entry = created(n);
            outbox::insert(&mut transaction, &entry).await.unwrap();
        }
        transaction.commit().await.unwrap();
    }

    async fn pending(&self) -> u64 {
        outbox::pending(&self.database).await.unwrap()
    }

    fn relay(&self, bus: &AnyBus, metrics: &Metrics, published: &Published) -> Relaying {
        let shutdown = CancellationToken::new();
        let relay = Relay::new(self.database.clone(), bus.clone(), metrics.clone())
            .with_published(published.clone());
        Relaying {
            task: tokio::spawn(relay.run(shutdown.clone())),
            shutdown,
        }
    }

    /// As a file on a disk that takes nothing: what is there can be read.
    async fn keeps_its_rows(&self, keeps: bool) {
        let statements: &[&'static str] = match (keeps, self.database.engine()) {
            (true, Engine::Sqlite) => &["CREATE TRIGGER keeps BEFORE DELETE ON outbox \
                 BEGIN SELECT RAISE(ABORT, 'it keeps its rows'); END"],
            (true, Engine::Postgres) => &[
                "CREATE FUNCTION keeps() RETURNS trigger LANGUAGE plpgsql AS \
                 'BEGIN RAISE EXCEPTION ''it keeps its rows''; END'",
                "CREATE TRIGGER keeps BEFORE DELETE ON outbox \
                 FOR EACH ROW EXECUTE FUNCTION keeps()",
            ],
            (false, Engine::Sqlite) => &["DROP TRIGGER keeps"],
            (false, Engine::Postgres) => &["DROP TRIGGER keeps ON outbox"],
        };
        for statement in statements {
            query(statement).run(&self.database).await.unwrap();
        }
    }

    /// Everything in it was written so much earlier.
    async fn age(&self, by: Duration) {
        let by = by.as_millis();
        let sql = format!("UPDATE outbox SET created_at = created_at - {by}");
        query_dynamic(sql).run(&self.database).await.unwrap();
    }
}

impl Counting {
    fn new() -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        Self { registry, metrics }
    }

    /// Events with this result.
    fn of(&self, result: &str) -> u64 {
        let result = format!("\"{result}\"");
        self.sum(|line| line.starts_with("events_published_total") && line.contains(&result))
    }

    /// What its relays have found in the outbox.
    fn waiting(&self) -> u64 {
        self.sum(|line| line.starts_with("outbox_pending "))
    }

    fn sum(&self, is_wanted: impl Fn(&str) -> bool) -> u64 {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        let lines = text.lines().filter(|line| is_wanted(line));
        let numbers = lines.filter_map(|line| line.rsplit(' ').next());
        numbers.map(|n| n.parse::<u64>().unwrap()).sum::<u64>()
    }
}

impl Relaying {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .unwrap()
            .unwrap();
    }
}

/// However long the database is away, also after the stream has forgotten the message ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_deleted_is_not_published_again() {
    let outbox = Outbox::open().await;
    let memory = MemoryBus::new();
    let bus = AnyBus::from(memory.clone());
    let counting = Counting::new();
    let metrics = counting.metrics.clone();
    let count = |result: &str| counting.of(result);
    outbox.write(0..5).await;
    outbox.keeps_its_rows(true).await;
    let published = Published::default();
    let first = outbox.relay(&bus, &metrics, &published);
    eventually("all in the stream", || async { count("ok") == 5 }).await;
    // What comes meanwhile is published, and each of it once.
    outbox.write(5..7).await;
    eventually("the new ones", || async { count("ok") == 7 }).await;
    // The database is opened anew.
    first.stop().await;
    let second = outbox.relay(&bus, &metrics, &published);
    outbox.write(7..8).await;
    eventually("the newest", || async { count("ok") == 8 }).await;
    outbox.keeps_its_rows(false).await;
    eventually("an empty outbox", || async { outbox.pending().await == 0 }).await;
    second.stop().await;
    assert_eq!(
        (count("ok"), count("duplicate"), count("failed")),
        (8, 0, 0)
    );
    assert_eq!(memory.messages(COMPUTE.name).len(), 8);
}

/// The database may fail, and the relay be over, while it waits for the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_before_the_relay_was_cut_off_is_not_published_again() {
    let outbox = Outbox::open().await;
    let (nats, js) = server().await;
    // Nobody acknowledges this.
    let client = nats.client().await;
    let _silent = client.subscribe("nobody.>").await.unwrap();
    client.flush().await.unwrap();
    outbox.write(0..3).await;
    let mut transaction = outbox.database.begin().await.unwrap();
    let unheard = OutboxEntry {
        subject: "nobody.hears.this".into(),
        ..created(3)
    };
    outbox::insert(&mut transaction, &unheard).await.unwrap();
    transaction.commit().await.unwrap();
    let bus = AnyBus::from(js.clone());
    let (one, other) = (Counting::new(), Counting::new());
    let published = Published::default();
    let first = outbox.relay(&bus, &one.metrics, &published);
    eventually("acknowledged", || async { one.of("ok") == 3 }).await;
    first.stop().await;
    assert_eq!(outbox.pending().await, 4, "it was cut off");
    let second = outbox.relay(&bus, &other.metrics, &published);
    eventually("the others are gone", || async {
        outbox.pending().await == 1
    })
    .await;
    second.stop().await;
    assert_eq!((other.of("ok"), other.of("duplicate")), (0, 0));
}

/// Of relays that share a database one remembers what it has published before that was away, and
/// another one may read the rows first: the stream would have forgotten their ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_relay_has_published_no_other_publishes_after_an_outage() {
    let url = Postgres::shared().await.database().await;
    let outbox = Outbox::at(&url).await;
    let memory = MemoryBus::new();
    let bus = AnyBus::from(memory.clone());
    let (one, other) = (Counting::new(), Counting::new());
    outbox.write(0..5).await;
    outbox.keeps_its_rows(true).await;
    let published = Published::default();
    let first = outbox.relay(&bus, &one.metrics, &published);
    eventually("all in the stream", || async { one.of("ok") == 5 }).await;
    first.stop().await;
    // The outage, after which it comes second.
    outbox.age(Duration::from_secs(180)).await;
    outbox.keeps_its_rows(false).await;
    let second = outbox.relay(&bus, &other.metrics, &Published::default());
    eventually("read by the other", || async { other.waiting() == 5 }).await;
    let first = outbox.relay(&bus, &one.metrics, &published);
    eventually("an empty outbox", || async { outbox.pending().await == 0 }).await;
    first.stop().await;
    // What is new waits for nobody.
    outbox.write(5..6).await;
    eventually("the newest", || async { outbox.pending().await == 0 }).await;
    second.stop().await;
    let results = |of: &Counting| (of.of("ok"), of.of("duplicate"), of.of("failed"));
    assert_eq!((results(&one), results(&other)), ((5, 0, 0), (1, 0, 0)));
}

/// Whoever removes it may still be at it, and remove what is made in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_removed_is_made_anew_after_a_while() {
    let outbox = Outbox::open().await;
    let memory = MemoryBus::new();
    let bus = AnyBus::from(memory.clone());
    outbox.write(0..1).await;
    let relaying = outbox.relay(&bus, &Metrics::default(), &Published::default());
    eventually("the first", || async {
        outbox.pending().await == 0 && memory.messages(COMPUTE.name).len() == 1
    })
    .await;
    let removed = Instant::now();
    memory.wipe();
    outbox.write(1..2).await;
    eventually("the stream", || async {
        let state = memory.stream_state(COMPUTE.name).await;
        state.unwrap().is_some()
    })
    .await;
    let took = removed.elapsed();
    assert!(took >= Duration::from_secs(2), "{took:?}");
    eventually("the second", || async { outbox.pending().await == 0 }).await;
    let there = memory.messages(COMPUTE.name);
    assert_eq!(there.len(), 1);
    assert_eq!(there[0].subject.as_str(), "compute.container.c1.created");
    relaying.stop().await;
}
