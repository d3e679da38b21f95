//! Several gateways on one PostgreSQL that start at once.

use std::time::Instant;

use edd_events::consumer::ACK_WAIT;
use edd_route::RouteTable;
use edd_store::testing::Postgres;

use super::ready;
use super::replicas::on;
use crate::support::{Bus, Gateway, eventually};

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
