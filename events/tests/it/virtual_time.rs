//! The consumer on the memory bus and a clock that stands still while anybody
//! works: what takes minutes takes none.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::HeaderMap;
use edd_events::{
    Metrics,
    bus::{Bus as _, MemoryBus},
    consumer::{Bound, Consumer, Handler, LastDeliveries, RETRY_DELAYS, Unavailable, Verdict},
    event::Delivery,
    stream::COMPUTE,
};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::support::{Recorder, SPEC, created};

struct Consuming {
    bus: MemoryBus,
    task: JoinHandle<()>,
    shutdown: CancellationToken,
    caught_up: tokio::sync::watch::Receiver<bool>,
}

/// Has what was delivered before, at each binding but the first ones, at which it panics.
#[derive(Clone)]
struct Settled {
    recorder: Recorder,
    panics: usize,
    bindings: Arc<AtomicUsize>,
}

impl Settled {
    fn new(recorder: Recorder, panics: usize) -> Self {
        let bindings = Arc::default();
        Self {
            recorder,
            panics,
            bindings,
        }
    }

    fn bindings(&self) -> usize {
        self.bindings.load(Ordering::Relaxed)
    }
}

impl Handler for Settled {
    async fn handle(&mut self, batch: &[Delivery]) -> Result<Vec<Verdict>, Unavailable> {
        self.recorder.handle(batch).await
    }

    async fn bound(&mut self, _binding: &Bound<'_>) -> Result<bool, Unavailable> {
        let before = self.bindings.fetch_add(1, Ordering::Relaxed);
        assert!(before >= self.panics, "a bug");
        Ok(true)
    }
}

async fn consume(recorder: impl Handler + Sync + 'static) -> Consuming {
    let bus = MemoryBus::new();
    bus.ensure(&COMPUTE, 1).await.unwrap();
    let consumer = Consumer::new(bus.connection(), SPEC, 1, Metrics::default());
    let caught_up = consumer.caught_up();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(consumer.run(recorder, shutdown.clone()));
    Consuming {
        bus,
        task,
        shutdown,
        caught_up,
    }
}

impl Consuming {
    async fn publish(&self, n: usize) {
        let entry = created(n);
        let payload = entry.payload.into();
        let sent = self.bus.publish(&entry.subject, HeaderMap::new(), payload);
        sent.await.unwrap().await.unwrap();
    }

    async fn until(&self, what: &str, condition: impl Fn(&MemoryBus) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(24 * 3600);
        while !condition(&self.bus) {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn letters(bus: &MemoryBus) -> usize {
        let messages = bus.messages(COMPUTE.name);
        messages
            .iter()
            .filter(|kept| kept.subject.ends_with(".dlq"))
            .count()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_event_is_retried_by_the_real_delays_and_then_a_dead_letter() {
    let recorder = Recorder::answering(|delivery| {
        Ok(match delivery.event.entity.as_str() {
            "c1" => Verdict::Retry("not yet".into()),
            _ => Verdict::Applied,
        })
    });
    let consuming = consume(recorder.clone()).await;
    let started = Instant::now();
    consuming.publish(1).await;
    consuming.publish(2).await;
    consuming
        .until("a dead letter", |bus| Consuming::letters(bus) == 1)
        .await;
    let took = started.elapsed();
    let wanted: Duration = RETRY_DELAYS.iter().sum();
    assert!(took >= wanted && took < wanted * 2, "{took:?}");
    let deliveries = recorder.look(|seen| {
        let of_one = seen.deliveries.iter();
        let of_one = of_one.filter(|delivery| delivery.event.entity.as_str() == "c1");
        of_one
            .map(|delivery| delivery.deliveries)
            .collect::<Vec<_>>()
    });
    assert_eq!(deliveries, [1, 2, 3, 4, 5]);
    consuming.stop().await;
}

/// What waits for its next try here is no sign that others keep silent: whoever has all in effect
/// looks again, and stays so.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_tried_again_leaves_nobody_behind() {
    let recorder = Recorder::answering(|_| Ok(Verdict::Retry("not yet".into())));
    let handler = Settled::new(recorder, 0);
    let mut consuming = consume(handler.clone()).await;
    consuming.caught_up.wait_for(|done| *done).await.unwrap();
    consuming.publish(1).await;
    consuming.until("a look", |_| handler.bindings() > 1).await;
    consuming
        .until("a dead letter", |bus| Consuming::letters(bus) == 1)
        .await;
    assert!(!consuming.caught_up.has_changed().unwrap());
    consuming.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_at_a_binding_is_bound_again() {
    let recorder = Recorder::new();
    let handler = Settled::new(recorder.clone(), 2);
    let consuming = consume(handler.clone()).await;
    consuming.publish(1).await;
    consuming
        .until("handled", |_| {
            recorder.look(|seen| seen.deliveries.len()) == 1
        })
        .await;
    assert_eq!(handler.bindings(), 3);
    consuming.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_a_broken_world_loses_nothing_and_buries_nothing() {
    let started = Instant::now();
    let recorder = Recorder::answering(move |_| {
        if started.elapsed() < Duration::from_secs(3600) {
            return Err(Unavailable("no database".into()));
        }
        Ok(Verdict::Applied)
    });
    let consuming = consume(recorder.clone()).await;
    for n in 0..20 {
        consuming.publish(n).await;
    }
    consuming
        .until("all handled", |_| {
            recorder.look(|seen| seen.deliveries.len()) >= 20
        })
        .await;
    assert_eq!(recorder.look(|seen| seen.deliveries.len()), 20, "once each");
    assert_eq!(Consuming::letters(&consuming.bus), 0);
    consuming.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_and_a_lost_store_are_survived() {
    let bus = MemoryBus::new();
    let link = bus.connection();
    let recorder = Recorder::new();
    let consumer = Consumer::new(link.clone(), SPEC, 1, Metrics::default());
    let mut caught_up = consumer.caught_up();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(consumer.run(recorder.clone(), shutdown.clone()));
    caught_up.wait_for(|done| *done).await.unwrap();
    let consuming = Consuming {
        bus,
        task,
        shutdown,
        caught_up,
    };
    for round in 0..4_usize {
        link.disconnect();
        consuming.publish(round).await;
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(recorder.look(|seen| seen.deliveries.len()), round);
        link.reconnect();
        consuming
            .until("the event of the outage", |_| {
                recorder.look(|seen| seen.deliveries.len()) > round
            })
            .await;
    }
    consuming.bus.wipe();
    consuming.bus.ensure(&COMPUTE, 1).await.unwrap();
    consuming.publish(9).await;
    consuming
        .until("the first event of the new store", |_| {
            recorder.look(|seen| seen.deliveries.len()) == 5
        })
        .await;
    assert!(*consuming.caught_up.borrow());
    consuming.stop().await;
}

/// Whoever removes it may still be at it, and remove what is made in its place.
#[tokio::test(start_paused = true)]
async fn a_stream_that_was_removed_is_not_made_anew_at_once() {
    let recorder = Recorder::new();
    let consuming = consume(recorder.clone()).await;
    consuming.publish(1).await;
    let seen = || recorder.look(|seen| seen.deliveries.len());
    consuming.until("the first", |_| seen() == 1).await;
    consuming.bus.wipe();
    tokio::time::sleep(Duration::from_millis(1900)).await;
    let state = consuming.bus.stream_state(COMPUTE.name).await;
    assert_eq!(state.unwrap(), None, "not yet");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let state = consuming.bus.stream_state(COMPUTE.name).await;
    assert!(state.unwrap().is_some(), "nobody else makes it");
    consuming.publish(2).await;
    consuming.until("the second", |_| seen() == 2).await;
    consuming.stop().await;
}

/// A database that comes and goes ends a consumer again and again, and each time what it
/// holds is given back: that is no event's fault.
#[tokio::test(start_paused = true)]
async fn a_flapping_world_buries_nothing() {
    let bus = MemoryBus::new();
    bus.ensure(&COMPUTE, 1).await.unwrap();
    let last = LastDeliveries::default();
    let consumer = |recorder: &Recorder| {
        let consumer = Consumer::new(bus.connection(), SPEC, 1, Metrics::default())
            .with_last_deliveries(last.clone());
        let shutdown = CancellationToken::new();
        let caught_up = consumer.caught_up();
        let task = tokio::spawn(consumer.run(recorder.clone(), shutdown.clone()));
        Consuming {
            bus: bus.clone(),
            task,
            shutdown,
            caught_up,
        }
    };
    let away = Recorder::answering(|_| Err(Unavailable("no database".into())));
    last.keep(true);
    for round in 0..8 {
        let consuming = consumer(&away);
        if round == 0 {
            consuming.publish(1).await;
        }
        let calls = away.look(|seen| seen.calls);
        consuming
            .until("a try", |_| away.look(|seen| seen.calls) > calls)
            .await;
        consuming.stop().await;
        assert_eq!(Consuming::letters(&bus), 0, "{round}");
    }
    // Long after the ack wait, for the same process.
    let long = tokio::time::sleep(Duration::from_secs(600));
    tokio::select! {
        () = last.stay_alive() => {}
        () = long => {}
    }
    let back = Recorder::new();
    let consuming = consumer(&back);
    consuming
        .until("the event", |_| {
            back.look(|seen| seen.deliveries.len()) == 1
        })
        .await;
    assert_eq!(back.look(|seen| seen.deliveries[0].deliveries), 5);
    consuming.stop().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(Consuming::letters(&bus), 0);

    // At the process's end nobody is left who could keep it.
    last.keep(true);
    for round in 0..5 {
        let consuming = consumer(&away);
        if round == 0 {
            consuming.publish(2).await;
        }
        let calls = away.look(|seen| seen.calls);
        consuming
            .until("a try", |_| away.look(|seen| seen.calls) > calls)
            .await;
        if round == 4 {
            last.keep(false);
        }
        consuming.stop().await;
    }
    assert_eq!(Consuming::letters(&bus), 1);
}
