//! What a handler sees of a fresh binding, and what it reads past the durable
//! consumer, on both buses.

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use edd_events::{
    Metrics,
    bus::{AnyBus, Bus, Durable, MemoryBus, NatsBus, Subscription as _},
    consumer::{ACK_WAIT, Bound, Consumer, ConsumerSpec, Handler, Unavailable, Verdict},
    event::Delivery,
    stream::COMPUTE,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::support::{DEADLINE, SPEC, created, server};

/// Reads, at each binding, all that was delivered before; tells what it was given.
struct Reading {
    /// How many messages at a time.
    max: usize,
    /// Bindings that it refuses.
    refuses: usize,
    told: mpsc::Sender<Told>,
}

#[derive(Debug, Eq, PartialEq)]
enum Told {
    Bound { created: i64, read: Vec<String> },
    Handled(Vec<(String, u64)>),
}

impl Handler for Reading {
    async fn handle(&mut self, batch: &[Delivery]) -> Result<Vec<Verdict>, Unavailable> {
        let events = batch.iter();
        let handled = events.map(|one| (one.event.entity.to_string(), one.deliveries));
        let told = Told::Handled(handled.collect());
        self.told.send(told).await.expect("somebody listens");
        Ok(vec![Verdict::Applied; batch.len()])
    }

    async fn bound(&mut self, binding: &Bound<'_>) -> Result<bool, Unavailable> {
        if self.refuses > 0 {
            self.refuses -= 1;
            return Err(Unavailable("not now".into()));
        }
        let (mut read, mut from) = (Vec::new(), 1);
        while from <= binding.durable.delivered {
            let to = binding.durable.delivered;
            let stretch = binding.read(from, to, self.max).await?;
            assert!(stretch.up_to >= from && stretch.up_to <= to, "{stretch:?}");
            let events = stretch.events.iter();
            read.extend(events.map(|one| one.event.entity.to_string()));
            from = stretch.up_to + 1;
        }
        let told = Told::Bound {
            created: binding.stream.created,
            read,
        };
        self.told.send(told).await.expect("somebody listens");
        Ok(true)
    }
}

async fn publish(bus: &impl Bus, n: usize) {
    let entry = created(n);
    put(bus, &entry.subject, entry.payload).await;
}

async fn put(bus: &impl Bus, subject: &str, payload: Vec<u8>) {
    let sent = bus.publish(subject, HeaderMap::new(), payload.into()).await;
    sent.unwrap().await.unwrap();
}

async fn next(told: &mut mpsc::Receiver<Told>) -> Told {
    timeout(DEADLINE, told.recv()).await.unwrap().unwrap()
}

/// What another process was given and never acknowledged is read at once, in
/// order, and nobody waits for its coming again.
async fn what_the_dead_were_given_is_read_at_the_binding(bus: AnyBus, spec: ConsumerSpec) {
    bus.ensure(&COMPUTE, 1).await.unwrap();
    for n in 0..5 {
        publish(&bus, n).await;
    }
    // Neither is an event that a handler could use.
    put(&bus, "compute.container.x.started", vec![0xff; 64]).await;
    put(&bus, "compute.container.created.dlq", vec![0xff; 64]).await;
    let binding = bus.bind(&Durable::from(&spec), 1).await.unwrap();
    let mut dead = binding.subscription;
    for _ in 0..7 {
        timeout(DEADLINE, dead.next()).await.unwrap().unwrap();
    }
    dead.end().await;
    drop(dead);
    publish(&bus, 5).await;
    for max in [1, 3, 100] {
        let (tell, mut told) = mpsc::channel(16);
        let consumer = Consumer::new(bus.clone(), spec, 1, Metrics::default());
        let mut caught_up = consumer.caught_up();
        let handler = Reading {
            max,
            refuses: usize::from(max == 3),
            told: tell,
        };
        let shutdown = CancellationToken::new();
        let begun = Instant::now();
        let running = tokio::spawn(consumer.run(handler, shutdown.clone()));
        let Told::Bound { read, .. } = next(&mut told).await else {
            panic!("bound before anything is handed over");
        };
        // The sixth was delivered to the first of these.
        let before = if max == 1 { 5 } else { 6 };
        let expected: Vec<_> = (0..before).map(|n| format!("c{n}")).collect();
        assert_eq!(read, expected);
        if max == 1 {
            let sixth = Told::Handled(vec![("c5".into(), 1)]);
            assert_eq!(next(&mut told).await, sixth);
        }
        let through = timeout(DEADLINE, caught_up.wait_for(|done| *done)).await;
        through.unwrap().unwrap();
        assert!(begun.elapsed() < ACK_WAIT / 2, "{:?}", begun.elapsed());
        shutdown.cancel();
        timeout(DEADLINE, running).await.unwrap().unwrap();
    }
}

/// As the gateway's on AUTH: most of the stream is nothing to it.
const NARROW: ConsumerSpec = ConsumerSpec {
    filter: "compute.container.>",
    ..SPEC
};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_dead_were_given_is_read_at_the_binding_on_nats() {
    for spec in [SPEC, NARROW] {
        let (_server, js) = server().await;
        let bus = NatsBus::new(js).into();
        what_the_dead_were_given_is_read_at_the_binding(bus, spec).await;
    }
}

#[tokio::test]
async fn what_the_dead_were_given_is_read_at_the_binding_in_memory() {
    for spec in [SPEC, NARROW] {
        let bus = MemoryBus::new().into();
        what_the_dead_were_given_is_read_at_the_binding(bus, spec).await;
    }
}

/// Bound again, the handler is told of another stream before it is given anything
/// of that.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_is_told_before_its_events() {
    let (_server, js) = server().await;
    let bus = NatsBus::new(js.clone());
    let (tell, mut told) = mpsc::channel(16);
    let consumer = Consumer::new(bus.clone(), SPEC, 1, Metrics::default());
    let handler = Reading {
        max: 10,
        refuses: 0,
        told: tell,
    };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.run(handler, shutdown.clone()));
    let Told::Bound { created: first, .. } = next(&mut told).await else {
        panic!("bound first");
    };
    publish(&bus, 0).await;
    assert_eq!(next(&mut told).await, Told::Handled(vec![("c0".into(), 1)]));
    js.delete_stream(COMPUTE.name).await.unwrap();
    bus.ensure(&COMPUTE, 1).await.unwrap();
    publish(&bus, 1).await;
    let Told::Bound { created, read } = next(&mut told).await else {
        panic!("bound before anything is handed over");
    };
    assert!(created > first && read.is_empty(), "{created} {read:?}");
    assert_eq!(next(&mut told).await, Told::Handled(vec![("c1".into(), 1)]));
    shutdown.cancel();
    let ended = timeout(Duration::from_secs(10), running).await;
    ended.unwrap().unwrap();
}
