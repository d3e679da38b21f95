//! Failures told apart: the event's own, the world's, and the process's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream::stream::Config;
use edd_events::{
    Metrics,
    consumer::{BreakerState, Handler, Unavailable, Verdict},
    dead_letter::{Filter, LetterError, LetterRef, Letters},
    event::Delivery,
    stream::{COMPUTE, ensure},
};
use edd_proto::compute::ContainerStopped;
use prost::Message as _;
use serde_json::json;

use crate::support::{
    QUICK_RETRIES, Recorder, Running, SPEC, Service, created, eventually, publish, server, stored,
    unsettled,
};

const DLQ: &str = "compute.container.created.dlq";
/// Longer than a busy machine keeps a test from going on.
const SHORT_ACK_WAIT: Duration = Duration::from_millis(1200);

/// A handler that never comes back, as of a process that hangs or is killed.
struct Hangs(Arc<AtomicUsize>);

impl Handler for Hangs {
    async fn handle(&mut self, batch: &[Delivery]) -> Result<Vec<Verdict>, Unavailable> {
        for delivery in batch {
            self.0.fetch_max(
                usize::try_from(delivery.deliveries).unwrap(),
                Ordering::Relaxed,
            );
        }
        std::future::pending().await
    }
}

/// A process that consumes until an event is delivered for the `delivery`th
/// time, and dies then.
async fn dies_at(js: &async_nats::jetstream::Context, delivery: usize) {
    let reached = Arc::new(AtomicUsize::new(0));
    let consumer = edd_events::consumer::Consumer::new(js.clone(), SPEC, 1, Metrics::default())
        .with_retry_delays(QUICK_RETRIES)
        .with_ack_wait(SHORT_ACK_WAIT);
    let task = tokio::spawn(consumer.run(Hangs(Arc::clone(&reached)), Default::default()));
    eventually("a delivery", || async {
        reached.load(Ordering::Relaxed) >= delivery
    })
    .await;
    task.abort();
    let _ = task.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_handlers_all_died_becomes_one_dead_letter() {
    let (nats, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let entry = created(1);
    service.write(std::slice::from_ref(&entry)).await;
    for delivery in 1..=5 {
        dies_at(&js, delivery).await;
    }
    assert!(stored(&js, &COMPUTE, DLQ).await.is_empty());
    // Two replicas: one of them hears of it.
    let one = Running::with_ack_wait(nats.jetstream().await, SHORT_ACK_WAIT, Recorder::new());
    let two = Running::with_ack_wait(nats.jetstream().await, SHORT_ACK_WAIT, Recorder::new());
    eventually("a dead letter", || async {
        !stored(&js, &COMPUTE, DLQ).await.is_empty()
    })
    .await;
    service.write(&[created(2)]).await;
    eventually("the next event", || async {
        one.recorder.entities().len() + two.recorder.entities().len() == 1
    })
    .await;
    let letters = stored(&js, &COMPUTE, DLQ).await;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!(letter.payload, entry.payload);
    let header = |name: &str| letter.headers.get(name).unwrap().as_str().to_owned();
    assert_eq!(header("Edd-Dlq-Subject"), "compute.container.c1.created");
    assert_eq!(header("Edd-Dlq-Consumer"), "gateway-service");
    assert_eq!(header("Edd-Dlq-Deliveries"), "5");
    assert_eq!(header("Edd-Dlq-Stream-Seq"), "1");
    assert_eq!(header("Edd-Dlq-Msg-Id"), entry.event_id);
    assert_eq!(header("Nats-Msg-Id"), "dlq:COMPUTE:gateway-service:1");
    assert!(header("Edd-Dlq-Published").starts_with("20"));
    assert!(header("Edd-Dlq-Time") > header("Edd-Dlq-Published"));
    eventually("the advisory is settled", || async {
        let stream = js.get_stream("ADVISORIES").await.unwrap();
        let info = stream.consumer_info("COMPUTE-gateway-service").await;
        info.is_ok_and(|info| info.num_ack_pending == 0 && info.num_pending == 0)
    })
    .await;
    one.stop().await;
    two.stop().await;
    service.stop().await;
}

/// The server forgets message ids after the duplicate window; a letter is
/// written once all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_advisory_about_a_buried_event_makes_no_second_letter() {
    let (_nats, js) = server().await;
    let config = Config {
        name: COMPUTE.name.into(),
        subjects: COMPUTE.subjects.iter().map(|s| (*s).to_owned()).collect(),
        duplicate_window: Duration::from_millis(100),
        ..Config::default()
    };
    js.create_stream(config).await.unwrap();
    let reject = Recorder::answering(|_| Ok(Verdict::Reject("no such port".into())));
    let mut consumer = Running::start(js.clone(), reject);
    consumer.caught_up().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    service.write(&[created(1), created(2)]).await;
    eventually("dead letters", || async {
        stored(&js, &COMPUTE, DLQ).await.len() == 2
    })
    .await;
    let written = Instant::now();
    eventually("ids to be forgotten", || async {
        written.elapsed() > Duration::from_millis(400)
    })
    .await;
    let advisory = |sequence: u64| {
        json!({"type": "io.nats.jetstream.advisory.v1.max_deliver", "stream": "COMPUTE",
            "consumer": "gateway-service", "stream_seq": sequence, "deliveries": 5})
        .to_string()
        .into_bytes()
    };
    let subject = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.COMPUTE.gateway-service";
    publish(&js, subject, b"no json".to_vec()).await;
    for sequence in [1, 2, 2, 999] {
        publish(&js, subject, advisory(sequence)).await;
    }
    // The last of them names an event that is gone.
    consumer
        .metric(r#"events_total{subject="unknown",result="lost"} 1"#)
        .await;
    assert_eq!(stored(&js, &COMPUTE, DLQ).await.len(), 2);
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_outage_dead_letters_the_poison_and_nothing_else() {
    const EVENTS: usize = 500;
    let (_nats, js) = server().await;
    ensure(&js, &COMPUTE, 1).await.unwrap();
    let service = Service::start(js.clone(), Metrics::default()).await;
    let away = Arc::new(AtomicBool::new(true));
    let recorder = Recorder::answering({
        let away = Arc::clone(&away);
        move |delivery| match delivery.event.entity.as_str() {
            _ if away.load(Ordering::Relaxed) => Err(Unavailable("no database".into())),
            "c250" => Ok(Verdict::Retry("poison".into())),
            _ => Ok(Verdict::Applied),
        }
    });
    let consumer = Running::with_ack_wait(js.clone(), SHORT_ACK_WAIT, recorder);
    service
        .write(&(0..=EVENTS).map(created).collect::<Vec<_>>())
        .await;
    consumer
        .metric(r#"consumer_breaker{stream="COMPUTE"} 2"#)
        .await;
    let outage = Instant::now();
    eventually("an outage of more ack waits than deliveries", || async {
        outage.elapsed() > SHORT_ACK_WAIT * 6
    })
    .await;
    assert!(stored(&js, &COMPUTE, DLQ).await.is_empty());
    away.store(false, Ordering::Relaxed);
    eventually("a dead letter", || async {
        stored(&js, &COMPUTE, DLQ).await.len() == 1
    })
    .await;
    eventually("all settled", || async { unsettled(&js, &SPEC).await == 0 }).await;
    consumer
        .metric(r#"consumer_breaker{stream="COMPUTE"} 0"#)
        .await;
    let mut handled = consumer.recorder.entities();
    handled.retain(|entity| entity != "c250");
    assert_eq!(handled.len(), EVENTS, "each once");
    handled.sort();
    handled.dedup();
    assert_eq!(handled.len(), EVENTS);
    assert_eq!(stored(&js, &COMPUTE, DLQ).await.len(), 1);
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_breaker_tries_one_batch_before_it_closes() {
    let (_nats, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let recorder = Recorder::answering({
        let calls = Arc::clone(&calls);
        move |_| match calls.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Err(Unavailable("no database".into())),
            _ => Ok(Verdict::Applied),
        }
    });
    let consumer = edd_events::consumer::Consumer::new(js.clone(), SPEC, 1, Metrics::default());
    let mut breaker = consumer.breaker();
    assert_eq!(*breaker.borrow(), BreakerState::Closed);
    let shutdown = tokio_util::sync::CancellationToken::new();
    let watching = tokio::spawn(async move {
        let mut states = Vec::new();
        while states.last() != Some(&BreakerState::Closed) {
            breaker.changed().await.unwrap();
            states.push(*breaker.borrow_and_update());
        }
        states
    });
    let task = tokio::spawn(consumer.run(recorder, shutdown.clone()));
    service.write(&[created(1)]).await;
    let states = tokio::time::timeout(crate::support::DEADLINE, watching)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(states.first(), Some(&BreakerState::Open));
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    shutdown.cancel();
    task.await.unwrap();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_are_listed_in_pages_shown_replayed_and_dropped() {
    let (_nats, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let cured = Arc::new(AtomicBool::new(false));
    let recorder = Recorder::answering({
        let cured = Arc::clone(&cured);
        move |delivery| {
            let id = delivery.event.entity.as_str();
            Ok(match id {
                "good" => Verdict::Applied,
                "c1" if cured.load(Ordering::Relaxed) => Verdict::Applied,
                _ => Verdict::Reject(format!("Port of {id} is not allowed")),
            })
        }
    });
    let consumer = Running::start(js.clone(), recorder);
    let letters = Letters::new(js.clone(), consumer.family());
    // Without a stream there are none.
    let all = Filter::default();
    service
        .write(&(0..5).map(created).collect::<Vec<_>>())
        .await;
    consumer.metric(r#"dlq_messages{stream="COMPUTE"} 5"#).await;

    let mut after = None;
    let mut found = Vec::new();
    let mut pages = 0;
    loop {
        let page = letters.list(&all, after.as_ref(), 2).await.unwrap();
        assert!(page.letters.len() <= 2);
        found.extend(page.letters);
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert!(pages >= 3);
    let subjects: Vec<_> = found.iter().map(|letter| letter.subject.clone()).collect();
    let expected: Vec<_> = (0..5)
        .map(|n| format!("compute.container.c{n}.created"))
        .collect();
    assert_eq!(subjects, expected);
    let by = |filter: Filter| {
        let letters = letters.clone();
        async move { letters.list(&filter, None, 10).await.unwrap().letters.len() }
    };
    let subject = |text: &str| Filter {
        subject: Some(text.into()),
        ..Filter::default()
    };
    assert_eq!(by(subject("compute.container.c3.*")).await, 1);
    assert_eq!(by(subject("auth.>")).await, 0);
    let reason = Some("port OF c4".into());
    assert_eq!(
        by(Filter {
            reason,
            ..Filter::default()
        })
        .await,
        1
    );
    let stream = Some("AUTH".into());
    assert_eq!(
        by(Filter {
            stream,
            ..Filter::default()
        })
        .await,
        0
    );

    let shown = letters.get(&found[1].letter).await.unwrap();
    let message = shown.message().unwrap();
    assert_eq!(message["container_id"], "c1");
    assert_eq!(message["metadata"]["source"], "edd-compute");
    assert_eq!(shown.payload, created_payload(&js, 2).await);

    // Not an event, whatever its place.
    let event = LetterRef {
        stream: "COMPUTE".into(),
        sequence: 1,
    };
    let refused = letters.discard(&event).await;
    assert!(matches!(refused, Err(LetterError::Missing(_))));
    let refused = letters.replay(&event).await;
    assert!(matches!(refused, Err(LetterError::Missing(_))));

    // The cause persists: another letter, and the old one is gone.
    let again = letters.replay(&found[0].letter).await.unwrap();
    eventually("another letter", || async {
        let page = letters.list(&all, None, 10).await.unwrap();
        let of_c0 = |letter: &&edd_events::dead_letter::Letter| letter.sequence == again;
        page.letters.len() == 5 && page.letters.iter().filter(of_c0).count() == 1
    })
    .await;
    let refused = letters.replay(&found[0].letter).await;
    assert!(matches!(refused, Err(LetterError::Missing(_))));

    // The cause is gone: it is in effect, as the same event.
    cured.store(true, Ordering::Relaxed);
    let sequence = letters.replay(&found[1].letter).await.unwrap();
    eventually("the event in effect", || async {
        consumer.recorder.look(|seen| {
            let mut of_c1 = seen
                .deliveries
                .iter()
                .filter(|delivery| delivery.event.entity.as_str() == "c1");
            let first = of_c1.next().unwrap().event.event_id.clone();
            of_c1.any(|d| d.position.sequence == sequence && d.event.event_id == first)
        })
    })
    .await;
    consumer.metric(r#"dlq_messages{stream="COMPUTE"} 4"#).await;
    for letter in letters.list(&all, None, 10).await.unwrap().letters {
        letters.discard(&letter.letter).await.unwrap();
    }
    // At once, but for a count of the consumer that began before.
    consumer.metric(r#"dlq_messages{stream="COMPUTE"} 0"#).await;
    assert!(stored(&js, &COMPUTE, DLQ).await.is_empty());
    consumer.stop().await;
    service.stop().await;
}

async fn created_payload(js: &async_nats::jetstream::Context, sequence: u64) -> Vec<u8> {
    let stream = js.get_stream("COMPUTE").await.unwrap();
    let message = stream.get_raw_message(sequence).await.unwrap();
    message.payload.to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_without_its_payload_is_replayed_from_the_original() {
    let (_nats, js) = server().await;
    let mut consumer = Running::start(js.clone(), Recorder::new());
    consumer.caught_up().await;
    let huge = vec![0xff; js.client().max_payload() - 300];
    let sequence = publish(&js, "compute.container.abc.created", huge.clone()).await;
    let letters = Letters::new(js.clone(), Metrics::default());
    let all = Filter::default();
    let one = || async {
        let mut page = letters.list(&all, None, 10).await.unwrap();
        (page.letters.len() == 1).then(|| page.letters.remove(0))
    };
    eventually("a letter", || async { one().await.is_some() }).await;
    let letter = one().await.unwrap();
    assert!(letter.payload_omitted && letter.message().is_none());
    let again = letters.replay(&letter.letter).await.unwrap();
    assert_eq!(created_payload(&js, again).await, huge);
    eventually("another letter", || async {
        one().await.is_some_and(|letter| letter.sequence == again)
    })
    .await;
    let stream = js.get_stream("COMPUTE").await.unwrap();
    for sequence in [sequence, again] {
        stream.delete_message(sequence).await.unwrap();
    }
    let refused = letters.replay(&one().await.unwrap().letter).await;
    assert!(matches!(refused, Err(LetterError::Expired(_))));
    consumer.stop().await;
}

/// Every `result` that an event can have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_result_of_an_event_is_counted() {
    let (_nats, js) = server().await;
    let recorder = Recorder::answering(|delivery| {
        Ok(match delivery.event.entity.as_str() {
            "stale" => Verdict::Stale,
            "rejected" => Verdict::Reject("no".into()),
            "retried" if delivery.deliveries == 1 => Verdict::Retry("not yet".into()),
            _ => Verdict::Applied,
        })
    });
    let mut consumer = Running::start(js.clone(), recorder);
    consumer.caught_up().await;
    let stopped = |id: &str| {
        ContainerStopped {
            container_id: id.into(),
            ..Default::default()
        }
        .encode_to_vec()
    };
    for id in ["applied", "stale", "rejected", "retried"] {
        publish(&js, &format!("compute.container.{id}.stopped"), stopped(id)).await;
    }
    publish(&js, "compute.container.bad.stopped", b"\xff".to_vec()).await;
    publish(&js, "compute.container.x.exploded", Vec::new()).await;
    for (subject, result, count) in [
        ("compute.container.*.stopped", "applied", 2),
        ("compute.container.*.stopped", "stale", 1),
        ("compute.container.*.stopped", "retried", 1),
        ("compute.container.*.stopped", "dead_lettered", 2),
        ("unknown", "unknown", 1),
        ("dlq", "ignored", 2),
    ] {
        consumer
            .metric(&format!(
                r#"events_total{{subject="{subject}",result="{result}"}} {count}"#
            ))
            .await;
    }
    consumer.stop().await;
}
