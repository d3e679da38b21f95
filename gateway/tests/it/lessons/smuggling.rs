//! Heads and framing that two readers could understand differently.

use tokio::io::AsyncReadExt;

use crate::support::ask::{H1, unwatched};
use crate::support::{Gateway, Options};

use super::spy::{HOST, gateway, say};

/// S3: with a bare LF before the empty line the head went through without the gateway's fields.
/// S6: folded and indented Host lines were honoured, a second Host was not noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambiguous_heads_reach_nobody() {
    let (gateway, _table, spy) = gateway().await;
    for head in [
        // S3
        format!("GET / HTTP/1.1\r\nHost: {HOST}\n\r\n"),
        format!("GET / HTTP/1.1\nHost: {HOST}\n\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: a\nY: b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: a\rb\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: a\0b\r\n\r\n"),
        // S6
        format!("GET / HTTP/1.1\r\nHost: other\r\n {HOST}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nX: a\r\n Host: {HOST}\r\nHost: {HOST}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n Host: {HOST}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: other\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nhost: {HOST}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost : {HOST}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}, other\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST} other\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: user@{HOST}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}/x\r\n\r\n"),
        format!("GET http://user@{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned(),
        // The request line.
        format!("GET  / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET /  HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET\t/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET / x HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET /#x HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET x HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET / http/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET / HTTP/1.10\r\nHost: {HOST}\r\n\r\n"),
        format!("GET / HTTP/1.1 \r\nHost: {HOST}\r\n\r\n"),
        format!("G(T / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        // Lengths.
        format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
        ),
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1, 2\r\n\r\nab"),
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: +1\r\n\r\na"),
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0x1\r\n\r\na"),
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1 1\r\n\r\na"),
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: -1\r\n\r\na"),
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length:\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 99999999999999999999\r\n\r\n"),
        format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"
        ),
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.0\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ] {
        let (heard, _) = say(&gateway, &head).await;
        assert!(
            matches!(heard.status, 400 | 501 | 505),
            "{head:?}: {heard:?}"
        );
        assert_eq!(heard.field("connection"), Some("close"), "{head:?}");
        assert!(heard.field("x-request-id").is_some(), "{head:?}");
        assert!(!spy.was_dialled(), "{head:?}");
    }
    gateway.stop().await;
}

/// S4: length and chunks that disagree let a second request through unseen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_beside_chunks_smuggles_nothing() {
    let (gateway, _table, spy) = gateway().await;
    let hidden = format!("GET /hidden HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let chunk = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    for text in [
        // The length says the hidden request is body, the chunks say it is not.
        format!(
            "POST /first HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\
             Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
            5 + hidden.len()
        ),
        // The other way round.
        format!(
            "POST /first HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\
             Content-Length: 4\r\n\r\n{chunk}"
        ),
        // One of them in disguise.
        format!(
            "POST /first HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\
             Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST /first HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\
             Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
    ] {
        let mut h1 = H1::dial(gateway.addresses.http).await;
        h1.say(&text).await;
        let mut all = Vec::new();
        let read = h1.stream.read_to_end(&mut all);
        let end = tokio::time::timeout(crate::support::DEADLINE, read).await;
        let _ = end.expect("closed after it");
        let all = String::from_utf8_lossy(&all).into_owned();
        assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{text:?}: {all}");
        for head in spy.heads() {
            // As a body it may pass: this upstream does not read bodies and shows what it got.
            assert!(!head.starts_with("GET /hidden"), "{text:?}: {head}");
        }
    }
    gateway.stop().await;
}

/// S14: one endless line, or endless many, were read into memory without a limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_without_end_are_refused_at_a_limit() {
    let (gateway, _table, spy) = gateway().await;
    let http = gateway.addresses.http;
    for (what, begin, piece, statuses) in [
        ("a target", "GET /".to_owned(), "a", [414, 431]),
        ("a method", String::new(), "A", [400, 431]),
        (
            "a value",
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: "),
            "a",
            [431, 431],
        ),
        (
            "a name",
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n"),
            "a",
            [431, 400],
        ),
        (
            "fields",
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n"),
            "x: y\r\n",
            [431, 431],
        ),
    ] {
        for address in [http, gateway.port(0)] {
            // On a dynamic port what is no method is no HTTP, and goes raw to the port's owner.
            if what == "a method" && address != http {
                continue;
            }
            let mut h1 = H1::dial(address).await;
            let (mut read, mut write) = h1.stream.split();
            let endless = piece.repeat(8 << 10);
            let mut heard = Vec::new();
            let begin = begin.as_bytes();
            let sending = async {
                use tokio::io::AsyncWriteExt;
                let mut sent = 0;
                let _ = write.write_all(begin).await;
                // A reset or a lot too much ends it.
                while sent < 64 << 20 && write.write_all(endless.as_bytes()).await.is_ok() {
                    sent += endless.len();
                }
                sent
            };
            let hearing = read.read_to_end(&mut heard);
            let both = async { tokio::join!(sending, hearing) };
            let both = tokio::time::timeout(crate::support::DEADLINE, both).await;
            let (sent, _) = both.unwrap_or_else(|_| panic!("{what} is read without end"));
            assert!(sent < 64 << 20, "{what}: {sent} bytes were taken");
            let heard = String::from_utf8_lossy(&heard).into_owned();
            let expected = statuses
                .iter()
                .any(|status| heard.starts_with(&format!("HTTP/1.1 {status} ")));
            // The answer may be lost in the reset that the unread rest causes; nothing else may
            // come.
            assert!(expected || heard.is_empty(), "{what}: {heard}");
        }
    }
    assert!(!spy.was_dialled());
    gateway.stop().await;
}

/// S14: the limits themselves, on each side of each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_up_to_the_limits_are_served() {
    let (gateway, _table, spy) = gateway().await;
    let ask = |target: usize, fields: usize, value: usize| {
        let target = "t".repeat(target - 1);
        let fields: String = (0..fields - 1).map(|n| format!("x{n}: y\r\n")).collect();
        let value = "v".repeat(value);
        format!("GET /{target} HTTP/1.1\r\nHost: {HOST}\r\n{fields}big: {value}\r\n\r\n")
    };
    for (target, fields, value, status) in [
        (1, 2, 1, 200),
        (16 << 10, 2, 1, 200),
        ((16 << 10) + 1, 2, 1, 414),
        (1, 127, 1, 200),
        (1, 128, 1, 431),
        (1, 2, 60 << 10, 200),
        (1, 2, 64 << 10, 431),
    ] {
        let (heard, _) = say(&gateway, ask(target, fields, value)).await;
        assert_eq!(
            heard.status, status,
            "target {target}, fields {fields}, value {value}: {heard:?}"
        );
        assert_eq!(spy.heads().len(), usize::from(status == 200));
    }
    gateway.stop().await;
}

/// C20: brackets of an IPv6 literal were kept or cut inside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv6_literals_are_hosts_like_others() {
    let origin = crate::support::Origin::friendly("127.0.0.1").await;
    let routes = format!(
        "routes:\n- {{host: a.test, target: '{}'}}\n",
        origin.address
    );
    let gateway = Gateway::start(Options::routes(routes)).await;
    for (host, status) in [
        ("[::1]", 404),
        ("[::1]:8080", 404),
        ("[2001:db8::1%25eth0]", 400),
        ("[::1", 400),
        ("::1", 400),
        ("[::1]x", 400),
        ("[::1]:x", 400),
        ("[::g]", 400),
        ("[]", 400),
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let (heard, _) = say(&gateway, &head).await;
        assert_eq!(heard.status, status, "{host}: {heard:?}");
        let head =
            format!("GET http://{host}/ HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
        let (heard, _) = say(&gateway, &head).await;
        assert_eq!(heard.status, status, "absolute {host}: {heard:?}");
    }
    gateway.stop().await;
}

/// A request after one that was answered with 400 is not read at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_after_a_malformed_request() {
    let (gateway, _table, spy) = gateway().await;
    let mut h1 = H1::dial(gateway.addresses.http).await;
    h1.say(format!(
        "GET /a HTTP/1.1\r\nHost: {HOST}\nX: y\r\n\r\nGET /b HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    ))
    .await;
    let heard = h1.answer(false, &unwatched()).await;
    assert_eq!(heard.status, 400, "{heard:?}");
    h1.ends().await;
    assert!(!spy.was_dialled());
    gateway.stop().await;
}
