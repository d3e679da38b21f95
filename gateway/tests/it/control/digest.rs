//! What compute believes and the gateway does not: found, reported, repaired.

use edd_proto::compute;

use super::snapshot::{Compute, container};
use super::{request, runs_at};
use crate::support::{Bus, Gateway, Options, eventually};

async fn metric(gateway: &Gateway, name: &str) -> u64 {
    let (_, body) = request(gateway.admin, "GET", "/metrics").await;
    let mut values = body
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    values.next().expect("the metric")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_differs_from_computes_is_reported_and_repaired() {
    let bus = Bus::start().await;
    bus.container("right", 7, "127.64.0.1", &[(80, 8080)]).await;
    bus.container("extra", 7, "127.64.0.2", &[]).await;
    bus.container("more", 7, "127.64.0.3", &[(80, 1), (443, 2)])
        .await;
    bus.created("wrong", 7).await;
    bus.ssh("wrong", true).await;
    let started = compute::ContainerStarted {
        container_id: "wrong".into(),
        external_ip: "127.64.0.4".into(),
        ..Default::default()
    };
    bus.publish("wrong", 9, started).await;
    let facts = [
        container("right", 9, "127.64.0.1", &[(80, 8080)]),
        container("more", 9, "127.64.0.3", &[(80, 1)]),
        container("lost", 9, "127.64.0.5", &[(80, 8080)]),
        // The same version, another address.
        container("wrong", 9, "127.64.0.6", &[]),
    ];
    let _compute = Compute::start(&bus, facts.concat(), None).await;
    let options = Options::default().bus(&bus).flag("--digest-interval", "1s");
    let gateway = Gateway::start(options).await;
    gateway
        .until("the repair", |table| {
            let more = table.container("more");
            runs_at(table, "wrong", "127.64.0.6")
                && runs_at(table, "lost", "127.64.0.5")
                && table.container("extra").is_none()
                && more.is_some_and(|more| more.rule(443).is_none() && more.rule(80).is_some())
        })
        .await;
    assert!(runs_at(&gateway.table(), "right", "127.64.0.1"));
    assert_eq!(metric(&gateway, "edd_gateway_digest_drift_total").await, 1);
    eventually("equal", || async {
        metric(&gateway, "edd_gateway_digest_equal_timestamp_seconds").await > 0
    })
    .await;
    assert_eq!(metric(&gateway, "edd_gateway_digest_drift_total").await, 1);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_equal_state_is_left_alone() {
    let bus = Bus::start().await;
    bus.container("c1", 7, "127.64.0.1", &[(80, 8080)]).await;
    let facts = container("c1", 9, "127.64.0.1", &[(80, 8080)]);
    let _compute = Compute::start(&bus, facts, None).await;
    let options = Options::default().bus(&bus).flag("--digest-interval", "1s");
    let gateway = Gateway::start(options).await;
    eventually("equal", || async {
        metric(&gateway, "edd_gateway_digest_equal_timestamp_seconds").await > 0
    })
    .await;
    assert_eq!(metric(&gateway, "edd_gateway_digest_drift_total").await, 0);
    gateway.stop().await;
}
