//! Several gateways that start at once, and one that starts while another dies.

use std::time::{Duration, Instant};

use edd_events::bus::{Bus as _, Durable, NatsBus, Subscription as _};
use edd_events::consumer::{ACK_WAIT, ConsumerSpec};
use edd_events::stream::COMPUTE;
use edd_route::RouteTable;
use edd_store::testing::Postgres;
use tokio::time::timeout;

use super::ready;
use super::replicas::on;
use crate::support::{Bus, DEADLINE, Gateway, Options, eventually};

/// The streams are full, and each gateway is given a part of them: the last event of
/// all comes to one only. Nothing new arrives that would tell the others.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_start_at_once_on_a_full_stream_become_ready() {
    const COUNT: usize = 400;
    let bus = Bus::start().await;
    for n in 0..COUNT {
        let id = format!("c{n}");
        let address = format!("127.64.{}.{}", n / 200, n % 200);
        bus.container(&id, 1, &address, &[(80, 8080)]).await;
    }
    let url = Postgres::shared().await.database().await.to_string();
    let begun = Instant::now();
    let (one, two, three) = tokio::join!(
        Gateway::start(on(&bus, &url)),
        Gateway::start(on(&bus, &url)),
        Gateway::start(on(&bus, &url)),
    );
    let gateways = [one, two, three];
    for gateway in &gateways {
        eventually("ready", || async {
            ready(gateway.admin).await.1 == "ready"
        })
        .await;
        let all = |table: &RouteTable| {
            let served = table.containers().filter(|c| c.rule(80).is_some());
            served.count() == COUNT
        };
        assert!(all(&gateway.table()), "whoever is ready has all of it");
    }
    assert!(begun.elapsed() < ACK_WAIT, "{:?}", begun.elapsed());
    for gateway in gateways {
        gateway.stop().await;
    }
}

/// What another one was given that dies with it comes again after the ack wait only: whoever
/// catches up beside it reads that besides, and is ready long before.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_starts_beside_one_that_dies_waits_for_no_ack_wait() {
    const COUNT: usize = 1_000;
    const TAKEN: usize = 100;
    let bus = Bus::start().await;
    for n in 0..COUNT {
        let id = format!("c{n}");
        let address = format!("127.64.{}.{}", n / 200, n % 200);
        bus.container(&id, 1, &address, &[(80, 8080)]).await;
    }
    let spec = ConsumerSpec {
        stream: COMPUTE,
        durable: "gateway-service",
        filter: "compute.>",
        batch_max: TAKEN,
    };
    let nats = NatsBus::new(bus.js.clone());
    let binding = nats.bind(&Durable::from(&spec), 1).await.expect("bound");
    let mut dies = binding.subscription;
    for _ in 0..TAKEN {
        let next = timeout(DEADLINE, dies.next()).await.expect("in time");
        next.expect("a message");
    }
    let begun = Instant::now();
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    // In the middle of it, if there is anything left by then.
    gateway
        .until("the first", |table| table.containers().len() > 0)
        .await;
    for _ in 0..TAKEN {
        let Ok(next) = timeout(Duration::from_millis(100), dies.next()).await else {
            break;
        };
        next.expect("a message");
    }
    drop(dies);
    eventually("ready", || async {
        ready(gateway.admin).await.1 == "ready"
    })
    .await;
    assert!(begun.elapsed() < ACK_WAIT, "{:?}", begun.elapsed());
    let table = gateway.table();
    let served = table.containers().filter(|c| c.rule(80).is_some());
    assert_eq!(served.count(), COUNT, "whoever is ready has all of it");
    let state = nats.consumer_state(COMPUTE.name, spec.durable).await;
    let open = state.expect("an answer").expect("a consumer").ack_pending;
    assert!(
        open >= TAKEN as u64,
        "{open}: nobody has acknowledged these"
    );
    gateway.stop().await;
}
