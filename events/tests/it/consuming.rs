//! From the outbox of one service to the handler of another.

use std::time::{Duration, Instant, SystemTime};

use edd_events::{
    Metrics,
    consumer::{ACK_WAIT, ConsumerSpec, Unavailable, Verdict},
    envelope::{Cause, seal},
    event::Payload,
    outbox, stream,
    subject::EntityId,
};
use edd_proto::compute::ContainerStarted;

use crate::support::{
    Recorder, Running, SPEC, Service, created, eventually, server, stored, unsettled,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_from_the_outbox_to_the_handler_once_and_in_order() {
    let (_server, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let mut consumer = Running::start(js.clone(), Recorder::new());
    consumer.caught_up().await;

    let entries: Vec<_> = (0..1000).map(created).collect();
    for part in entries.chunks(100) {
        service.write(part).await;
    }
    consumer.recorder.saw(1000).await;
    eventually("all acknowledged", || async {
        unsettled(&js, &SPEC).await == 0
    })
    .await;
    eventually("an empty outbox", || async {
        outbox::pending(&service.database).await.unwrap() == 0
    })
    .await;

    let expected: Vec<_> = (0..1000).map(|n| format!("c{n}")).collect();
    assert_eq!(consumer.recorder.entities(), expected);
    consumer.recorder.look(|seen| {
        let first = &seen.deliveries[0];
        assert_eq!(first.event.event_id, entries[0].event_id);
        assert_eq!(first.event.source, "edd-compute");
        assert_eq!(
            (first.position.stream.as_str(), first.position.sequence),
            ("COMPUTE", 1)
        );
        assert_eq!(first.deliveries, 1);
        assert!(first.position.published_at <= SystemTime::now());
        assert!(seen.batches.iter().all(|size| *size <= 256));
    });
    consumer
        .metric(r#"events_total{subject="compute.container.*.created",result="applied"} 1000"#)
        .await;
    consumer
        .metric(r#"event_acks_total{stream="COMPUTE",kind="ack"} 1000"#)
        .await;
    consumer.stop().await;
    service.stop().await;
}

/// The latency that users see begins here: nothing may wait for a batch to fill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_event_is_handed_over_without_waiting_for_more() {
    let (_server, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let mut consumer = Running::start(js.clone(), Recorder::new());
    consumer.caught_up().await;

    for n in 0..200 {
        service.write(&[created(n)]).await;
        consumer.recorder.saw(n + 1).await;
    }
    let mut took = consumer.recorder.look(|seen| seen.latencies.clone());
    took.sort();
    println!(
        "stream to handler: median {:?}, p99 {:?}",
        took[100], took[197]
    );
    // Far above what it takes (under a millisecond), below any poll or timer. Of the quickest
    // quarter: the others may have waited for the machine.
    assert!(took[50] < Duration::from_millis(20), "{:?}", took[50]);
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_grow_up_to_their_limit_while_the_handler_is_busy() {
    let (_server, js) = server().await;
    // A stream full of events is the busiest a handler can get.
    let service = Service::start(js.clone(), Metrics::default()).await;
    service
        .write(&(0..600).map(created).collect::<Vec<_>>())
        .await;
    eventually("an empty outbox", || async {
        outbox::pending(&service.database).await.unwrap() == 0
    })
    .await;

    let spec = ConsumerSpec {
        batch_max: 50,
        ..SPEC
    };
    let slow = Recorder::answering(|_| {
        std::thread::sleep(Duration::from_millis(1));
        Ok(Verdict::Applied)
    });
    let mut consumer = Running::with_spec(js, spec, slow);
    consumer.caught_up().await;
    assert_eq!(
        consumer.recorder.entities().len(),
        600,
        "caught up means all of them"
    );
    consumer.recorder.look(|seen| {
        assert!(
            seen.batches.iter().all(|size| *size <= 50),
            "{:?}",
            seen.batches
        );
        // What is asked for at a time comes in two parts at worst.
        assert!(
            seen.batches.iter().any(|size| *size >= 25),
            "{:?}",
            seen.batches
        );
    });
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_published_twice_is_in_the_stream_once() {
    let (_server, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let entry = created(1);
    // The second time is a relay that crashed before it deleted the row.
    for _ in 0..2 {
        service.write(std::slice::from_ref(&entry)).await;
        eventually("an empty outbox", || async {
            outbox::pending(&service.database).await.unwrap() == 0
        })
        .await;
    }
    let found = stored(&js, &stream::COMPUTE, &entry.subject).await;
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].headers.get("Nats-Msg-Id").unwrap().as_str(),
        entry.event_id
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_caused_an_event_arrives_with_it() {
    let (_server, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let consumer = Running::start(js.clone(), Recorder::new());
    let cause = Cause {
        correlation_id: Some("request-1".into()),
        causation_id: Some("event-1".into()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
    };
    let started = ContainerStarted {
        container_id: "abc".into(),
        external_ip: "10.0.0.7".into(),
        ..ContainerStarted::default()
    };
    let entity = EntityId::try_from("abc").unwrap();
    service
        .write(&[seal("edd-compute", &entity, 4, started, &cause)])
        .await;
    consumer.recorder.saw(1).await;
    consumer.recorder.look(|seen| {
        let event = &seen.deliveries[0].event;
        assert_eq!(event.correlation_id, cause.correlation_id);
        assert_eq!(event.causation_id, cause.causation_id);
        assert_eq!(event.traceparent, cause.traceparent);
        assert_eq!(event.version, 4);
        assert!(event.occurred_at.unwrap() <= SystemTime::now());
        let Payload::ContainerStarted(message) = &event.payload else {
            panic!("{event:?}")
        };
        assert_eq!(message.external_ip, "10.0.0.7");
    });
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_events_are_acknowledged_and_counted() {
    let (_server, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let consumer = Running::start(js.clone(), Recorder::answering(|_| Ok(Verdict::Stale)));
    service.write(&[created(1)]).await;
    consumer
        .metric(r#"events_total{subject="compute.container.*.created",result="stale"} 1"#)
        .await;
    eventually("acknowledged", || async {
        unsettled(&js, &SPEC).await == 0
    })
    .await;
    consumer.stop().await;
    service.stop().await;
}

/// A second process of the same durable gets at once what the first had been
/// given and did not handle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stopping_consumer_holds_goes_to_the_next_at_once() {
    let (_server, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let broken = Recorder::answering(|_| Err(Unavailable("no database".into())));
    let first = Running::start(js.clone(), broken);
    service
        .write(&(0..10).map(created).collect::<Vec<_>>())
        .await;
    eventually("a first attempt", || async {
        first.recorder.look(|seen| seen.calls) > 1
    })
    .await;
    first.stop().await;

    let started = Instant::now();
    let second = Running::start(js.clone(), Recorder::new());
    second.recorder.saw(10).await;
    assert!(started.elapsed() < ACK_WAIT / 2, "{:?}", started.elapsed());
    second.stop().await;
    service.stop().await;
}
