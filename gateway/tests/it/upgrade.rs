//! Connections that leave HTTP: WebSocket and any other protocol, after the upstream's 101 only.

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::containers::is_kept_alive;
use crate::support::{
    DEADLINE, Gateway, Options, Origin, REVOCATION, Table, eventually, read_head,
};

const ASK: &str = "GET /x HTTP/1.1\r\nHost: c1.compute.localhost\r\n\
                   Connection: Upgrade\r\nUpgrade: shout/1\r\n\r\n";

async fn gateway_to(origin: &Origin) -> (Gateway, Table) {
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 80, origin.address);
    (gateway, table)
}

/// A client's connection that has been switched over.
async fn switched(gateway: &Gateway) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
    stream.write_all(ASK.as_bytes()).await.unwrap();
    let head = timeout(DEADLINE, read_head(&mut stream)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head:?}");
    assert!(head.contains("\r\nupgrade: shout/1\r\n"), "{head:?}");
    stream
}

/// Agrees to switch, then answers everything in capitals once its input has ended.
async fn shouter() -> Origin {
    Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        let head = read_head(&mut stream).await;
        assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head:?}");
        assert!(head.contains("\r\nupgrade: shout/1\r\n"), "{head:?}");
        let agree =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout/1\r\n\r\nHI";
        stream.write_all(agree.as_bytes()).await.unwrap();
        let mut said = String::new();
        if stream.read_to_string(&mut said).await.is_ok() {
            let _ = stream.write_all(said.to_uppercase().as_bytes()).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_echoes() {
    let origin = Origin::friendly("127.64.0.2").await;
    let (gateway, _table) = gateway_to(&origin).await;
    let stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
    let url = "ws://c1.compute.localhost/ws";
    let (mut socket, answer) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    assert!(answer.headers().contains_key("x-request-id"));
    for text in ["one", "two", &"x".repeat(200_000)] {
        socket.send(Message::text(text)).await.unwrap();
        let echoed = timeout(DEADLINE, socket.next()).await.unwrap();
        assert_eq!(echoed.unwrap().unwrap(), Message::text(text));
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = timeout(DEADLINE, socket.next()).await.unwrap() {}
    gateway.stop().await;
}

/// C10: neither side's end was passed on to the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_protocol_may_be_switched_to_and_half_closed() {
    let origin = shouter().await;
    let (gateway, _table) = gateway_to(&origin).await;
    let mut stream = switched(&gateway).await;
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut said = String::new();
    let read = stream.read_to_string(&mut said);
    timeout(DEADLINE, read).await.unwrap().unwrap();
    assert_eq!(said, "HIHELLO");
    gateway.stop().await;
}

/// A container that vanished would be waited for until the stream's idle limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_says_nothing_is_asked_whether_it_lives() {
    let origin = shouter().await;
    let (gateway, _table) = gateway_to(&origin).await;
    let _stream = switched(&gateway).await;
    eventually("a keepalive's timer", || async {
        is_kept_alive(origin.address)
    })
    .await;
    gateway.stop().await;
}

/// S1: the mere wish to upgrade made a raw pipe of the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_101_the_connection_stays_http() {
    let origin = Origin::friendly("127.64.0.2").await;
    let (gateway, _table) = gateway_to(&origin).await;
    let mut stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
    stream.write_all(ASK.as_bytes()).await.unwrap();
    let head = timeout(DEADLINE, read_head(&mut stream)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head:?}");
    assert!(!head.contains("\r\nupgrade:"), "{head:?}");
    // What follows is a request like any other: routed, and refused here.
    let follow = "GET /../x HTTP/1.1\r\nHost: c1.compute.localhost\r\n\r\n";
    stream.write_all(follow.as_bytes()).await.unwrap();
    let mut rest = String::new();
    let read = stream.read_to_string(&mut rest);
    timeout(DEADLINE, read).await.unwrap().unwrap();
    assert!(rest.contains("HTTP/1.1 400 Bad Request\r\n"), "{rest:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_nobody_asked_for_is_a_502() {
    let agree = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    let origin = Origin::blunt("127.64.0.2", agree).await;
    let (gateway, _table) = gateway_to(&origin).await;
    let got = gateway.http("c1.compute.localhost", "/", &[]).await;
    assert_eq!(got.status, 502);
    // HTTP/2 in clear would carry requests that nobody routes: it is never offered.
    let h2c = [
        "--header",
        "connection: upgrade",
        "--header",
        "upgrade: h2c",
    ];
    let got = gateway.http("c1.compute.localhost", "/", &h2c).await;
    assert_eq!(got.status, 502);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_connection_ends_with_its_container_and_others_stay() {
    let origin = shouter().await;
    let (gateway, mut table) = gateway_to(&origin).await;
    table.run("c2", 80, origin.address);
    let mut streams = Vec::new();
    for ask in [ASK.to_owned(), ASK.replace("c1.", "c2.")] {
        let mut stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
        stream.write_all(ask.as_bytes()).await.unwrap();
        let head = timeout(DEADLINE, read_head(&mut stream)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head:?}");
        assert_eq!(stream.read_u16().await.unwrap().to_be_bytes(), *b"HI");
        streams.push(stream);
    }
    table.remove("c1");
    let mut second = streams.pop().unwrap();
    let mut first = streams.pop().unwrap();
    let ended = timeout(REVOCATION, first.read_u8()).await;
    assert!(ended.expect("in time").is_err());
    second.write_all(b"still here").await.unwrap();
    second.shutdown().await.unwrap();
    let mut said = String::new();
    let read = second.read_to_string(&mut said);
    timeout(DEADLINE, read).await.unwrap().unwrap();
    assert_eq!(said, "STILL HERE");
    gateway.stop().await;
}
