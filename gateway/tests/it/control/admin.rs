//! The admin endpoint: readiness, the live table, waiting and explaining.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::{get, ready, request, runs_at};
use crate::support::{Bus, Gateway, Options, eventually, replace_file};

const ROUTES: &str = "routes:\n- host: site.localhost\n  target: 127.0.0.1:9\n";

#[tokio::test(flavor = "multi_thread")]
async fn readiness_without_events_says_so() {
    let gateway = Gateway::start(Options::routes(ROUTES)).await;
    eventually("ready", || async {
        ready(gateway.admin).await == (200, "ready".into(), "off".into(), "ok".into())
    })
    .await;
    let (_, body) = get(gateway.admin, "/readyz").await;
    assert_eq!(body["revision"], gateway.table().revision);
    assert!(body["stale_since"].is_null());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_nats_and_says_since_when() {
    let mut bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    eventually("ready", || async {
        ready(gateway.admin).await == (200, "ready".into(), "connected".into(), "ok".into())
    })
    .await;
    bus.server.stop();
    eventually("degraded", || async {
        ready(gateway.admin).await == (200, "degraded".into(), "disconnected".into(), "ok".into())
    })
    .await;
    let (_, body) = get(gateway.admin, "/readyz").await;
    assert!(
        body["stale_since"]
            .as_str()
            .is_some_and(|since| since.ends_with('Z'))
    );
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_is_withheld_while_starting() {
    let mut bus = Bus::start().await;
    bus.server.stop();
    let begun = Instant::now();
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    let (code, ..) = ready(gateway.admin).await;
    // Two seconds without NATS end the start; a slow machine may be there already.
    assert!(code == 503 || begun.elapsed() > Duration::from_secs(2));
    eventually("the end of the start", || async {
        ready(gateway.admin).await.0 == 200
    })
    .await;
    assert!(begun.elapsed() >= Duration::from_secs(2));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_ends_without_usable_streams_too() {
    let bus = Bus::start().await;
    bus.js.delete_stream("COMPUTE").await.expect("deleted");
    let in_its_way = async_nats::jetstream::stream::Config {
        name: "OTHER".into(),
        subjects: vec!["compute.>".into()],
        ..Default::default()
    };
    bus.js.create_stream(in_its_way).await.expect("created");
    let gateway = Gateway::start(Options::routes(ROUTES).bus(&bus)).await;
    eventually("degraded", || async {
        ready(gateway.admin).await == (200, "degraded".into(), "connected".into(), "ok".into())
    })
    .await;
    bus.js.delete_stream("OTHER").await.expect("deleted");
    eventually("ready", || async {
        ready(gateway.admin).await == (200, "ready".into(), "connected".into(), "ok".into())
    })
    .await;
    gateway.stop().await;
}

/// R4: readiness was not lowered at SIGTERM.
#[tokio::test(flavor = "multi_thread")]
async fn readiness_is_withdrawn_while_draining() {
    let bus = Bus::start().await;
    // Longer than the test takes.
    let options = Options::default().flag("--drain-timeout", "60s");
    let gateway = Gateway::start(options.bus(&bus)).await;
    let container = TcpListener::bind("127.64.9.9:0").await.expect("bound");
    let target = container.local_addr().expect("bound").port();
    let port = gateway.port(0).port();
    bus.container("c1", 1, "127.64.9.9", &[(port, target)])
        .await;
    gateway
        .until("the rule", |table| table.decide_raw(port).is_ok())
        .await;
    // A raw stream keeps the drain from ending at once.
    let mut client = TcpStream::connect(gateway.port(0))
        .await
        .expect("connected");
    client.write_all(b"\0raw").await.expect("sent");
    let relayed = container.accept().await.expect("relayed");
    gateway.drain();
    eventually("draining", || async { gateway.shared.drain.is_draining() }).await;
    assert_eq!(ready(gateway.admin).await.0, 503);
    drop((client, relayed));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_table_can_be_read_and_explained() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::routes(ROUTES).bus(&bus)).await;
    let port = gateway.port(0).port();
    bus.container("c1", 7, "127.64.0.1", &[(80, 8080), (port, 9000)])
        .await;
    gateway
        .until("c1", |table| {
            runs_at(table, "c1", "127.64.0.1")
                && table
                    .container("c1")
                    .is_some_and(|c| c.rule(port).is_some())
        })
        .await;
    let (code, body) = get(gateway.admin, "/api/v1/routes").await;
    assert_eq!(code, 200);
    assert_eq!(body["routes"][0]["host"], "site.localhost");
    assert!(
        body["routes"][0]["origin"]
            .as_str()
            .is_some_and(|o| o.ends_with("routes.yaml:2"))
    );
    let (_, body) = get(gateway.admin, "/api/v1/containers").await;
    let c1 = &body["containers"][0];
    assert_eq!(c1["id"], "c1");
    assert_eq!(c1["host"], "c1.compute.localhost");
    assert_eq!(c1["address"], "127.64.0.1");
    assert_eq!(c1["rules"][0]["target_port"], 8080);
    let (_, body) = get(
        gateway.admin,
        "/api/v1/explain?url=https://site.localhost/x",
    )
    .await;
    assert!(
        body["outcome"]
            .as_str()
            .is_some_and(|o| o.contains("127.0.0.1:9"))
    );
    let (_, body) = get(gateway.admin, &format!("/api/v1/explain?tcp={port}")).await;
    assert_eq!(body["upstream"], "127.64.0.1:9000");
    let (_, body) = get(gateway.admin, "/api/v1/explain?ssh=c1").await;
    assert_eq!(body["rule"], "container c1, owner 7");
    for bad in ["", "?url=nonsense", "?tcp=x", "?url=http://a/&ssh=b"] {
        let (code, body) = get(gateway.admin, &format!("/api/v1/explain{bad}")).await;
        assert_eq!(code, 400, "{bad}: {body}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_with_the_revision_or_the_time() {
    let gateway = Gateway::start(Options::routes(ROUTES)).await;
    eventually("ready", || async {
        ready(gateway.admin).await.1 == "ready"
    })
    .await;
    let now = gateway.table().revision;
    let (code, body) = get(gateway.admin, &format!("/api/v1/wait?revision={now}")).await;
    assert_eq!((code, body["revision"].as_u64()), (200, Some(now)));
    let next = format!("/api/v1/wait?revision={}&timeout=60s", now + 1);
    let (waited, ()) = tokio::join!(get(gateway.admin, &next), async {
        replace_file(
            &gateway.path("routes.yaml"),
            "routes:\n- host: b.localhost\n  target: a:1\n",
        );
    });
    assert_eq!(waited.0, 200);
    assert_eq!(waited.1["revision"], now + 1);
    let never = "/api/v1/wait?revision=999999&timeout=50ms";
    assert_eq!(get(gateway.admin, never).await.0, 504);
    for bad in [
        "",
        "?revision=x",
        "?revision=1&timeout=soon",
        "?container=c1&ports=http",
        "?container=c1&keys=1,x",
        // A condition that is not understood is not fulfilled.
        "?revision=0&port=80",
    ] {
        let (code, _) = get(gateway.admin, &format!("/api/v1/wait{bad}")).await;
        assert_eq!(code, 400, "{bad}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_reading_is_possible() {
    let gateway = Gateway::start(Options::routes(ROUTES)).await;
    eventually("ready", || async { ready(gateway.admin).await.0 == 200 }).await;
    for path in ["/readyz", "/healthz", "/metrics", "/api/v1/routes"] {
        assert_eq!(request(gateway.admin, "GET", path).await.0, 200, "{path}");
        for method in ["POST", "PUT", "DELETE"] {
            assert_eq!(
                request(gateway.admin, method, path).await.0,
                405,
                "{method} {path}"
            );
        }
    }
    assert_eq!(request(gateway.admin, "GET", "/nothing").await.0, 404);
    let (_, metrics) = request(gateway.admin, "GET", "/metrics").await;
    for family in [
        "edd_gateway_route_table_revision",
        "edd_gateway_route_table_entries",
        "edd_gateway_outbox_pending",
    ] {
        assert!(metrics.contains(family), "{family}");
    }
    gateway.stop().await;
}
