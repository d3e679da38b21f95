//! NATS goes away, and comes back with everything or with nothing.

use super::outage;
use super::site::{CIDRS, Origins, Publisher, Traffic};
use crate::control::{announced, request};
use crate::support::{Bus, Gateway, Options, eventually};

async fn start(bus: &Bus) -> (Gateway, Traffic) {
    let origins = Origins::start().await;
    let options = Options::routes(origins.routes())
        .bus(bus)
        .flag("--container-cidrs", CIDRS);
    let gateway = Gateway::start(options).await;
    let publisher = Publisher::start(bus.server.jetstream().await, 1).await;
    let (https, admin) = (gateway.addresses.https, gateway.admin);
    let traffic = Traffic::start(origins, publisher, https, admin).await;
    (gateway, traffic)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_nats_away_requests_are_served_and_events_wait() {
    let mut bus = Bus::start().await;
    let (gateway, mut traffic) = start(&bus).await;
    bus.server.stop();
    traffic.publisher().change_for(outage()).await;
    assert!(traffic.publisher().waiting().await > 20);
    traffic
        .until_ready("degraded", "nats", "disconnected")
        .await;
    bus.server.resume().await;
    traffic.end("NATS away").await;
    // Each rule was announced once, however often its event came.
    eventually("an empty outbox", || async {
        let (_, metrics) = request(gateway.admin, "GET", "/metrics").await;
        metrics.contains("edd_gateway_outbox_pending 0\n")
    })
    .await;
    let mut created: Vec<_> = announced(&bus)
        .await
        .into_iter()
        .filter(|(_, _, target)| target.is_some())
        .collect();
    let all = created.len();
    created.sort();
    created.dedup();
    assert_eq!(created.len(), all);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_store_of_nats_costs_no_route() {
    let mut bus = Bus::start().await;
    let (gateway, mut traffic) = start(&bus).await;
    bus.server.stop();
    traffic.publisher().change_for(outage() / 4).await;
    bus.server.wipe();
    bus.server.resume().await;
    // What happens from now on is in streams that were made anew.
    traffic.publisher().change_for(outage() / 4).await;
    traffic
        .end("NATS's store wiped (away for a quarter of that)")
        .await;
    gateway.stop().await;
}
