//! Load balancers that announce their clients, and clients that pretend to be load balancers.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::client::{Greeting, dial, hear, request, say, singly};
use crate::support::containers::{Containers, container_address, echo};
use crate::support::{Gateway, Options, Origin, Table, eventually};

const HOST: &str = "c1.compute.localhost";

/// Trusted are 127.0.0.1 and, as a client that announces itself, 198.51.100.7.
fn options(mode: &str) -> Options {
    Options::default()
        .flag("--proxy-protocol", mode)
        .flag("--trusted-proxies", "127.0.0.1")
        .flag("--header-timeout", "2s")
}

fn v1(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 127.0.0.1 4711 443\r\n").into_bytes()
}

/// Version 2 with a TLV, as load balancers in the cloud send them.
fn v2(client: Ipv4Addr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    let mut body = client.octets().to_vec();
    body.extend([127, 0, 0, 1, 0x12, 0x67, 1, 0xbb]);
    body.extend([0xea, 0, 4, 1, 2, 3, 4]);
    header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    header.extend(body);
    header
}

fn local() -> Vec<u8> {
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec()
}

/// Whom the proxy cannot name: version 1, and version 2 of no family and of Unix sockets.
fn unknown() -> [Vec<u8>; 3] {
    let unix = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xd8"[..], &[b'/'; 216]].concat();
    let unspecified = b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0".to_vec();
    [b"PROXY UNKNOWN\r\n".to_vec(), unspecified, unix]
}

async fn dial_from(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let stream = socket.connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// What the origin was told, on a connection that has begun with `header`.
async fn told(stream: &mut TcpStream, pieces: &[&[u8]], more: &str) -> Value {
    for piece in pieces {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let ask = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{more}Connection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let answer = String::from_utf8(hear(stream).await.unwrap()).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"))
}

fn seen<'j>(mirrored: &'j Value, name: &str) -> Vec<&'j str> {
    let fields = mirrored["fields"].as_array().expect("fields");
    let named = fields.iter().filter(|field| field[0] == name);
    named.filter_map(|field| field[1].as_str()).collect()
}

async fn refused(gateway: &Gateway, reason: &str) -> u64 {
    let mut admin = dial(gateway.admin).await;
    let ask = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    admin.write_all(ask.as_bytes()).await.unwrap();
    let mut text = String::new();
    admin.read_to_string(&mut text).await.unwrap();
    let line = format!("edd_gateway_connections_refused_total{{reason=\"{reason}\"}} ");
    let value = text.lines().find_map(|l| l.strip_prefix(&line));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// S2: upstreams see whom the load balancer announces, in whatever segments; the announced client
/// is judged by its own address, whoever brings it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_announced_client_is_the_client() {
    let origin = Origin::friendly("127.64.0.2").await;
    for mode in ["optional", "required"] {
        let gateway = Gateway::start(options(mode)).await;
        Table::of(&gateway).run("c1", 80, origin.address);
        let http = gateway.addresses.http;
        for header in [v1("192.0.2.1"), v2([192, 0, 2, 1].into())] {
            for pieces in [vec![&header[..]], singly(&header)] {
                let claim = "X-Forwarded-For: 6.6.6.6\r\nX-Request-ID: mine\r\n";
                let told = told(&mut dial(http).await, &pieces, claim).await;
                assert_eq!(seen(&told, "x-forwarded-for"), ["192.0.2.1"]);
                assert_ne!(seen(&told, "x-request-id"), ["mine"]);
            }
        }
        // The proxy speaks for itself: a trusted one, whose words are believed.
        let claim = "X-Forwarded-For: 192.0.2.9\r\nX-Request-ID: mine\r\n";
        let believed = told(&mut dial(http).await, &[&local()], claim).await;
        assert_eq!(seen(&believed, "x-forwarded-for"), ["192.0.2.9, 127.0.0.1"]);
        assert_eq!(seen(&believed, "x-request-id"), ["mine"]);
        // It brings somebody it does not know: nobody's words are believed.
        for header in unknown() {
            let told = told(&mut dial(http).await, &[&header], claim).await;
            assert_eq!(seen(&told, "x-forwarded-for"), ["127.0.0.1"]);
            assert_ne!(seen(&told, "x-request-id"), ["mine"]);
        }
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_announced_before_tls_ssh_and_raw_bytes_too() {
    let gateway = Gateway::start(options("required")).await;
    let upstream = echo(container_address()).await;
    let port = gateway.port(0);
    let mut containers = Containers::of(&gateway);
    containers.run("a1", upstream.ip(), &[(port.port(), upstream.port())]);
    let header = v2([192, 0, 2, 1].into());

    let mut stream = dial(gateway.addresses.https).await;
    stream.write_all(&header).await.unwrap();
    let mut stream = Greeting::anyone("localhost").shake(stream).await.unwrap();
    let answer = request(&mut stream, "localhost").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");

    for addr in [gateway.addresses.ssh, port] {
        let mut stream = dial(addr).await;
        for byte in header.iter().chain(b"SSH-2.0-test\r\n") {
            stream.write_all(&[*byte]).await.unwrap();
        }
        let mut banner = [0; 8];
        stream.read_exact(&mut banner).await.unwrap();
        assert_eq!(&banner, b"SSH-2.0-");
    }

    let mut stream = dial(port).await;
    stream
        .write_all(&[&header[..], b"\0raw"].concat())
        .await
        .unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"\0raw");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_can_announce_anyone() {
    let origin = Origin::friendly("127.64.0.2").await;
    let gateway = Gateway::start(options("optional")).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let http = gateway.addresses.http;
    for header in [v1("192.0.2.1"), v2([192, 0, 2, 1].into()), local()] {
        let mut stream = dial_from([127, 0, 0, 9], http).await;
        stream.write_all(&header).await.unwrap();
        assert_eq!(hear(&mut stream).await.unwrap_or_default(), b"");
    }
    assert_eq!(refused(&gateway, "proxy_untrusted").await, 3);
    // Without a header they are served as who they are.
    let told = told(&mut dial_from([127, 0, 0, 9], http).await, &[], "").await;
    assert_eq!(seen(&told, "x-forwarded-for"), ["127.0.0.9"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_header_that_is_required_nobody_is_served() {
    let gateway = Gateway::start(options("required")).await;
    let all = [
        gateway.addresses.http,
        gateway.addresses.https,
        gateway.addresses.ssh,
        gateway.port(0),
    ];
    let begun = Instant::now();
    let mut containers = Containers::of(&gateway);
    containers.run("a1", container_address(), &[(all[3].port(), 9)]);
    for (index, addr) in all.into_iter().enumerate() {
        let ask = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(say(addr, &[ask]).await.unwrap_or_default(), b"");
        let mut stranger = dial_from([127, 0, 0, 9], addr).await;
        assert_eq!(hear(&mut stranger).await.unwrap_or_default(), b"");
        let count = u64::try_from(index + 1).unwrap();
        assert_eq!(refused(&gateway, "proxy_missing").await, count);
        assert_eq!(refused(&gateway, "proxy_untrusted").await, count);
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "at once");
    // Half a header is waited for, but not for ever.
    let half = &v1("192.0.2.1")[..20];
    assert_eq!(say(all[0], &[half]).await.unwrap_or_default(), b"");
    // And what is none is not.
    let bad = b"PROXY TCP4 192.0.2.1 nonsense\r\n";
    assert_eq!(say(all[0], &[bad]).await.unwrap_or_default(), b"");
    assert_eq!(refused(&gateway, "proxy_bad").await, 1);
    eventually("nothing is held", || async {
        gateway.shared.gate.open() == 0
    })
    .await;
}

/// S13: caps per address count the announced client, not the load balancer that all share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_count_for_the_announced_client() {
    let options = options("required").flag("--max-connections-per-ip", "2");
    let gateway = Gateway::start(options).await;
    let http = gateway.addresses.http;
    let mut held = Vec::new();
    for client in ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2"] {
        let mut stream = dial(http).await;
        let head = b"GET / HTTP/1.1\r\nHost: nobody.example\r\n\r\n";
        let ask = [&v1(client)[..], head].concat();
        stream.write_all(&ask).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
        held.push(stream);
    }
    let third = say(http, &[&v1("192.0.2.1"), b"GET / HTTP/1.1\r\n"]).await;
    assert_eq!(third.unwrap_or_default(), b"");
    assert_eq!(refused(&gateway, "address_limit").await, 1);
}

/// An HTTP proxy's few connections carry many clients: it is no client with too many of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_proxy_that_announces_nobody_has_no_cap_of_its_own() {
    for mode in ["off", "optional"] {
        let options = options(mode)
            .flag("--max-connections-per-ip", "1")
            .flag("--max-connections", "5");
        let gateway = Gateway::start(options).await;
        let (http, ssh) = (gateway.addresses.http, gateway.addresses.ssh);
        let mut held = Vec::new();
        for header in [b"".to_vec(), local(), b"".to_vec()] {
            let header = if mode == "off" { b"".to_vec() } else { header };
            let mut stream = dial(http).await;
            let head = b"GET / HTTP/1.1\r\nHost: nobody.example\r\n\r\n";
            stream
                .write_all(&[&header[..], head].concat())
                .await
                .unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 404");
            held.push(stream);
        }
        for _ in 0..2 {
            let mut stream = dial(ssh).await;
            stream.write_all(b"SSH-2.0-test\r\n").await.unwrap();
            let mut banner = [0; 8];
            stream.read_exact(&mut banner).await.unwrap();
            assert_eq!(&banner, b"SSH-2.0-");
            held.push(stream);
        }
        // The cap in all holds for it too.
        assert_eq!(say(http, &[b"GET / "]).await.unwrap_or_default(), b"");
        assert_eq!(refused(&gateway, "limit").await, 1);
        assert_eq!(refused(&gateway, "address_limit").await, 0);
        held.clear();
        eventually("all are gone", || async { gateway.shared.gate.open() == 0 }).await;
        // Anybody else has one.
        let mut stranger = dial_from([127, 0, 0, 9], http).await;
        stranger.write_all(b"GET ").await.unwrap();
        let mut second = dial_from([127, 0, 0, 9], http).await;
        assert_eq!(hear(&mut second).await.unwrap_or_default(), b"");
        assert_eq!(refused(&gateway, "address_limit").await, 1);
        if mode == "optional" {
            // Whom it cannot name counts for it.
            let mut unnamed = dial(http).await;
            let ask = [&unknown()[0][..], b"GET "].concat();
            unnamed.write_all(&ask).await.unwrap();
            let another = say(http, &[&unknown()[1]]).await;
            assert_eq!(another.unwrap_or_default(), b"");
            assert_eq!(refused(&gateway, "address_limit").await, 2);
        }
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_of_routes_judge_the_announced_client() {
    let origin = Origin::friendly("127.64.0.2").await;
    let routes = format!(
        "routes:\n  - host: a.localhost\n    target: {}\n    allow: [192.0.2.0/24, 127.0.0.1]\n    deny: [192.0.2.66]\n",
        origin.address
    );
    let mut options = options("optional");
    options.routes = routes;
    let gateway = Gateway::start(options).await;
    for (header, more, expected) in [
        (Some(v1("192.0.2.1")), "", "200"),
        (Some(v1("192.0.2.66")), "", "403"),
        (Some(v1("198.51.100.1")), "", "403"),
        // Not believed of whom a proxy announces.
        (
            Some(v1("198.51.100.1")),
            "X-Forwarded-For: 192.0.2.1\r\n",
            "403",
        ),
        // The proxy itself is on the list, whom it cannot name is not.
        (None, "", "200"),
        (Some(local()), "", "200"),
        (Some(unknown()[0].clone()), "", "403"),
        (None, "X-Forwarded-For: 198.51.100.1\r\n", "403"),
        (None, "X-Forwarded-For: 192.0.2.1\r\n", "200"),
    ] {
        let mut stream = dial(gateway.addresses.https).await;
        if let Some(header) = &header {
            stream.write_all(header).await.unwrap();
        }
        let mut stream = Greeting::anyone("a.localhost").shake(stream).await.unwrap();
        let ask = format!("GET / HTTP/1.1\r\nHost: a.localhost\r\n{more}Connection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        let status = answer.split(' ').nth(1);
        assert_eq!(status, Some(expected), "{header:?} {more}");
    }
}

#[tokio::test]
async fn the_protocol_needs_somebody_to_trust() {
    for mode in ["optional", "required", "sometimes"] {
        let options = Options::default().flag("--proxy-protocol", mode);
        let Err(exit) = Gateway::try_start(options).await else {
            panic!("it started")
        };
        let text = format!("{exit:?}");
        assert!(
            text.starts_with("Usage") && text.contains("--proxy-protocol"),
            "{text}"
        );
    }
}
