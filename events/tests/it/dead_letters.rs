//! Events that nobody can use: retried with pauses, or put aside at once.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use edd_events::{
    Metrics,
    consumer::{ACK_PENDING_MAX, ACK_WAIT, DELIVERIES_MAX, RETRY_DELAYS, Unavailable, Verdict},
    envelope::{Cause, seal},
    stream::{AUTH, COMPUTE, MESSAGE_LEN_MAX, ensure},
    subject::EntityId,
    testing::NatsServer,
};
use edd_proto::{auth::UserCreated, common::EventMetadata, compute::ContainerStopped};
use prost::Message as _;

use crate::support::{
    Recorder, Running, SPEC, Service, created, eventually, publish, server, stored, unsettled,
};

const DLQ: &str = "compute.container.created.dlq";

#[test]
fn retries_follow_the_contract() {
    let seconds = RETRY_DELAYS.map(|delay| delay.as_secs());
    assert_eq!(seconds, [1, 5, 30, 30]);
    assert_eq!(
        (DELIVERIES_MAX, ACK_WAIT.as_secs(), ACK_PENDING_MAX),
        (5, 30, 10_000)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_durable_consumer_is_configured_as_the_contract_says() {
    let (_server, js) = server().await;
    let mut consumer = Running::start(js.clone(), Recorder::new());
    consumer.caught_up().await;
    let stream = js.get_stream("COMPUTE").await.unwrap();
    let config = stream
        .consumer_info("gateway-service")
        .await
        .unwrap()
        .config;
    assert_eq!(config.durable_name.as_deref(), Some("gateway-service"));
    assert_eq!(config.filter_subject, "compute.>");
    assert_eq!((config.max_deliver, config.max_ack_pending), (5, 10_000));
    assert_eq!(config.ack_wait, Duration::from_secs(30));
    assert!(config.backoff.is_empty());
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_fails_five_times_becomes_a_dead_letter() {
    let (_server, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let consumer = Running::start(
        js.clone(),
        Recorder::answering(|delivery| {
            Ok(match delivery.event.entity.as_str() {
                "c1" => Verdict::Retry("port is\r\ntaken".into()),
                _ => Verdict::Applied,
            })
        }),
    );
    let entries = [created(0), created(1), created(2)];
    service.write(&entries).await;
    eventually("a dead letter", || async {
        stored(&js, &COMPUTE, DLQ).await.len() == 1
    })
    .await;
    let letter = stored(&js, &COMPUTE, DLQ).await.remove(0);
    assert_eq!(letter.payload, entries[1].payload);
    let header = |name: &str| {
        letter
            .headers
            .get(name)
            .map(|value| value.as_str().to_owned())
    };
    assert_eq!(
        header("Edd-Dlq-Subject").as_deref(),
        Some("compute.container.c1.created")
    );
    assert_eq!(header("Edd-Dlq-Reason").as_deref(), Some("port is  taken"));
    assert_eq!(
        header("Edd-Dlq-Consumer").as_deref(),
        Some("gateway-service")
    );
    assert_eq!(header("Edd-Dlq-Deliveries").as_deref(), Some("5"));
    assert_eq!(header("Edd-Dlq-Stream-Seq").as_deref(), Some("2"));
    assert_eq!(
        header("Nats-Msg-Id").as_deref(),
        Some("dlq:COMPUTE:gateway-service:2")
    );

    eventually("all acknowledged", || async {
        unsettled(&js, &SPEC).await == 0
    })
    .await;
    let deliveries = consumer.recorder.look(|seen| {
        let of_c1 = seen
            .deliveries
            .iter()
            .filter(|d| d.event.entity.as_str() == "c1");
        of_c1
            .map(|delivery| delivery.deliveries)
            .collect::<Vec<_>>()
    });
    assert_eq!(deliveries, [1, 2, 3, 4, 5]);
    let others = consumer
        .recorder
        .entities()
        .iter()
        .filter(|id| *id != "c1")
        .count();
    assert_eq!(others, 2, "the failing event holds up nobody");
    consumer
        .metric(r#"events_total{subject="compute.container.*.created",result="dead_lettered"} 1"#)
        .await;
    consumer.metric(r#"dlq_messages{stream="COMPUTE"} 1"#).await;
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_retry_comes_after_a_second() {
    let (_server, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let times = Arc::new(Mutex::new(Vec::new()));
    let recorder = Recorder::answering({
        let times = Arc::clone(&times);
        move |delivery| {
            times.lock().unwrap().push(Instant::now());
            Ok(match delivery.deliveries {
                1 => Verdict::Retry("not yet".into()),
                _ => Verdict::Applied,
            })
        }
    });
    let consumer = Running::with_real_delays(js.clone(), recorder);
    service.write(&[created(1)]).await;
    consumer.recorder.saw(2).await;
    let pause = {
        let times = times.lock().unwrap();
        times[1] - times[0]
    };
    assert!(pause > Duration::from_millis(900), "{pause:?}");
    assert!(pause < RETRY_DELAYS[1], "{pause:?}");
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_events_are_dead_letters_at_once() {
    let (_server, js) = server().await;
    let mut consumer = Running::start(js.clone(), Recorder::new());
    consumer.caught_up().await;
    let stopped = |id: &str, version| {
        let metadata = Some(EventMetadata {
            version,
            ..EventMetadata::default()
        });
        ContainerStopped {
            metadata,
            container_id: id.into(),
        }
        .encode_to_vec()
    };
    let created = |user_id| {
        let container_id = "abc".to_owned();
        let message = edd_proto::compute::ContainerCreated {
            container_id,
            user_id,
            ..Default::default()
        };
        message.encode_to_vec()
    };
    let huge_id = "x".repeat(65);
    let cases: Vec<(String, Vec<u8>, &str)> = vec![
        (
            "compute.container.abc.stopped".into(),
            b"\xff\xff garbage".to_vec(),
            "does not decode",
        ),
        (
            "compute.container.abc.stopped".into(),
            stopped("other", 1),
            r#"payload "other""#,
        ),
        (
            "compute.container.abc.stopped".into(),
            stopped("", 1),
            r#"payload """#,
        ),
        (
            "compute.container.abc.stopped".into(),
            stopped("abc", -1),
            "version -1",
        ),
        (
            "compute.container.abc.created".into(),
            created(0),
            "user id 0",
        ),
        (
            "compute.container.abc.created".into(),
            created(-5),
            "user id -5",
        ),
        (
            "compute.container.a+b.stopped".into(),
            stopped("a+b", 1),
            "outside",
        ),
        (
            format!("compute.container.{huge_id}.stopped"),
            stopped(&huge_id, 1),
            "longer than 64",
        ),
    ];
    for (subject, payload, _) in &cases {
        publish(&js, subject, payload.clone()).await;
    }
    publish(&js, "compute.container.good.stopped", stopped("good", 1)).await;
    consumer.recorder.saw(1).await;
    eventually("all settled", || async { unsettled(&js, &SPEC).await == 0 }).await;

    let mut letters = stored(&js, &COMPUTE, "compute.container.stopped.dlq").await;
    letters.extend(stored(&js, &COMPUTE, DLQ).await);
    assert_eq!(letters.len(), cases.len());
    for (subject, payload, reason) in &cases {
        let found = letters.iter().find(|letter| {
            letter.payload == *payload
                && letter.headers.get("Edd-Dlq-Subject").unwrap().as_str() == subject
        });
        let headers = &found
            .unwrap_or_else(|| panic!("no dead letter of {subject}"))
            .headers;
        let why = headers.get("Edd-Dlq-Reason").unwrap().as_str();
        assert!(why.contains(reason), "{subject}: {why}");
        assert_eq!(headers.get("Edd-Dlq-Deliveries").unwrap().as_str(), "1");
    }
    let recorder = consumer.stop().await;
    assert_eq!(
        recorder.entities(),
        ["good"],
        "the handler sees good events only"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_event_is_a_dead_letter_at_once_and_keeps_its_cause() {
    let (_server, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let reject = Recorder::answering(|_| Ok(Verdict::Reject("port 81 is not allowed".into())));
    let consumer = Running::start(js.clone(), reject);
    let cause = Cause {
        correlation_id: Some("r7".into()),
        ..Cause::default()
    };
    let message = ContainerStopped {
        container_id: "abc".into(),
        ..Default::default()
    };
    let entity = EntityId::try_from("abc").unwrap();
    service
        .write(&[seal("edd-compute", &entity, 1, message, &cause)])
        .await;
    let dlq = "compute.container.stopped.dlq";
    eventually("a dead letter", || async {
        stored(&js, &COMPUTE, dlq).await.len() == 1
    })
    .await;
    let letter = stored(&js, &COMPUTE, dlq).await.remove(0);
    let header = |name: &str| letter.headers.get(name).unwrap().as_str().to_owned();
    assert_eq!(header("Edd-Dlq-Deliveries"), "1");
    assert_eq!(header("Edd-Dlq-Reason"), "port 81 is not allowed");
    assert_eq!(header("Edd-Correlation-Id"), "r7");
    consumer.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_and_unknown_subjects_are_acknowledged_and_ignored() {
    let (_server, js) = server().await;
    let mut consumer = Running::start(js.clone(), Recorder::new());
    consumer.caught_up().await;
    for subject in [
        DLQ,
        "compute.container.abc.exploded",
        "compute.sshkey.1.2.3.created",
    ] {
        publish(&js, subject, b"anything".to_vec()).await;
    }
    consumer
        .metric(r#"events_total{subject="dlq",result="ignored"} 1"#)
        .await;
    consumer
        .metric(r#"events_total{subject="unknown",result="unknown"} 2"#)
        .await;
    eventually("all acknowledged", || async {
        unsettled(&js, &SPEC).await == 0
    })
    .await;
    assert_eq!(
        stored(&js, &COMPUTE, DLQ).await.len(),
        1,
        "no dead letter of a dead letter"
    );
    let recorder = consumer.stop().await;
    assert_eq!(recorder.look(|seen| seen.calls), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_panics_on_one_event_still_handles_the_others() {
    let (_server, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let consumer = Running::start(
        js.clone(),
        Recorder::answering(|delivery| {
            assert_ne!(delivery.event.entity.as_str(), "c3", "a bug of the handler");
            Ok(Verdict::Applied)
        }),
    );
    service
        .write(&(0..6).map(created).collect::<Vec<_>>())
        .await;
    eventually("a dead letter", || async {
        stored(&js, &COMPUTE, DLQ).await.len() == 1
    })
    .await;
    let letter = stored(&js, &COMPUTE, DLQ).await.remove(0);
    let header = |name: &str| letter.headers.get(name).unwrap().as_str().to_owned();
    assert_eq!(header("Edd-Dlq-Subject"), "compute.container.c3.created");
    assert_eq!(header("Edd-Dlq-Reason"), "the handler panicked");
    let handled: HashSet<_> = consumer.recorder.entities().into_iter().collect();
    assert_eq!(handled.len(), 5);
    consumer.stop().await;
    service.stop().await;
}

/// The stream holds the events that lie outside a consumer's filter too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_of_users_sees_no_sessions() {
    let (_server, js) = server().await;
    let spec = edd_events::consumer::ConsumerSpec {
        stream: AUTH,
        durable: "compute-service",
        filter: "auth.user.>",
        batch_max: 16,
    };
    let mut consumer = Running::with_spec(js.clone(), spec, Recorder::new());
    consumer.caught_up().await;
    publish(&js, "auth.session.s1.created", b"not looked at".to_vec()).await;
    let user = UserCreated {
        user_id: 7,
        username: "u".into(),
        ..Default::default()
    };
    let sequence = publish(&js, "auth.user.7.created", user.encode_to_vec()).await;
    consumer.recorder.saw(1).await;
    let recorder = consumer.stop().await;
    recorder.look(|seen| {
        let event = &seen.deliveries[0].event;
        assert_eq!(
            event.event_id,
            format!("AUTH:{sequence}"),
            "no id of its own"
        );
        assert_eq!(event.version, 0);
    });
}

/// The last chance of an event that the world kept from being handled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_at_its_last_delivery_does_not_vanish_with_a_shutdown() {
    let (_server, js) = server().await;
    let service = Service::start(js.clone(), Metrics::default()).await;
    let consumer = Running::start(
        js.clone(),
        Recorder::answering(|delivery| match delivery.deliveries {
            5 => Err(Unavailable("no database".into())),
            _ => Ok(Verdict::Retry("not yet".into())),
        }),
    );
    service.write(&[created(1)]).await;
    eventually("the fifth delivery", || async {
        consumer.recorder.look(|seen| seen.calls) > 5
    })
    .await;
    assert!(
        stored(&js, &COMPUTE, DLQ).await.is_empty(),
        "a broken world makes no dead letters"
    );
    consumer.stop().await;
    assert_eq!(stored(&js, &COMPUTE, DLQ).await.len(), 1);
    service.stop().await;
}

/// The server counts headers as part of the message, and a dead letter has more
/// of them than its original.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_event_as_large_as_the_server_allows_leaves_a_dead_letter_that_says_so() {
    let (_server, js) = server().await;
    let mut consumer = Running::start(js.clone(), Recorder::new());
    consumer.caught_up().await;
    let huge = vec![0xff; js.client().max_payload() - 10];
    let sequence = publish(&js, "compute.container.abc.created", huge).await;
    eventually("a dead letter", || async {
        stored(&js, &COMPUTE, DLQ).await.len() == 1
    })
    .await;
    let letter = stored(&js, &COMPUTE, DLQ).await.remove(0);
    let header = |name: &str| letter.headers.get(name).unwrap().as_str().to_owned();
    assert_eq!(header("Edd-Dlq-Payload-Omitted"), "true");
    assert_eq!(header("Edd-Dlq-Stream-Seq"), sequence.to_string());
    assert!(letter.payload.is_empty());
    eventually("all acknowledged", || async {
        unsettled(&js, &SPEC).await == 0
    })
    .await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_larger_than_the_stream_takes_goes_without_its_payload() {
    let config = "max_payload: 4194304\njetstream { store_dir: $EDD_NATS_STORE_DIR }";
    let nats = NatsServer::start_with(config, Vec::new()).await;
    let js = nats.jetstream().await;
    ensure(&js, &COMPUTE, 1).await.unwrap();
    // Just fits; what the letter says about it does not.
    let len = usize::try_from(MESSAGE_LEN_MAX).unwrap() - 8;
    publish(&js, "compute.container.c1.created", vec![0xff; len]).await;
    let running = Running::start(js.clone(), Recorder::new());
    let dlq = "compute.container.created.dlq";
    eventually("the letter", || async {
        stored(&js, &COMPUTE, dlq).await.len() == 1
    })
    .await;
    let letters = stored(&js, &COMPUTE, dlq).await;
    assert!(letters[0].payload.is_empty());
    let omitted = letters[0].headers.get("Edd-Dlq-Payload-Omitted");
    assert_eq!(omitted.map(|value| value.as_str()), Some("true"));
    running.stop().await;
}
