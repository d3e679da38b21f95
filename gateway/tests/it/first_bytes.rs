//! Garbage, truncated, oversized and missing first bytes on every listener.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::client::{Greeting, SHORT, dial, hear, request, say, send, singly};
use crate::support::containers::{Containers, container_address, echo};
use crate::support::{Gateway, Options, eventually};

async fn gateway() -> Gateway {
    Gateway::start(Options::default().flag("--header-timeout", "1s")).await
}

/// It still serves, and holds nothing of those that went wrong.
async fn still_serves(gateway: &Gateway) {
    eventually("nothing is held", || async {
        gateway.shared.gate.open() == 0
    })
    .await;
    let answer = request(&mut dial(gateway.addresses.http).await, "nobody.example").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let mut stream = Greeting::anyone("nobody.example")
        .dial(gateway.addresses.https)
        .await
        .unwrap();
    let answer = request(&mut stream, "nobody.example").await;
    assert!(
        answer.contains(" 404 ") || answer.contains(" 421 "),
        "{answer}"
    );
}

fn oversized() -> Vec<Vec<u8>> {
    let long = 300_000;
    let mut hello = Vec::new();
    // Records without end, of a handshake message that promises to be small enough.
    for _ in 0..long / 6 {
        hello.extend([22, 3, 1, 0, 1]);
        hello.push(if hello.len() == 5 { 1 } else { 0 });
    }
    vec![
        vec![b'A'; long],
        [b"GET /".to_vec(), vec![b'a'; long]].concat(),
        [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; long]].concat(),
        [b"BREW /".to_vec(), vec![b'a'; long]].concat(),
        [b"SSH-2.0-".to_vec(), vec![b'a'; long]].concat(),
        vec![0; long],
        hello,
    ]
}

fn garbage() -> Vec<Vec<u8>> {
    vec![
        vec![0],
        vec![0xff; 100],
        b"\r\n\r\n\r\n".to_vec(),
        b"HELLO\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage, not frames, at all".to_vec(),
        b"SSH-1.0-old\r\n".to_vec(),
        b"SSH-2.0-x\r\n\xff\xff\xff\xff\xff\xff".to_vec(),
        vec![22, 3, 1, 0, 0],
        vec![22, 3, 1, 0xff, 0xff],
        vec![22, 3, 1, 0, 4, 2, 0, 0, 0],
        vec![22, 3, 1, 0, 6, 1, 0, 0, 2, 3, 3],
        vec![0x80, 0x2e, 1, 3, 1],
    ]
}

fn truncated() -> Vec<Vec<u8>> {
    vec![
        b"G".to_vec(),
        b"GET / HT".to_vec(),
        b"GET / HTTP/1.1\r\nHost: a".to_vec(),
        b"PRI * HTTP/2.0\r\n".to_vec(),
        b"SSH".to_vec(),
        b"SSH-2.0-x".to_vec(),
        vec![22],
        vec![22, 3, 1],
        vec![22, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3],
    ]
}

fn listeners(gateway: &Gateway) -> [(&'static str, SocketAddr); 4] {
    [
        ("http", gateway.addresses.http),
        ("https", gateway.addresses.https),
        ("ssh", gateway.addresses.ssh),
        ("dynamic", gateway.port(0)),
    ]
}

async fn with_raw_owner(gateway: &Gateway) -> Containers {
    let upstream = echo(container_address()).await;
    let mut containers = Containers::of(gateway);
    let rule = (gateway.port(0).port(), upstream.port());
    containers.run("a1", upstream.ip(), &[rule]);
    containers
}

#[tokio::test]
async fn no_first_bytes_hurt_any_listener() {
    let gateway = gateway().await;
    let mut containers = with_raw_owner(&gateway).await;
    for (name, addr) in listeners(&gateway) {
        for bytes in garbage().iter().chain(&truncated()).chain(&oversized()) {
            let mut stream = dial(addr).await;
            let (mut read, mut write) = stream.split();
            let talk = async {
                let _ = write.write_all(bytes).await;
                let _ = write.shutdown().await;
            };
            // Ends in time, whatever the answer, even if that is a reset.
            let ((), _heard) = tokio::join!(talk, hear(&mut read));
            let begin = &bytes[..bytes.len().min(20)];
            assert!(
                gateway.shared.gate.open() <= 40,
                "{name} {}",
                begin.escape_ascii()
            );
        }
    }
    containers.stop("a1");
    still_serves(&gateway).await;
}

/// S13: nothing had a deadline before and while the first bytes were read.
#[tokio::test]
async fn whoever_says_nothing_or_half_is_sent_away_at_the_deadline() {
    let gateway = gateway().await;
    let public = [
        ("http", gateway.addresses.http),
        ("https", gateway.addresses.https),
    ];
    let begun = Instant::now();
    let mut waits = Vec::new();
    for (name, addr) in public {
        for bytes in std::iter::once(Vec::new()).chain(truncated()) {
            waits.push(tokio::spawn(async move {
                let mut stream = dial(addr).await;
                send(&mut stream, &[&bytes]).await;
                let _ = hear(&mut stream).await;
                let took = begun.elapsed();
                let text = bytes.escape_ascii();
                assert!(took < SHORT * 15, "{name} {text} {took:?}");
            }));
        }
    }
    for wait in waits {
        wait.await.unwrap();
    }
    still_serves(&gateway).await;
}

#[tokio::test]
async fn the_http_port_says_what_is_wrong() {
    let gateway = gateway().await;
    let http = gateway.addresses.http;
    for bytes in [
        &b"\0\0\0"[..],
        b"HELLO\r\n",
        &[22, 3, 1, 0, 0],
        b"SSH-2.0-x\r\n",
    ] {
        for pieces in [vec![bytes], singly(bytes)] {
            let answer = String::from_utf8(say(http, &pieces).await.unwrap()).unwrap();
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
            assert!(
                answer.to_lowercase().contains("\r\nx-request-id: "),
                "{answer}"
            );
        }
    }
    let begun = Instant::now();
    let answer = String::from_utf8(say(http, &[b"GE"]).await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(begun.elapsed() >= SHORT);
}

#[tokio::test]
async fn the_https_port_says_what_is_wrong() {
    let gateway = gateway().await;
    let https = gateway.addresses.https;
    let plain = request(&mut dial(https).await, "localhost").await;
    assert!(plain.starts_with("HTTP/1.1 400 "), "{plain}");
    for bytes in [&[22, 3, 1, 0, 0][..], &[22, 3, 1, 0, 4, 2, 0, 0, 0]] {
        let alert = say(https, &[bytes]).await.unwrap();
        assert_eq!(alert.get(..6), Some(&[21, 3, 3, 0, 2, 2][..]));
    }
}

#[tokio::test]
async fn a_hello_may_come_byte_by_byte() {
    let gateway = gateway().await;
    let ca = gateway.ca();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut read, mut write) = tokio::io::split(far);
    let stream = dial(gateway.addresses.https).await;
    let (mut from, mut to) = stream.into_split();
    tokio::spawn(async move {
        let mut byte = [0];
        while let Ok(1) = read.read(&mut byte).await {
            to.write_all(&byte).await.unwrap();
        }
    });
    tokio::spawn(async move { tokio::io::copy(&mut from, &mut write).await });
    let greeting = Greeting {
        name: "localhost",
        ca: Some(&ca),
        alpn: &[b"http/1.1"],
    };
    let mut stream = greeting.shake(near).await.unwrap();
    let answer = request(&mut stream, "localhost").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

/// S13: nothing capped the connections in all.
#[tokio::test]
async fn at_the_cap_new_ones_are_refused_and_live_ones_live() {
    let options = Options::default().flag("--max-connections", "3");
    let gateway = Gateway::start(options).await;
    let containers = with_raw_owner(&gateway).await;
    let mut live = Vec::new();
    for _ in 0..3 {
        let mut stream = dial(gateway.port(0)).await;
        stream.write_all(b"\0").await.unwrap();
        stream.read_u8().await.unwrap();
        live.push(stream);
    }
    for addr in [
        gateway.addresses.http,
        gateway.addresses.https,
        gateway.port(0),
    ] {
        match say(addr, &[b"\0"]).await {
            Ok(heard) => assert_eq!(heard, b""),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    for stream in &mut live {
        stream.write_all(b"\0").await.unwrap();
        stream.read_u8().await.unwrap();
    }
    live.clear();
    eventually("there is room again", || async {
        gateway.shared.gate.open() == 0
    })
    .await;
    let answer = request(&mut dial(gateway.addresses.http).await, "nobody.example").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    drop(containers);
}

/// S13: nothing capped the connections of one address.
#[tokio::test]
async fn an_address_cannot_take_all_the_room() {
    let options = Options::default().flag("--max-connections-per-ip", "2");
    let gateway = Gateway::start(options).await;
    let http = gateway.addresses.http;
    let _held = [dial(http).await, dial(http).await];
    eventually("both are in", || async { gateway.shared.gate.open() == 2 }).await;
    let refused = request(&mut dial(http).await, "nobody.example").await;
    assert_eq!(refused, "");
    let other = SocketAddr::from(([127, 0, 0, 9], 0));
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(other).unwrap();
    let mut stream = socket.connect(http).await.unwrap();
    let answer = request(&mut stream, "nobody.example").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

#[tokio::test]
async fn silent_connections_do_not_hold_up_the_drain() {
    let gateway = Gateway::start(Options::default().flag("--drain-timeout", "20s")).await;
    let mut silent = dial(gateway.addresses.http).await;
    let mut secret = dial(gateway.addresses.https).await;
    eventually("both are in", || async { gateway.shared.gate.open() == 2 }).await;
    let begun = Instant::now();
    gateway.stop().await;
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(hear(&mut silent).await.unwrap(), b"");
    assert_eq!(hear(&mut secret).await.unwrap(), b"");
}
