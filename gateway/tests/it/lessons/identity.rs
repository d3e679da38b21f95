//! Who the client is, in the upstream's eyes.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::DEADLINE;
use crate::support::ask::{Asker, H1, Question, Speaks, unwatched};
use crate::support::client::Greeting;

use super::spy::{HOST, fields, gateway, values};

/// S2: the client's own X-Forwarded-For went before the gateway's, and was believed. S15: so did
/// a client's request id, valid or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_says_about_itself_is_dropped_on_every_way_in() {
    let (gateway, _table, spy) = gateway().await;
    let lies = "X-Forwarded-For: 6.6.6.6\r\nx-forwarded-for: 7.7.7.7, 8.8.8.8\r\n\
         X-Forwarded-Proto: gopher\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\n\
         Forwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n\
         X-Request-ID: not valid!\r\nX-Request-ID: valid-1\r\nx-request-id: \t\r\n";
    for (way, host) in [
        ("http", HOST),
        ("https", "spy2.compute.localhost"),
        ("port", "spy3.compute.localhost"),
        ("port-tls", "spy3.compute.localhost"),
    ] {
        let ask = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{lies}Connection: close\r\n\r\n");
        let answer = match way {
            "http" | "port" => {
                let address = match way {
                    "http" => gateway.addresses.http,
                    _ => gateway.port(0),
                };
                let mut h1 = H1::dial(address).await;
                h1.say(&ask).await;
                let heard = h1.answer(false, &unwatched()).await;
                assert_eq!(heard.status, 200, "{way}: {heard:?}");
                heard.field("x-request-id").unwrap().to_owned()
            }
            _ => {
                let address = match way {
                    "https" => gateway.addresses.https,
                    _ => gateway.port(0),
                };
                let mut stream = Greeting::anyone(host).dial(address).await.unwrap();
                stream.write_all(ask.as_bytes()).await.unwrap();
                let heard = crate::support::client::hear(&mut stream).await.unwrap();
                let heard = String::from_utf8(heard).unwrap();
                assert!(heard.starts_with("HTTP/1.1 200 "), "{way}: {heard}");
                let answer = fields(heard.split("\r\n\r\n").next().unwrap());
                values(&answer, "x-request-id")[0].to_owned()
            }
        };
        let heads = spy.heads();
        let [head] = &heads[..] else {
            panic!("{way}: {heads:?}");
        };
        let told = fields(head);
        assert_eq!(values(&told, "x-forwarded-for"), ["127.0.0.1"], "{head}");
        let scheme = if way.contains("tls") || way == "https" {
            "https"
        } else {
            "http"
        };
        assert_eq!(values(&told, "x-forwarded-proto"), [scheme], "{head}");
        assert_eq!(values(&told, "x-forwarded-host"), [host], "{head}");
        assert_eq!(values(&told, "x-request-id"), [answer.as_str()], "{head}");
        assert_ne!(answer, "valid-1");
        for name in ["forwarded", "x-real-ip", "x-forwarded-port"] {
            assert!(values(&told, name).is_empty(), "{name}: {head}");
        }
    }
    gateway.stop().await;
}

/// S4, S2: only the first request of a connection was looked at. Each one is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_of_a_connection_gets_its_own_identity() {
    let (gateway, _table, spy) = gateway().await;
    let mut h1 = H1::dial(gateway.addresses.http).await;
    let mut ids = std::collections::HashSet::new();
    let mut all = String::new();
    for number in 0..20 {
        all.push_str(&format!(
            "GET /{number} HTTP/1.1\r\nHost: {HOST}\r\nConnection: keep-alive\r\n\
             X-Forwarded-For: 6.6.6.{number}\r\nX-Request-ID: mine\r\n\r\n"
        ));
    }
    h1.say(&all).await;
    for number in 0..20 {
        let heard = h1.answer(false, &unwatched()).await;
        assert!(heard.is(200, &format!("/{number}")), "{heard:?}");
        assert!(ids.insert(heard.field("x-request-id").unwrap().to_owned()));
    }
    for head in spy.heads() {
        let told = fields(&head);
        assert_eq!(values(&told, "x-forwarded-for"), ["127.0.0.1"], "{head}");
        assert!(ids.contains(values(&told, "x-request-id")[0]), "{head}");
    }
    gateway.stop().await;
}

/// S19: fields that concern one hop went on to the upstream: those that `Connection` lists, `TE`,
/// `Proxy-*`, `Keep-Alive`, an `Upgrade` that is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_of_one_hop_stay_on_it() {
    let (gateway, _table, spy) = gateway().await;
    let (heard, _) = super::spy::say(
        &gateway,
        format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\n\
             Connection: keep-alive, X-Mine, x-yours\r\nConnection: X-Third\r\n\
             X-Mine: 1\r\nX-Yours: 2\r\nx-third: 3\r\nX-Kept: 4\r\n\
             Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
             Proxy-Authorization: Basic eDp5\r\nTE: gzip, deflate\r\n\
             Upgrade: websocket\r\n\r\n"
        ),
    )
    .await;
    assert_eq!(heard.status, 200, "{heard:?}");
    let head = spy.heads().pop().expect("one");
    let told = fields(&head);
    for name in [
        "x-mine",
        "x-yours",
        "x-third",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "upgrade",
    ] {
        assert!(values(&told, name).is_empty(), "{name}: {head}");
    }
    assert_eq!(values(&told, "x-kept"), ["4"], "{head}");
    // What the framing and the route hang on cannot be taken away by naming it.
    let (heard, _) = super::spy::say(
        &gateway,
        format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\n\
             Connection: Host, X-Forwarded-For, X-Request-ID, Authorization\r\n\
             Authorization: Basic eDp5\r\n\r\n"
        ),
    )
    .await;
    assert!(matches!(heard.status, 200 | 400), "{heard:?}");
    for head in spy.heads() {
        let told = fields(&head);
        assert_eq!(values(&told, "host"), [HOST], "{head}");
        assert_eq!(values(&told, "x-forwarded-for"), ["127.0.0.1"], "{head}");
        assert_eq!(values(&told, "x-request-id").len(), 1, "{head}");
    }
    gateway.stop().await;
}

/// S19: on HTTP/2 such fields are malformed, `te: trailers` alone is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_of_one_hop_are_refused_on_http2() {
    let (gateway, _table, spy) = gateway().await;
    let seen = unwatched();
    let mut asker = Asker::dial(Speaks::H2, gateway.addresses.http).await;
    let question = Question {
        fields: &[("te", "trailers"), ("x-kept", "1")],
        ..Question::get(HOST, "/")
    };
    let heard = asker.ask(&question, &seen).await;
    assert_eq!(heard.status, 200, "{heard:?}");
    let head = spy.heads().pop().expect("one");
    assert_eq!(values(&fields(&head), "x-kept"), ["1"], "{head}");
    for (name, value) in [
        ("connection", "x-kept"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("X-Upper", "1"),
    ] {
        let mut stream = crate::support::client::dial(gateway.addresses.http).await;
        stream.write_all(&frames(&[(name, value)])).await.unwrap();
        let refused = timeout(DEADLINE, refused(&mut stream)).await;
        assert!(refused.expect("an answer in time"), "{name} was taken");
        assert!(spy.heads().is_empty(), "{name}");
    }
    // These frames are right without such a field.
    let mut stream = crate::support::client::dial(gateway.addresses.http).await;
    stream.write_all(&frames(&[("x-kept", "1")])).await.unwrap();
    let refused = timeout(DEADLINE, refused(&mut stream)).await;
    assert!(!refused.expect("an answer in time"));
    gateway.stop().await;
}

/// A connection's beginning and one GET with these fields, in frames: no library would send them.
fn frames(fields: &[(&str, &str)]) -> Vec<u8> {
    let usual = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", HOST),
    ];
    let mut block = Vec::new();
    for (name, value) in usual.iter().chain(fields) {
        // A literal that is not indexed (RFC 7541 section 6.2.2).
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    all.extend_from_slice(&[0, 0, u8::try_from(block.len()).unwrap(), 1, 5, 0, 0, 0, 1]);
    all.extend_from_slice(&block);
    all
}

/// Whether the stream is reset, the connection ended or the answer a refusal.
async fn refused(stream: &mut TcpStream) -> bool {
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return true;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            return true;
        }
        match head[3] {
            // HEADERS: 0x88 is `:status: 200`.
            1 => return payload[0] != 0x88,
            // RST_STREAM, GOAWAY
            3 | 7 => return true,
            _ => {}
        }
    }
}
