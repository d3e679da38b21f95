//! WebSockets over HTTP/2 (RFC 8441), to upstreams that speak HTTP/1.1.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::frames::*;
use crate::support::{DEADLINE, Gateway, Options, Origin, SOON, Table, read_head};

const HOST: &str = "c1.compute.localhost";

const ENABLE_CONNECT_PROTOCOL: u16 = 8;

fn connect(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", HOST),
        (":path", path),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "chat"),
    ];
    frame(HEADERS, END_HEADERS, 1, &block(&fields))
}

/// A text frame of a client, masked with zeroes.
fn text(message: &str) -> Vec<u8> {
    let mut bytes = vec![
        0x81,
        0x80 | u8::try_from(message.len()).unwrap(),
        0,
        0,
        0,
        0,
    ];
    bytes.extend(message.as_bytes());
    bytes
}

async fn start(origin: &Origin, options: Options) -> (Gateway, Table, Raw) {
    let gateway = Gateway::start(options).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 80, origin.address);
    let mut raw = Raw::open(gateway.addresses.http).await;
    let settings = raw.until(SETTINGS, 0).await;
    let [a, b] = ENABLE_CONNECT_PROTOCOL.to_be_bytes();
    assert!(
        settings
            .payload
            .chunks(6)
            .any(|setting| setting == [a, b, 0, 0, 0, 1])
    );
    raw.send(&frame(SETTINGS, 1, 0, &[])).await;
    (gateway, table, raw)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_works_over_a_stream_beside_requests() {
    let origin = Origin::friendly("127.64.0.2").await;
    let (gateway, _table, mut raw) = start(&origin, Options::default()).await;
    raw.send(&connect("/ws")).await;
    let answer = raw.until(HEADERS, 1).await;
    assert_eq!((answer.status(), answer.ends()), (200, false));
    raw.send(&frame(DATA, 0, 1, &text("hello"))).await;
    assert_eq!(raw.until(DATA, 1).await.payload, b"\x81\x05hello");
    raw.get(3, HOST, "/cookies").await;
    assert_eq!(raw.whole(3).await.0, 200);
    raw.send(&frame(DATA, 0, 1, &text("again"))).await;
    assert_eq!(raw.until(DATA, 1).await.payload, b"\x81\x05again");
    drop(raw);
    gateway.stop().await;
}

/// What a tunnel's upstream is asked, and each end for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_is_asked_for_as_http1_does_and_half_closes_both_ways() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let tell = tell.clone();
        async move {
            tell.send(read_head(&mut stream).await).unwrap();
            let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: chat\r\n\r\nfirst";
            stream.write_all(switch.as_bytes()).await.unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            tell.send(rest).unwrap();
            stream.write_all(b"last words").await.unwrap();
        }
    })
    .await;
    let (gateway, _table, mut raw) = start(&origin, Options::default()).await;
    raw.send(&connect("/chat?room=1")).await;
    let head = told.recv().await.unwrap();
    assert!(head.starts_with("GET /chat?room=1 HTTP/1.1\r\n"), "{head}");
    for line in [
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-protocol: chat",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
    }
    assert!(head.contains("\r\nsec-websocket-key: "), "{head}");
    let answer = raw.until(HEADERS, 1).await;
    assert_eq!(answer.status(), 200);
    let block = String::from_utf8_lossy(&answer.payload).into_owned();
    assert!(!block.contains("upgrade"), "{block:?}");
    assert_eq!(raw.until(DATA, 1).await.payload, b"first");
    raw.send(&frame(DATA, 0, 1, b"from the client")).await;
    raw.send(&frame(DATA, END_STREAM, 1, b", the end")).await;
    assert_eq!(told.recv().await.unwrap(), "from the client, the end");
    let (_, rest, reset) = raw.whole(1).await;
    assert_eq!((&rest[..], reset), (&b"last words"[..], None));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_the_upstream_refuses_is_an_answer() {
    let answer = "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno";
    let origin = Origin::blunt("127.64.0.2", answer).await;
    let (gateway, _table, mut raw) = start(&origin, Options::default()).await;
    raw.send(&connect("/")).await;
    assert_eq!(raw.whole(1).await, (403, b"no".to_vec(), None));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_protocols_and_plain_connect_are_refused() {
    let origin = Origin::friendly("127.64.0.2").await;
    let (gateway, _table, mut raw) = start(&origin, Options::default()).await;
    let udp = [
        (":method", "CONNECT"),
        (":protocol", "connect-udp"),
        (":scheme", "http"),
        (":authority", HOST),
        (":path", "/"),
    ];
    raw.send(&frame(HEADERS, END_HEADERS, 1, &block(&udp)))
        .await;
    assert_eq!(raw.whole(1).await.0, 501);
    let plain = [
        (":method", "CONNECT"),
        (":authority", "c1.compute.localhost:22"),
    ];
    raw.send(&frame(HEADERS, END_HEADERS, 3, &block(&plain)))
        .await;
    assert_eq!(raw.whole(3).await.0, 400);
    gateway.stop().await;
}

/// Only the tunnel goes with its container, or with its silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_ends_with_its_container_and_when_it_is_idle() {
    for idle in [false, true] {
        let (tell, mut told) = mpsc::unbounded_channel();
        let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
            let tell = tell.clone();
            async move {
                read_head(&mut stream).await;
                let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
                stream.write_all(switch.as_bytes()).await.unwrap();
                // A cut, not an end.
                tell.send(stream.read(&mut [0; 9]).await.is_err()).unwrap();
            }
        })
        .await;
        let friend = Origin::friendly("127.64.0.3").await;
        let limit = if idle { "500ms" } else { "1h" };
        let options = Options::default().flag("--stream-idle-timeout", limit);
        let (gateway, mut table, mut raw) = start(&origin, options).await;
        table.run("c2", 80, friend.address);
        raw.send(&connect("/")).await;
        assert_eq!(raw.until(HEADERS, 1).await.status(), 200);
        if !idle {
            table.remove("c1");
        }
        let reset = timeout(SOON, raw.until(RST_STREAM, 1)).await;
        assert_ne!(reset.expect("in time").code(), NO_ERROR);
        let cut = timeout(DEADLINE, told.recv()).await.unwrap().unwrap();
        assert!(cut, "it looked like an end");
        raw.get(3, "c2.compute.localhost", "/").await;
        assert_eq!(raw.whole(3).await.0, 200);
        gateway.stop().await;
    }
}

/// RFC 8441, section 5: to whoever asked for a tunnel any success would say that it is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_success_that_is_no_switch_does_not_look_like_an_open_tunnel() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 299 Odd\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    ] {
        let origin = Origin::blunt("127.64.0.2", answer).await;
        let (gateway, _table, mut raw) = start(&origin, Options::default()).await;
        raw.send(&connect("/")).await;
        assert_eq!(raw.until(HEADERS, 1).await.status(), 502, "{answer}");
        gateway.stop().await;
    }
}
