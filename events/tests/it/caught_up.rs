//! Those who share a durable consumer are caught up together, whoever was given
//! the last of what was there; on both buses.

use std::{sync::Arc, time::Duration};

use async_nats::{HeaderMap, jetstream::AckKind};
use edd_events::{
    Metrics,
    bus::{AnyBus, Bus, Durable, MemoryBus, NatsBus, Subscription as _},
    consumer::{Consumer, ConsumerSpec, Handler, Unavailable, Verdict},
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
