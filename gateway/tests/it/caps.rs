//! Connections to upstreams are capped apart from those of clients, whatever asks for them, and
//! for each owner of containers.

use std::io::ErrorKind;

use edd_route::UserId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::{dial, request, say};
use crate::support::containers::{Containers, container_address, echo, web};
use crate::support::{Gateway, Options, eventually};

async fn one_upstream_at_once() -> (Gateway, Containers) {
    let options = Options {
        tune: |config| config.max_upstream_connections = 1,
        ..Options::default()
    };
    let gateway = Gateway::start(options).await;
    let containers = Containers::of(&gateway);
    (gateway, containers)
}

/// A raw connection that is being relayed.
async fn relayed(port: std::net::SocketAddr) -> TcpStream {
    let mut stream = dial(port).await;
    stream.write_all(b"\0").await.unwrap();
    stream.read_u8().await.unwrap();
    stream
}

#[tokio::test]
async fn at_the_cap_of_upstreams_http_is_answered_503_until_another_ends() {
    let (gateway, mut containers) = one_upstream_at_once().await;
    let (raw, http) = (gateway.port(0), gateway.port(1));
    let (one, two) = (
        echo(container_address()).await,
        web(container_address(), "two").await,
    );
    containers.run("a1", one.ip(), &[(raw.port(), one.port())]);
    containers.run("a2", two.ip(), &[(http.port(), two.port())]);
    let mut held = relayed(raw).await;
    let answer = request(&mut dial(http).await, "a2.compute.localhost").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    // What lives, lives.
    held.write_all(b"x").await.unwrap();
    assert_eq!(held.read_u8().await.unwrap(), b'x');

    drop(held);
    eventually("the place is free", || async {
        gateway.shared.gate.upstreams() == 0
    })
    .await;
    for _ in 0..3 {
        let answer = request(&mut dial(http).await, "a2.compute.localhost").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        eventually("closed", || async { gateway.shared.gate.upstreams() == 0 }).await;
    }
}

#[tokio::test]
async fn at_the_cap_of_upstreams_a_raw_connection_is_closed_and_counted() {
    let (gateway, mut containers) = one_upstream_at_once().await;
    let port = gateway.port(0);
    let upstream = echo(container_address()).await;
    containers.run("a1", upstream.ip(), &[(port.port(), upstream.port())]);
    let held = relayed(port).await;
    let end = say(port, &[b"\0"]).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    let counted = "edd_gateway_connections_refused_total{reason=\"upstream_limit\"} 1\n";
    let text = metrics(&gateway).await;
    assert!(text.contains(counted), "{text}");
    drop(held);
}

async fn metrics(gateway: &Gateway) -> String {
    let mut admin = dial(gateway.admin).await;
    let ask = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    admin.write_all(ask.as_bytes()).await.unwrap();
    let mut text = String::new();
    admin.read_to_string(&mut text).await.unwrap();
    text
}

/// Raw connections and requests of one owner's containers, as many as he likes, leave some for
/// everybody else's.
#[tokio::test]
async fn an_owner_of_containers_leaves_connections_for_those_of_others() {
    let options = Options {
        tune: |config| config.max_upstream_connections = 10,
        ..Options::default()
    };
    let gateway = Gateway::start(options).await;
    let mut containers = Containers::of(&gateway);
    let (raw, http) = (gateway.port(0), gateway.port(1));
    let (one, two) = (
        echo(container_address()).await,
        web(container_address(), "two").await,
    );
    let his = web(container_address(), "his").await;
    containers.run("a1", one.ip(), &[(raw.port(), one.port())]);
    containers.run("a2", his.ip(), &[(http.port(), his.port())]);
    containers.run_of(UserId(2), "b1", two.ip(), &[(http.port(), two.port())]);
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(relayed(raw).await);
    }
    let end = say(raw, &[b"\0"]).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    // His other containers share with this one.
    let answer = request(&mut dial(http).await, "a2.compute.localhost").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let counted = "edd_gateway_connections_refused_total{reason=\"upstream_owner_limit\"} 2\n";
    let text = metrics(&gateway).await;
    assert!(text.contains(counted), "{text}");
    for _ in 0..3 {
        let answer = request(&mut dial(http).await, "b1.compute.localhost").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    // What lives, lives, and what ends makes room.
    for stream in &mut held {
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }
    held.truncate(4);
    eventually("room", || async { gateway.shared.gate.upstreams() <= 5 }).await;
    let answer = request(&mut dial(http).await, "a2.compute.localhost").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
