//! What of a request and its answer passes, and what does not, frame by frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::frames::*;
use crate::support::{DEADLINE, Gateway, Options, Origin, Table, read_head};

const HOST: &str = "c1.compute.localhost";

/// An upstream that tells what it reads up to the end of the connection, after it has said `answer`.
async fn telling(answer: &'static str) -> (Gateway, Origin, mpsc::UnboundedReceiver<String>) {
    let (tell, told) = mpsc::unbounded_channel();
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let tell = tell.clone();
        async move {
            let head = read_head(&mut stream).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let mut rest = Vec::new();
            let _ = timeout(DEADLINE, stream.read_to_end(&mut rest)).await;
            let _ = tell.send(head + &String::from_utf8_lossy(&rest));
        }
    })
    .await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    (gateway, origin, told)
}

async fn heard(told: &mut mpsc::UnboundedReceiver<String>) -> String {
    timeout(DEADLINE, told.recv())
        .await
        .expect("in time")
        .expect("something")
}

const PLAIN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_whole_is_a_head_and_one_frame() {
    let (gateway, _origin, _told) = telling(PLAIN).await;
    let mut raw = Raw::open(gateway.addresses.http).await;
    raw.get(1, HOST, "/").await;
    assert!(!raw.until(HEADERS, 1).await.ends());
    let data = raw.until(DATA, 1).await;
    assert_eq!(data.payload, b"ok");
    assert!(data.ends(), "the end has a frame of its own");
    gateway.stop().await;
}

/// S1, S3, S6, S19: what would be another request elsewhere never gets there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_ambiguous_reaches_an_upstream() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let count = Arc::clone(&count);
        async move {
            if !read_head(&mut stream).await.is_empty() {
                count.fetch_add(1, Ordering::SeqCst);
            }
            let _ = stream.write_all(PLAIN.as_bytes()).await;
        }
    })
    .await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let usual = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", HOST),
        (":path", "/"),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&usual[..], more].concat();
    let without = |name: &str| {
        usual
            .iter()
            .filter(|(n, _)| *n != name)
            .copied()
            .collect::<Vec<_>>()
    };
    let instead = |name: &'static str, value: &'static str| {
        usual
            .iter()
            .map(|&(n, v)| if n == name { (n, value) } else { (n, v) })
            .collect::<Vec<_>>()
    };
    let bad = [
        without(":method"),
        without(":scheme"),
        without(":authority"),
        without(":path"),
        instead(":method", "CONNECT"),
        instead(":method", "GET / HTTP/1.1\r\nx: y"),
        instead(":path", ""),
        instead(":path", "*"),
        instead(":path", "no-slash"),
        instead(":path", "/ HTTP/1.1\r\nHost: evil"),
        instead(":path", "/a b"),
        instead(":path", "/\u{0}"),
        instead(":path", "/../up"),
        instead(":authority", "user@c1.compute.localhost"),
        instead(":authority", "c1.compute.localhost, evil"),
        instead(":authority", "c1.compute.localhost\r\nx: y"),
        instead(":scheme", "http\r\nx: y"),
        instead(":scheme", "gopher"),
        with(&[(":status", "200")]),
        with(&[(":protocol", "websocket")]),
        with(&[(":path", "/twice")]),
        with(&[("x-first", "1"), (":late", "1")]),
        with(&[("X-Upper", "1")]),
        with(&[("", "1")]),
        with(&[("x y", "1")]),
        with(&[("x:y", "1")]),
        with(&[("x", "1\r\ny: 2")]),
        with(&[("x", "1\ny: 2")]),
        with(&[("x", "1\u{0}")]),
        with(&[("x", " 1")]),
        with(&[("x", "1 ")]),
        with(&[("connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("keep-alive", "5")]),
        with(&[("proxy-connection", "keep-alive")]),
        with(&[("upgrade", "h2c")]),
        with(&[("te", "trailers, chunked")]),
        with(&[("host", "evil.example")]),
        with(&[("host", HOST), ("host", HOST)]),
        with(&[("content-length", "1")]),
        with(&[("content-length", "x")]),
        with(&[("content-length", "0"), ("content-length", "00")]),
        with(&[("expect", "the unexpected")]),
    ];
    for fields in bad {
        let mut raw = Raw::open(gateway.addresses.http).await;
        raw.send(&frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &block(&fields),
        ))
        .await;
        // Refused with a status or reset: where HTTP/2 forbids it itself, with a reset.
        let refused = loop {
            let seen = raw.next().await.expect("no end without a word");
            match seen.kind {
                HEADERS => assert!((400..500).contains(&seen.status()), "{fields:?}: {seen:?}"),
                RST_STREAM => assert_eq!(seen.code(), PROTOCOL_ERROR, "{fields:?}"),
                GOAWAY => assert_eq!(seen.code(), PROTOCOL_ERROR, "{fields:?}"),
                _ => continue,
            }
            break seen.kind;
        };
        if refused == GOAWAY {
            continue;
        }
        // The connection is still good for others.
        raw.get(3, "c2.compute.localhost", "/").await;
        assert_eq!(raw.whole(3).await.0, 404, "{fields:?}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_are_joined_trailers_asked_for_and_the_host_is_the_authority() {
    let (gateway, _origin, mut told) = telling(PLAIN).await;
    let mut raw = Raw::open(gateway.addresses.http).await;
    let fields = [
        ("cookie", "a=1"),
        ("te", "trailers"),
        ("cookie", "b=2"),
        ("x-keep", "Case  And Blanks"),
    ];
    let head = head("GET", HOST, "/a%2Fb?q=%20", &fields);
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head))
        .await;
    assert_eq!(raw.whole(1).await, (200, b"ok".to_vec(), None));
    let seen = heard(&mut told).await;
    assert!(seen.starts_with("GET /a%2Fb?q=%20 HTTP/1.1\r\n"), "{seen}");
    for line in [
        "host: c1.compute.localhost",
        "cookie: a=1; b=2",
        "te: trailers",
        "x-keep: Case  And Blanks",
    ] {
        assert!(seen.contains(&format!("\r\n{line}\r\n")), "{line}: {seen}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_and_trailers_pass_both_ways() {
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
        3\r\nabc\r\n0\r\nx-sum: 7\r\nset-cookie: no\r\n\r\n";
    let (gateway, _origin, mut told) = telling(answer).await;
    let mut raw = Raw::open(gateway.addresses.http).await;
    raw.send(&frame(
        HEADERS,
        END_HEADERS,
        1,
        &head("POST", HOST, "/", &[]),
    ))
    .await;
    raw.send(&frame(DATA, 0, 1, b"hello")).await;
    raw.send(&frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &block(&[("x-hash", "42")]),
    ))
    .await;
    assert_eq!(raw.until(HEADERS, 1).await.status(), 200);
    let data = raw.until(DATA, 1).await;
    assert_eq!((&data.payload[..], data.ends()), (&b"abc"[..], false));
    let trailers = raw.until(HEADERS, 1).await;
    assert!(trailers.ends());
    let seen = heard(&mut told).await;
    assert!(
        seen.contains("\r\ntransfer-encoding: chunked\r\n"),
        "{seen}"
    );
    assert!(
        seen.ends_with("5\r\nhello\r\n0\r\nx-hash: 42\r\n\r\n"),
        "{seen}"
    );
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_contradicts_its_length_is_reset_and_never_completed_upstream() {
    for (data, ends) in [(&b"shor"[..], true), (b"too long", false)] {
        let (gateway, _origin, mut told) = telling("").await;
        let mut raw = Raw::open(gateway.addresses.http).await;
        let head = head("POST", HOST, "/", &[("content-length", "5")]);
        raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        raw.send(&frame(DATA, u8::from(ends), 1, data)).await;
        assert_eq!(raw.until(RST_STREAM, 1).await.code(), PROTOCOL_ERROR);
        let seen = heard(&mut told).await;
        let (_, body) = seen.split_once("\r\n\r\n").unwrap_or_default();
        assert!(body.len() < 5, "{seen}");
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answers_pass_before_the_final_one() {
    let answer = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n\
        HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
    let (gateway, _origin, mut told) = telling(answer).await;
    let mut raw = Raw::open(gateway.addresses.http).await;
    let head = head(
        "POST",
        HOST,
        "/",
        &[("expect", "100-continue"), ("content-length", "2")],
    );
    raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    for status in [103, 100] {
        let interim = raw.until(HEADERS, 1).await;
        assert_eq!((interim.status(), interim.ends()), (status, false));
    }
    raw.send(&frame(DATA, END_STREAM, 1, b"hi")).await;
    assert_eq!(raw.whole(1).await, (200, b"ok".to_vec(), None));
    assert!(heard(&mut told).await.ends_with("\r\n\r\nhi"));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_end_with_their_head() {
    for (method, answer, status) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\n",
            200,
        ),
        (
            "GET",
            "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
            204,
        ),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\nconnection: close\r\n\r\n",
            304,
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            200,
        ),
    ] {
        let (gateway, _origin, _told) = telling(answer).await;
        let mut raw = Raw::open(gateway.addresses.http).await;
        let head = head(method, HOST, "/", &[]);
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head))
            .await;
        let answer = raw.until(HEADERS, 1).await;
        assert_eq!(
            (answer.status(), answer.ends()),
            (status, true),
            "{method} {status}"
        );
        gateway.stop().await;
    }
}

/// C12: what arrived before the cut arrives, and then it looks like a cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_is_reset_after_what_came_of_it() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n",
    ] {
        let origin = Origin::blunt("127.64.0.2", answer).await;
        let gateway = Gateway::start(Options::default()).await;
        Table::of(&gateway).run("c1", 80, origin.address);
        let mut raw = Raw::open(gateway.addresses.http).await;
        raw.get(1, HOST, "/").await;
        let seen = raw.whole(1).await;
        assert_eq!(
            seen,
            (200, b"abc".to_vec(), Some(INTERNAL_ERROR)),
            "{answer:?}"
        );
        gateway.stop().await;
    }
}

/// C13: an answer that does not wait for the upload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_ends_the_upload_without_an_error() {
    let (gateway, _origin, _told) =
        telling("HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig")
            .await;
    let mut raw = Raw::open(gateway.addresses.http).await;
    raw.send(&frame(
        HEADERS,
        END_HEADERS,
        1,
        &head("POST", HOST, "/", &[]),
    ))
    .await;
    raw.send(&frame(DATA, 0, 1, &[7; 1000])).await;
    assert_eq!(raw.whole(1).await, (413, b"big".to_vec(), None));
    assert_eq!(raw.until(RST_STREAM, 1).await.code(), NO_ERROR);
    // Frames that were on their way do no harm.
    raw.send(&frame(DATA, 0, 1, &[7; 1000])).await;
    raw.get(3, "c2.compute.localhost", "/").await;
    assert_eq!(raw.whole(3).await.0, 404);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_taken_back_is_taken_back_upstream() {
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"] {
        let (gateway, _origin, mut told) = telling(answer).await;
        let mut raw = Raw::open(gateway.addresses.http).await;
        raw.get(1, HOST, "/").await;
        if answer.is_empty() {
            // So that it is there.
            raw.send(&frame(PING, 0, 0, &[1; 8])).await;
            raw.until(PING, 0).await;
        } else {
            raw.until(DATA, 1).await;
        }
        raw.send(&frame(RST_STREAM, 0, 1, &8u32.to_be_bytes()))
            .await;
        heard(&mut told).await;
        gateway.stop().await;
    }
}
