//! What happens while the server, a stream or a database is away.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, consumer::AckPolicy, consumer::pull};
use edd_events::{
    Metrics,
    connect::{NatsOptions, connect},
    consumer::{Consumer, Handler, Unavailable, Verdict},
    event::Delivery,
    outbox,
    stream::{COMPUTE, ensure},
    testing::NatsServer,
};
use futures_util::StreamExt as _;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::support::{
    DEADLINE, Recorder, Running, SPEC, Service, created, eventually, server, stored, unsettled,
};

const DLQ: &str = "compute.container.created.dlq";

/// The distinct entities among what was handled.
fn distinct(recorder: &Recorder) -> usize {
    recorder
        .entities()
        .into_iter()
        .collect::<BTreeSet<_>>()
        .len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_restart_in_the_middle_loses_nothing() {
    let (mut nats, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let consumer = Running::start(js.clone(), Recorder::new());
    for round in 0..3 {
        let entries: Vec<_> = (round * 400..(round + 1) * 400).map(created).collect();
        for part in entries.chunks(20) {
            service.write(part).await;
        }
        // Some of this round's events are anywhere between outbox and handler.
        nats.restart().await;
    }
    eventually("1200 events", || async {
        distinct(&consumer.recorder) == 1200
    })
    .await;
    eventually("an empty outbox", || async {
        outbox::pending(&service.database).await.unwrap() == 0
    })
    .await;
    assert!(stored(&js, &COMPUTE, DLQ).await.is_empty());
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relay_waits_for_the_server_and_publishes_then() {
    let mut nats = NatsServer::start().await;
    nats.stop();
    let options = NatsOptions {
        url: nats.url(),
        name: "late".into(),
        ..Default::default()
    };
    let js = jetstream::new(connect(&options).await.unwrap());
    let service = Service::start(js.clone(), Metrics::default()).await;
    let consumer = Running::start(js, Recorder::new());
    service
        .write(&(0..50).map(created).collect::<Vec<_>>())
        .await;
    assert_eq!(outbox::pending(&service.database).await.unwrap(), 50);
    nats.resume().await;
    consumer.recorder.saw(50).await;
    eventually("an empty outbox", || async {
        outbox::pending(&service.database).await.unwrap() == 0
    })
    .await;
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reconnect_events_arrive_promptly() {
    let (mut nats, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let mut consumer = Running::start(js.clone(), Recorder::new());
    consumer.caught_up().await;
    nats.restart().await;
    let started = Instant::now();
    service.write(&[created(1)]).await;
    consumer.recorder.saw(1).await;
    println!("first event {:?} after the restart", started.elapsed());
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_database_pauses_consumption_and_loses_nothing() {
    let (_nats, js) = server().await;
    // An ack wait that the outage exceeds more than once, and a pause of the machine does not.
    const ACK_WAIT: Duration = Duration::from_millis(2500);
    let stream = ensure(&js, &COMPUTE, 1).await.unwrap();
    let config = pull::Config {
        durable_name: Some(SPEC.durable.into()),
        filter_subject: SPEC.filter.into(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: 5,
        max_ack_pending: 10_000,
        ..pull::Config::default()
    };
    stream.create_consumer(config).await.unwrap();
    let service = Service::start(js.clone(), Metrics::default()).await;
    let broken = Arc::new(AtomicBool::new(true));
    let recorder = Recorder::answering({
        let broken = Arc::clone(&broken);
        move |_| {
            if broken.load(Ordering::Relaxed) {
                return Err(Unavailable("database is read-only".into()));
            }
            Ok(Verdict::Applied)
        }
    });
    let consumer = Running::start(js.clone(), recorder);
    service
        .write(&(0..700).map(created).collect::<Vec<_>>())
        .await;
    let outage = Instant::now();
    eventually("an outage of three ack waits", || async {
        outage.elapsed() > ACK_WAIT * 3
    })
    .await;
    assert!(
        consumer.recorder.look(|seen| seen.calls) > 3,
        "it is tried again"
    );
    assert_eq!(distinct(&consumer.recorder), 0);
    broken.store(false, Ordering::Relaxed);
    eventually("700 events", || async {
        distinct(&consumer.recorder) == 700
    })
    .await;
    consumer.recorder.look(|seen| {
        let again = seen
            .deliveries
            .iter()
            .filter(|delivery| delivery.deliveries > 1)
            .count();
        assert_eq!(again, 0, "progress acknowledgements kept them");
        assert_eq!(seen.deliveries.len(), 700);
    });
    assert!(stored(&js, &COMPUTE, DLQ).await.is_empty());
    eventually("all acknowledged", || async {
        unsettled(&js, &SPEC).await == 0
    })
    .await;
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_stream_is_made_again_by_relay_and_consumer() {
    let (_nats, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let mut consumer = Running::start(js.clone(), Recorder::new());
    consumer.caught_up().await;
    service.write(&[created(1)]).await;
    consumer.recorder.saw(1).await;
    js.delete_stream("COMPUTE").await.unwrap();
    service.write(&[created(2)]).await;
    consumer.recorder.saw(2).await;
    assert_eq!(consumer.recorder.entities(), ["c1", "c2"]);
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_consumer_is_made_again() {
    let (_nats, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let mut consumer = Running::start(js.clone(), Recorder::new());
    consumer.caught_up().await;
    let stream = js.get_stream("COMPUTE").await.unwrap();
    stream.delete_consumer(SPEC.durable).await.unwrap();
    service.write(&[created(1)]).await;
    consumer.recorder.saw(1).await;
    consumer.stop().await;
    service.stop().await;
}

/// Two processes of one durable share the work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_of_one_name_share_the_events() {
    let (nats, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let one = Running::start(nats.jetstream().await, Recorder::new());
    let two = Running::start(nats.jetstream().await, Recorder::new());
    service
        .write(&(0..500).map(created).collect::<Vec<_>>())
        .await;
    let all = || {
        let mut all: BTreeSet<_> = one.recorder.entities().into_iter().collect();
        all.extend(two.recorder.entities());
        all.len()
    };
    eventually("500 events", || async { all() == 500 }).await;
    let total = one.recorder.entities().len() + two.recorder.entities().len();
    assert_eq!(total, 500, "none of them twice");
    one.stop().await;
    two.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_too_large_for_the_server_holds_up_no_other() {
    let config = "max_payload: 65536\njetstream { store_dir: $EDD_NATS_STORE_DIR }";
    let nats = NatsServer::start_with(config, Vec::new()).await;
    let js = nats.jetstream().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let consumer = Running::start(js.clone(), Recorder::new());
    let mut huge = created(0);
    huge.payload = vec![0; js.client().max_payload() + 1];
    service.write(&[huge, created(1)]).await;
    service.write(&[created(2)]).await;
    consumer.recorder.saw(2).await;
    assert_eq!(consumer.recorder.entities(), ["c1", "c2"]);
    let only_the_huge = || async { outbox::pending(&service.database).await.unwrap() == 1 };
    eventually("one row left", only_the_huge).await;
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_could_consume_is_not_written_down() {
    let (_nats, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let mut largest = created(0);
    largest.payload = vec![0; outbox::PUBLISHED_LEN_MAX];
    let mut larger = created(1);
    larger.payload = vec![0; outbox::PUBLISHED_LEN_MAX + 1];
    let mut transaction = service.database.begin().await.unwrap();
    let error = outbox::insert(&mut transaction, &larger).await.unwrap_err();
    assert!(error.to_string().contains("of 1032193 bytes"), "{error}");
    drop(transaction);
    service.write(&[largest]).await;
    eventually("published", || async {
        stored(&js, &COMPUTE, "compute.container.c0.created")
            .await
            .len()
            == 1
    })
    .await;
    service.stop().await;
}

/// A catch-up after a long absence: the design wants 30,000 events in 5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_stream_is_caught_up_with_in_seconds() {
    const EVENTS: usize = 30_000;
    let (_nats, js) = server().await;
    ensure(&js, &COMPUTE, 1).await.unwrap();
    let started = Instant::now();
    let mut acks = Vec::new();
    for n in 0..EVENTS {
        let entry = created(n);
        acks.push(
            js.publish(entry.subject, entry.payload.into())
                .await
                .unwrap(),
        );
        if acks.len() == 1000 {
            for ack in acks.drain(..) {
                ack.await.unwrap();
            }
        }
    }
    println!("{EVENTS} events published in {:?}", started.elapsed());
    let started = Instant::now();
    let mut consumer = Running::start(js, Recorder::new());
    consumer.caught_up().await;
    let took = started.elapsed();
    println!("and handled in {took:?}");
    consumer
        .recorder
        .look(|seen| assert_eq!(seen.deliveries.len(), EVENTS));
    // The bench holds the target; here only the order of magnitude, unoptimised.
    assert!(took < Duration::from_secs(20), "{took:?}");
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subject_that_never_acknowledges_does_not_hold_up_the_others() {
    let (_server, js) = server().await;
    // Somebody listens and keeps silent.
    let _mute = js.client().subscribe("mute.>").await.unwrap();
    let mut entries: Vec<_> = (0..8).map(created).collect();
    for entry in entries.iter_mut().take(7) {
        entry.subject = "mute.event".into();
    }
    let service = Service::start(js.clone(), Metrics::default()).await;
    let begun = Instant::now();
    service.write(&entries).await;
    eventually("the last is published", || async {
        outbox::pending(&service.database).await.unwrap() == 7
    })
    .await;
    // One time limit, not one for each.
    assert!(
        begun.elapsed() < Duration::from_secs(25),
        "{:?}",
        begun.elapsed()
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caught_up_waits_for_what_an_earlier_process_left_unacknowledged() {
    let (_server, js) = server().await;
    let stream = ensure(&js, &COMPUTE, 1).await.unwrap();
    let service = Service::start(js.clone(), Metrics::default()).await;
    service.write(&[created(0)]).await;
    let config = pull::Config {
        durable_name: Some(SPEC.durable.into()),
        filter_subject: SPEC.filter.into(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(300),
        ..Default::default()
    };
    let earlier = stream.create_consumer(config).await.unwrap();
    let mut messages = earlier.messages().await.unwrap();
    let left = messages.next().await.unwrap().unwrap();
    drop(messages);

    let mut consumer = Running::start(js.clone(), Recorder::new());
    service.write(&[created(1)]).await;
    consumer.recorder.saw(1).await;
    eventually("the second is acknowledged", || async {
        unsettled(&js, &SPEC).await == 1
    })
    .await;
    assert!(!*consumer.caught_up.borrow(), "the first is not in effect");
    left.ack().await.unwrap();
    consumer.caught_up().await;
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reconnect_it_has_to_catch_up_again() {
    let (mut nats, js) = server().await;
    let mut consumer = Running::start(js, Recorder::new());
    consumer.caught_up().await;
    consumer.caught_up.mark_unchanged();
    nats.restart().await;
    tokio::time::timeout(DEADLINE, consumer.caught_up.changed())
        .await
        .expect("it turns false")
        .unwrap();
    consumer.caught_up().await;
    consumer.stop().await;
}

/// Holds each batch until it is told to go on.
struct Gate {
    begun: Arc<Semaphore>,
    may_end: Arc<Semaphore>,
}

impl Handler for Gate {
    async fn handle(&mut self, batch: &[Delivery]) -> Result<Vec<Verdict>, Unavailable> {
        self.begun.add_permits(batch.len());
        let batch_len = u32::try_from(batch.len()).unwrap();
        self.may_end.acquire_many(batch_len).await.unwrap().forget();
        Ok(vec![Verdict::Applied; batch.len()])
    }
}

/// Its acknowledgements wait together, not each for itself: with many of them the end would
/// come minutes later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_holds_up_no_shutdown() {
    const EVENTS: usize = 200;
    let (nats, js) = server().await;
    let service = Service::start(nats.jetstream().await, Metrics::default()).await;
    service.write(&[created(0)]).await;
    let (begun, may_end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let handler = Gate {
        begun: Arc::clone(&begun),
        may_end: Arc::clone(&may_end),
    };
    let shutdown = CancellationToken::new();
    let consumer = Consumer::new(js.clone(), SPEC, 1, Metrics::default());
    let running = tokio::spawn(consumer.run(handler, shutdown.clone()));
    let hands = async |count: usize| {
        let count = u32::try_from(count).unwrap();
        let given = tokio::time::timeout(DEADLINE, begun.acquire_many(count)).await;
        given.unwrap().unwrap().forget();
    };
    hands(1).await;
    let entries: Vec<_> = (1..=EVENTS).map(created).collect();
    service.write(&entries).await;
    eventually("all delivered", || async {
        let stream = js.get_stream(COMPUTE.name).await.unwrap();
        let info = stream.consumer_info(SPEC.durable).await.unwrap();
        info.num_pending == 0 && info.num_ack_pending == EVENTS + 1
    })
    .await;
    // They are sent by then, and here a moment later.
    tokio::time::sleep(Duration::from_millis(500)).await;
    may_end.add_permits(1);
    hands(1).await;
    let together = 1 + begun.available_permits();
    assert!(together > EVENTS / 4, "{together} in one batch");
    let pid = nats.pid().unwrap().to_string();
    let mut kill = std::process::Command::new("kill");
    let stopped = kill.args(["-STOP", &pid]).status().unwrap();
    assert!(stopped.success());
    // Until the client's queue is full.
    let noise = bytes::Bytes::from(vec![0; 8192]);
    let client = js.client();
    let full = async {
        let quiet = Duration::from_secs(1);
        while tokio::time::timeout(quiet, client.publish("noise", noise.clone()))
            .await
            .is_ok()
        {}
    };
    tokio::time::timeout(DEADLINE, full).await.unwrap();
    let since = Instant::now();
    may_end.add_permits(EVENTS);
    shutdown.cancel();
    tokio::time::timeout(DEADLINE, running)
        .await
        .expect("an end")
        .unwrap();
    assert!(
        since.elapsed() < Duration::from_secs(30),
        "{:?}",
        since.elapsed()
    );
    drop(nats);
    service.stop().await;
}
