//! Bounds and drain of the HTTP server.

use std::{sync::Arc, time::Duration};

use axum::{Router, routing::get};
use edd_daemon::{
    admin,
    server::{Limits, Peer},
};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::Notify, time::timeout};

use crate::support::{DEADLINE, exchange, read_to_end, read_until, start};

#[tokio::test]
async fn drain_finishes_the_request_under_way_and_closes_idle_connections() {
    let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let router = Router::new().route("/quick", get(async || "quick")).route(
        "/slow",
        get({
            let (entered, release) = (Arc::clone(&entered), Arc::clone(&release));
            async move || {
                entered.notify_one();
                release.notified().await;
                "finished"
            }
        }),
    );
    let server = start(router, Limits::default()).await;
    let mut idle = TcpStream::connect(server.addr).await.unwrap();
    idle.write_all(b"GET /quick HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut idle, "quick").await;
    let mut busy = TcpStream::connect(server.addr).await.unwrap();
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    entered.notified().await;

    server.shutdown.cancel();
    assert_eq!(read_to_end(&mut idle).await, "");
    assert!(!server.task.is_finished());
    release.notify_one();
    assert!(read_to_end(&mut busy).await.ends_with("finished"));
    timeout(DEADLINE, server.task)
        .await
        .expect("the drain ends")
        .unwrap();
    assert!(
        TcpStream::connect(server.addr).await.is_err(),
        "still listening"
    );
}

#[tokio::test]
async fn drain_cuts_what_does_not_finish() {
    let entered = Arc::new(Notify::new());
    let router = Router::new().route(
        "/",
        get({
            let entered = Arc::clone(&entered);
            async move || {
                entered.notify_one();
                std::future::pending::<()>().await;
            }
        }),
    );
    let limits = Limits {
        drain_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = start(router, limits).await;
    let mut stuck = TcpStream::connect(server.addr).await.unwrap();
    stuck
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    entered.notified().await;
    server.shutdown.cancel();
    timeout(DEADLINE, server.task)
        .await
        .expect("the drain ends")
        .unwrap();
    assert_eq!(read_to_end(&mut stuck).await, "");
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut() {
    let limits = Limits {
        head_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = start(Router::new(), limits).await;
    let answer = exchange(server.addr, "GET / HTTP/1.1\r\nHost:").await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
        "{answer}"
    );
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_a_free_place() {
    let router = Router::new().route("/", get(async || "hello"));
    let server = start(
        router,
        Limits {
            connections_max: 1,
            ..Limits::default()
        },
    )
    .await;
    let mut first = TcpStream::connect(server.addr).await.unwrap();
    first
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut first, "hello").await;
    let mut second = TcpStream::connect(server.addr).await.unwrap();
    second
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut nothing = [0; 1];
    let early = timeout(Duration::from_millis(100), second.peek(&mut nothing)).await;
    assert!(early.is_err(), "served beyond the cap");
    drop(first);
    assert!(read_to_end(&mut second).await.ends_with("hello"));
}

#[tokio::test]
async fn handlers_know_their_peer() {
    let router = Router::new().route(
        "/",
        get(async |axum::Extension(Peer(peer)): axum::Extension<Peer>| peer.ip().to_string()),
    );
    let server = start(router, Limits::default()).await;
    let answer = exchange(
        server.addr,
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.ends_with("\r\n\r\n127.0.0.1"), "{answer}");
}

#[tokio::test]
async fn admin_answers_health_and_metrics() {
    let mut registry = Registry::with_prefix("edd_test");
    let counter: Counter = Counter::default();
    registry.register("things", "Things counted", counter.clone());
    counter.inc_by(3);
    let server = start(admin::router(Arc::new(registry)), Limits::default()).await;
    let get = async |path: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        exchange(server.addr, &head).await
    };
    let health = get("/healthz").await;
    assert!(
        health.starts_with("HTTP/1.1 200 ") && health.ends_with("ok\n"),
        "{health}"
    );
    let metrics = get("/metrics").await;
    assert!(
        metrics.contains("content-type: application/openmetrics-text"),
        "{metrics}"
    );
    assert!(metrics.contains("\nedd_test_things_total 3\n"), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
}
