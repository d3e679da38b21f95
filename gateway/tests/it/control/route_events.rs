//! `gateway.route.*`: what others hear of the static routes, once each.

use edd_proto::gateway::{RouteRegistered, RouteUnregistered};
use edd_store::testing::Postgres;
use prost::Message as _;

use super::{messages, ready};
use crate::support::{Bus, Gateway, Options, eventually, replace_file};

/// What was said so far: `+host/path=target` and `-host/path`.
async fn said(bus: &Bus) -> Vec<String> {
    let mut said = Vec::new();
    for (subject, payload) in messages(bus, "GATEWAY").await {
        if subject.ends_with(".registered") {
            let route = RouteRegistered::decode(&*payload).expect("a message");
            assert_eq!(
                subject,
                format!("gateway.route.{}.registered", route.route_id)
            );
            let metadata = route.metadata.expect("metadata");
            assert!(metadata.version > 0 && metadata.source == "edd-gateway");
            said.push(format!(
                "+{}{}={}",
                route.host, route.path_prefix, route.target
            ));
        } else if subject.ends_with(".unregistered") {
            let route = RouteUnregistered::decode(&*payload).expect("a message");
            assert_eq!(
                subject,
                format!("gateway.route.{}.unregistered", route.route_id)
            );
            said.push(format!("-{}{}", route.host, route.path_prefix));
        }
    }
    said
}

async fn until_said(bus: &Bus, expected: &[&str]) {
    eventually(&format!("{expected:?}"), || async {
        said(bus).await.len() >= expected.len()
    })
    .await;
    assert_eq!(said(bus).await, expected);
}

async fn until_ready(gateway: &Gateway) {
    eventually("ready", || async {
        ready(gateway.admin).await.1 == "ready"
    })
    .await;
}

fn routes(list: &[(&str, &str, u16)]) -> String {
    let route = |(host, path, port): &(&str, &str, u16)| {
        format!("- host: {host}.localhost\n  path: {path}\n  target: 127.0.0.1:{port}\n")
    };
    format!("routes:\n{}", list.iter().map(route).collect::<String>())
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_announced_as_they_appear_change_and_vanish_once_each() {
    let bus = Bus::start().await;
    let first = routes(&[("a", "/", 1), ("b", "/x", 2)]);
    let options = Options::routes(&first).bus(&bus);
    let gateway = Gateway::start(options.clone()).await;
    let mut expected = vec!["+a.localhost/=127.0.0.1:1", "+b.localhost/x=127.0.0.1:2"];
    until_said(&bus, &expected).await;

    // One goes, one leads elsewhere, one comes.
    let second = routes(&[("a", "/", 9), ("c", "/", 3)]);
    replace_file(&gateway.path("routes.yaml"), &second);
    expected.extend([
        "-b.localhost/x",
        "+a.localhost/=127.0.0.1:9",
        "+c.localhost/=127.0.0.1:3",
    ]);
    until_said(&bus, &expected).await;

    // An option is nobody else's business.
    let revision = gateway.table().revision;
    let third = second.replace("127.0.0.1:3\n", "127.0.0.1:3\n  timeout: 5s\n");
    replace_file(&gateway.path("routes.yaml"), &third);
    gateway
        .until("the option", |table| table.revision > revision)
        .await;

    // The same file again, after a restart: nothing. Another one: what changed.
    let folder = Some(gateway.folder.clone());
    gateway.stop().await;
    let again = |routes: &str| Options {
        routes: routes.to_owned(),
        folder: folder.clone(),
        ..options.clone()
    };
    let gateway = Gateway::start(again(&third)).await;
    until_ready(&gateway).await;
    gateway.stop().await;
    let gateway = Gateway::start(again(&routes(&[("a", "/", 9)]))).await;
    expected.push("-c.localhost/");
    until_said(&bus, &expected).await;

    gateway.stop().await;
    assert_eq!(said(&bus).await, expected);
}

/// Replicas read the same file; whoever is first says it.
#[tokio::test(flavor = "multi_thread")]
async fn gateways_on_one_database_announce_a_route_once() {
    let bus = Bus::start().await;
    let url = Postgres::shared().await.database().await.to_string();
    let first = routes(&[("a", "/", 1), ("b", "/x", 2)]);
    let options = Options::routes(&first)
        .bus(&bus)
        .flag("--database-url", url);
    let (one, two) = tokio::join!(
        Gateway::start(options.clone()),
        Gateway::start(options.clone())
    );
    until_ready(&one).await;
    until_ready(&two).await;
    let mut expected = vec!["+a.localhost/=127.0.0.1:1", "+b.localhost/x=127.0.0.1:2"];
    until_said(&bus, &expected).await;
    let second = routes(&[("b", "/x", 2)]);
    for gateway in [&one, &two] {
        replace_file(&gateway.path("routes.yaml"), &second);
    }
    for gateway in [&one, &two] {
        gateway
            .until("one route", |table| table.static_specs().count() == 1)
            .await;
    }
    expected.push("-a.localhost/");
    until_said(&bus, &expected).await;
    one.stop().await;
    two.stop().await;
    assert_eq!(said(&bus).await, expected);
}
