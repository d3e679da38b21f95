//! The circuit breaker as clients see it, and the timeouts of a route.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::caller::Caller;
use super::{admin_text, states};
use crate::support::containers::{Containers, container_address};
use crate::support::{Gateway, Options, Origin, eventually, free_port, read_head};

async fn answers(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            while !read_head(&mut stream).await.is_empty() {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Closed: 502 by trying. Open: 503 at once. Half-open: one try, which closes it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_sees_the_three_states_of_the_breaker() {
    let address = format!("127.0.0.1:{}", free_port());
    let gateway = Gateway::start(Options::routes(format!(
        "routes:\n- {{host: a.test, target: '{address}'}}\n"
    )))
    .await;
    let mut caller = Caller::new(&gateway, "a.test");
    for n in 0..10 {
        let answer = caller.get("/").await;
        assert_eq!(answer.status, 502, "{n}: {answer:?}");
    }
    let answer = caller.get("/").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    let metrics = admin_text(&gateway, "/metrics").await;
    assert!(
        metrics.contains("upstream_trips_total{reason=\"broken\"} 1\n"),
        "{metrics}"
    );
    assert!(metrics.contains(&format!("upstream_target_up{{target=\"{address}\"}} 0\n")));
    // A probe that fails is a 502, and opens it again.
    eventually("a probe", || async {
        Caller::new(&gateway, "a.test").get("/").await.status == 502
    })
    .await;
    let answer = caller.get("/").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(
        states(&gateway).await[0]
            .1
            .starts_with("open, next try in ")
    );
    // The first probe after it is back closes it.
    let server = tokio::spawn(answers(TcpListener::bind(&address).await.unwrap()));
    let begun = Instant::now();
    eventually("an answer", || async {
        Caller::new(&gateway, "a.test").get("/").await.status == 200
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(15), "a short pause");
    for _ in 0..20 {
        assert_eq!(caller.get("/").await.status, 200);
    }
    assert_eq!(states(&gateway).await[0].1, "up");
    server.abort();
    gateway.stop().await;
}

/// What a container's last run did wrong is not held against its next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_starts_with_a_closed_breaker() {
    let gateway = Gateway::start(Options::default()).await;
    let mut containers = Containers::of(&gateway);
    let ip = container_address();
    let port = free_port();
    let door = gateway.port(0);
    containers.run("c1", ip, &[(door.port(), port)]);
    let ask = async || {
        let mut stream = crate::support::client::dial(door).await;
        let text = crate::support::client::request(&mut stream, "c1.compute.localhost").await;
        text.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    for _ in 0..10 {
        assert_eq!(ask().await, "502");
    }
    eventually("it is open", || async { ask().await == "503" }).await;
    let server = tokio::spawn(answers(TcpListener::bind((ip, port)).await.unwrap()));
    containers.stop("c1");
    containers.run("c1", ip, &[(door.port(), port)]);
    assert_eq!(ask().await, "200");
    server.abort();
    gateway.stop().await;
}

/// Until the first byte, and between bytes: each route has its own patience.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_has_timeouts_of_its_own() {
    let slow = Origin::raw("127.0.0.1", async |_, mut stream: TcpStream| {
        let head = read_head(&mut stream).await;
        if head.starts_with("GET /half") {
            let half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
            let _ = stream.write_all(half).await;
        }
        let _ = read_head(&mut stream).await;
    })
    .await;
    let gateway = Gateway::start(Options::routes(format!(
        "routes:\n- {{host: a.test, target: '{}', timeout: 200ms, idle_timeout: 300ms}}\n\
         - {{host: a.test, path: /far, target: '192.0.2.1:80', connect_timeout: 200ms}}\n",
        slow.address
    )))
    .await;
    let mut caller = Caller::new(&gateway, "a.test");
    let begun = Instant::now();
    assert_eq!(caller.get("/").await.status, 504);
    let answer = caller.get("/half").await;
    assert_eq!(answer.status, 0, "cut: {answer:?}");
    // An address that nobody has: refused by some networks, silent in others.
    let answer = caller.get("/far").await;
    assert!(matches!(answer.status, 502 | 504), "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    gateway.stop().await;
}
