//! Those who share a durable consumer are caught up together, whoever was given
//! the last of what was there, and whoever was killed with some of it; on both buses.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::{HeaderMap, jetstream::AckKind};
use edd_events::{
    Metrics,
    bus::{AnyBus, Bus, Durable, MemoryBus, NatsBus, Subscription as _},
    consumer::{Bound, Consumer, ConsumerSpec, Handler, Unavailable, Verdict},
    event::Delivery,
    stream::COMPUTE,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::support::{DEADLINE, SPEC, created, server};

/// One event at a time, so that the others get the rest.
const ONE_BY_ONE: ConsumerSpec = ConsumerSpec {
    batch_max: 1,
    ..SPEC
};

/// Events that are there before anybody consumes.
const EVENTS: usize = 5;

/// Long enough that nobody takes it for the pause that tells of somebody's end, and short enough
/// for a test.
const ACK_WAIT: Duration = Duration::from_secs(15);

/// Takes as long over each event as it is told.
struct Slow {
    begun: Arc<Semaphore>,
    may_end: Arc<Semaphore>,
}

impl Handler for Slow {
    async fn handle(&mut self, batch: &[Delivery]) -> Result<Vec<Verdict>, Unavailable> {
        self.begun.add_permits(batch.len());
        let batch_len = u32::try_from(batch.len()).unwrap();
        let may_end = self.may_end.acquire_many(batch_len).await;
        may_end.unwrap().forget();
        Ok(vec![Verdict::Applied; batch.len()])
    }
}

/// Has what was delivered before, as one that reads it at each binding.
struct Reads {
    slow: Slow,
    /// Up to where that was, and when the stream was made, at each binding.
    bound: Arc<Mutex<Vec<(u64, i64)>>>,
}

impl Handler for Reads {
    async fn handle(&mut self, batch: &[Delivery]) -> Result<Vec<Verdict>, Unavailable> {
        self.slow.handle(batch).await
    }

    async fn bound(&mut self, binding: &Bound<'_>) -> Result<bool, Unavailable> {
        let now = (binding.durable.delivered, binding.stream.created);
        self.bound.lock().unwrap().push(now);
        Ok(true)
    }
}

/// The server's word on the durable consumer: (never delivered, not acknowledged).
async fn open(bus: &AnyBus) -> (u64, u64) {
    let state = bus.consumer_state(COMPUTE.name, SPEC.durable).await;
    let state = state.unwrap().unwrap();
    (state.pending, state.ack_pending)
}

async fn until_open(bus: &AnyBus, wanted: (u64, u64)) {
    let deadline = Instant::now() + DEADLINE;
    while open(bus).await != wanted {
        assert!(Instant::now() < deadline, "{:?}", open(bus).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Was given the first event; another one of its name took all the others.
async fn who_was_not_given_the_last_is_caught_up_with_who_was(bus: AnyBus, quiet: Duration) {
    bus.ensure(&COMPUTE, 1).await.unwrap();
    for n in 0..EVENTS {
        let entry = created(n);
        let sent = bus.publish(&entry.subject, HeaderMap::new(), entry.payload.into());
        sent.await.unwrap().await.unwrap();
    }
    let (begun, may_end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let consumer = Consumer::new(bus.clone(), ONE_BY_ONE, 1, Metrics::default());
    let mut caught_up = consumer.caught_up();
    let handler = Slow {
        begun: Arc::clone(&begun),
        may_end: Arc::clone(&may_end),
    };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.run(handler, shutdown.clone()));
    let first = timeout(DEADLINE, begun.acquire()).await;
    first.unwrap().unwrap().forget();

    let other = bus.bind(&Durable::from(&SPEC), 1).await.unwrap();
    let mut other = other.subscription;
    let mut theirs = Vec::new();
    for _ in 1..EVENTS {
        let next = timeout(DEADLINE, other.next()).await;
        theirs.push(next.unwrap().unwrap());
    }
    may_end.add_permits(1);
    let last = theirs.pop().unwrap();
    for message in theirs {
        message.ack_with(AckKind::Ack).await.unwrap();
    }
    until_open(&bus, (0, 1)).await;
    let early = timeout(quiet, caught_up.wait_for(|done| *done))
        .await
        .is_ok();
    assert!(!early, "the last is in effect for nobody");
    last.ack_with(AckKind::Ack).await.unwrap();
    let done = timeout(DEADLINE, caught_up.wait_for(|done| *done)).await;
    done.expect("caught up while nothing arrives").unwrap();

    shutdown.cancel();
    timeout(DEADLINE, running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_not_given_the_last_is_caught_up_with_who_was_on_nats() {
    let (_server, js) = server().await;
    let bus = NatsBus::new(js).into();
    let quiet = Duration::from_millis(600);
    who_was_not_given_the_last_is_caught_up_with_who_was(bus, quiet).await;
}

#[tokio::test(start_paused = true)]
async fn who_was_not_given_the_last_is_caught_up_with_who_was_in_memory() {
    let bus = MemoryBus::new().into();
    // Shorter than the ack wait.
    let quiet = Duration::from_secs(20);
    who_was_not_given_the_last_is_caught_up_with_who_was(bus, quiet).await;
}

async fn publish(bus: &AnyBus, numbers: std::ops::Range<usize>) {
    for n in numbers {
        let entry = created(n);
        let sent = bus.publish(&entry.subject, HeaderMap::new(), entry.payload.into());
        sent.await.unwrap().await.unwrap();
    }
}

/// Was given the first event; one that was given all the others never says a word.
async fn whoever_shares_with_one_that_was_killed_waits_for_no_ack_wait(bus: AnyBus) {
    bus.ensure(&COMPUTE, 1).await.unwrap();
    publish(&bus, 0..EVENTS).await;
    let (begun, may_end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let bound = Arc::new(Mutex::new(Vec::new()));
    let consumer = Consumer::new(bus.clone(), ONE_BY_ONE, 1, Metrics::default());
    let consumer = consumer.with_ack_wait(ACK_WAIT);
    let mut caught_up = consumer.caught_up();
    let handler = Reads {
        slow: Slow {
            begun: Arc::clone(&begun),
            may_end: Arc::clone(&may_end),
        },
        bound: Arc::clone(&bound),
    };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.run(handler, shutdown.clone()));
    let first = timeout(DEADLINE, begun.acquire()).await;
    first.unwrap().unwrap().forget();

    let other = bus.bind(&Durable::from(&SPEC), 1).await.unwrap();
    let mut other = other.subscription;
    let since = Instant::now();
    for _ in 1..EVENTS {
        let next = timeout(DEADLINE, other.next()).await;
        next.unwrap().unwrap();
    }
    drop(other);
    may_end.add_permits(1);
    let done = timeout(DEADLINE, caught_up.wait_for(|done| *done)).await;
    done.expect("caught up").unwrap();
    assert!(since.elapsed() < ACK_WAIT, "{:?}", since.elapsed());
    let open = open(&bus).await;
    assert_eq!(open, (0, EVENTS as u64 - 1), "they come again later");
    let last = bound.lock().unwrap().last().copied();
    assert_eq!(last.map(|(delivered, _)| delivered), Some(EVENTS as u64));

    // And do no harm.
    may_end.add_permits(EVENTS);
    until_open(&bus, (0, 0)).await;
    assert!(*caught_up.borrow());
    shutdown.cancel();
    timeout(DEADLINE, running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_shares_with_one_that_was_killed_waits_for_no_ack_wait_on_nats() {
    let (_server, js) = server().await;
    let bus = NatsBus::new(js).into();
    whoever_shares_with_one_that_was_killed_waits_for_no_ack_wait(bus).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_shares_with_one_that_was_killed_waits_for_no_ack_wait_in_memory() {
    let bus = MemoryBus::new().into();
    whoever_shares_with_one_that_was_killed_waits_for_no_ack_wait(bus).await;
}

/// Also later: what one that was killed was given is read soon, not after the ack wait.
async fn what_one_that_was_killed_was_given_is_read_soon(bus: AnyBus) {
    bus.ensure(&COMPUTE, 1).await.unwrap();
    let (begun, may_end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(1_000)));
    let bound = Arc::new(Mutex::new(Vec::new()));
    let consumer = Consumer::new(bus.clone(), ONE_BY_ONE, 1, Metrics::default());
    let consumer = consumer.with_ack_wait(ACK_WAIT);
    let mut caught_up = consumer.caught_up();
    let handler = Reads {
        slow: Slow { begun, may_end },
        bound: Arc::clone(&bound),
    };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.run(handler, shutdown.clone()));
    let done = timeout(DEADLINE, caught_up.wait_for(|done| *done)).await;
    done.expect("caught up").unwrap();

    let other = bus.bind(&Durable::from(&ONE_BY_ONE), 1).await.unwrap();
    let mut other = other.subscription;
    let mut published = 0;
    let given = loop {
        published += 1;
        publish(&bus, published..published + 1).await;
        // Perhaps it is given to the first.
        if let Ok(next) = timeout(Duration::from_millis(200), other.next()).await {
            break next.unwrap().info().unwrap().stream_sequence;
        }
        assert!(published < 200, "never given to the other");
    };
    let since = Instant::now();
    drop(other);
    let has_it = || {
        let bound = bound.lock().unwrap();
        bound
            .last()
            .is_some_and(|(delivered, _)| *delivered >= given)
    };
    while !has_it() {
        assert!(since.elapsed() < ACK_WAIT, "it waits for the ack wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let done = timeout(DEADLINE, caught_up.wait_for(|done| *done)).await;
    done.expect("caught up again").unwrap();
    shutdown.cancel();
    timeout(DEADLINE, running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_that_was_killed_was_given_is_read_soon_on_nats() {
    let (_server, js) = server().await;
    what_one_that_was_killed_was_given_is_read_soon(NatsBus::new(js).into()).await;
}

#[tokio::test(start_paused = true)]
async fn what_one_that_was_killed_was_given_is_read_soon_in_memory() {
    what_one_that_was_killed_was_given_is_read_soon(MemoryBus::new().into()).await;
}

/// Who had no request waiting when the stream was removed is not told, and is given messages of
/// the new one by the consumer that another process has made.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_replaced_unseen_is_noticed() {
    let (_server, js) = server().await;
    let bus = AnyBus::from(NatsBus::new(js.clone()));
    bus.ensure(&COMPUTE, 1).await.unwrap();
    publish(&bus, 0..1).await;
    let (begun, may_end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let bound = Arc::new(Mutex::new(Vec::new()));
    let consumer = Consumer::new(bus.clone(), ONE_BY_ONE, 1, Metrics::default());
    let handler = Reads {
        slow: Slow {
            begun: Arc::clone(&begun),
            may_end: Arc::clone(&may_end),
        },
        bound: Arc::clone(&bound),
    };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.run(handler, shutdown.clone()));
    let first = timeout(DEADLINE, begun.acquire()).await;
    first.unwrap().unwrap().forget();

    js.delete_stream(COMPUTE.name).await.unwrap();
    // nats-server 2.9 is not done with it yet.
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(bus.bind(&Durable::from(&ONE_BY_ONE), 1).await.unwrap());
    publish(&bus, 1..3).await;
    may_end.add_permits(3);
    until_open(&bus, (0, 0)).await;
    let making = |at: usize| bound.lock().unwrap().get(at).map(|(_, created)| *created);
    let deadline = Instant::now() + DEADLINE;
    while making(1).is_none() {
        assert!(Instant::now() < deadline, "it goes on with the old one");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_ne!(making(0), making(1));
    shutdown.cancel();
    timeout(DEADLINE, running).await.unwrap().unwrap();
}
