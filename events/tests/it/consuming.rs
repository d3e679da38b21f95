//! From the outbox of one service to the handler of another.

use std::time::SystemTime;

use edd_events::{Metrics, outbox};

use crate::support::{Recorder, Running, Service, created, eventually, server, unsettled};

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
        unsettled(&js, &crate::support::SPEC).await == 0
    })
    .await;
    eventually("an empty outbox", || async {
        outbox::pending(&service.pool).await.unwrap() == 0
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
