//! The relay between a database that fails and a stream that is removed.

use std::time::Duration;

use edd_events::{
    Metrics,
    bus::{AnyBus, Bus as _, MemoryBus},
    outbox::{self, Published, Relay},
    stream::COMPUTE,
};
use edd_store::{Database, DatabaseUrl, query};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::support::{DEADLINE, created, eventually};

/// A database with an outbox.
struct Outbox {
    database: Database,
    _folder: TempDir,
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
        let database = Database::open(&url).await.unwrap();
        database.migrate(outbox::TABLE).await.unwrap();
        Self {
            database,
            _folder: folder,
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
        let sql = match keeps {
            true => {
                "CREATE TRIGGER keeps BEFORE DELETE ON outbox \
                 BEGIN SELECT RAISE(ABORT, 'it keeps its rows'); END"
            }
            false => "DROP TRIGGER keeps",
        };
        query(sql).run(&self.database).await.unwrap();
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
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let count = |result: &str| {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let of = |line: &&str| {
            line.starts_with("events_published_total") && line.contains(&format!("\"{result}\""))
        };
        let numbers = text
            .lines()
            .filter(of)
            .filter_map(|line| line.rsplit(' ').next());
        numbers.map(|n| n.parse::<u64>().unwrap()).sum::<u64>()
    };
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
