//! NATS as a cluster of three: its leader dies, and dies again.

use edd_events::testing::NatsCluster;

use super::outage;
use super::site::{CIDRS, Origins, Publisher, Traffic};
use crate::support::{Gateway, Options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_a_nats_cluster_dies_and_nothing_is_lost() {
    let mut nats = NatsCluster::start().await;
    let origins = Origins::start().await;
    let options = Options::routes(origins.routes())
        .flag("--nats-url", nats.url())
        .flag("--nats-replicas", "3")
        .flag("--container-cidrs", CIDRS);
    let gateway = Gateway::start(options).await;
    let publisher = Publisher::start(nats.jetstream().await, 3).await;
    let (https, admin) = (gateway.addresses.https, gateway.admin);
    let mut traffic = Traffic::start(origins, publisher, https, admin).await;
    for _ in 0..2 {
        let leader = nats.leader("COMPUTE").await;
        nats.stop(leader);
        traffic.publisher().change_for(outage() / 2).await;
        nats.resume(leader).await;
    }
    traffic
        .end("leader of a NATS cluster killed twice (half of that each)")
        .await;
    gateway.stop().await;
}
