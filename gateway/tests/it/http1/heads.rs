//! What of a head reaches the other side, and heads that are refused.

use super::{HOST, Raw, gateway_to, scripted};
use crate::support::{Options, Origin};

const OK: &str = "HTTP/1.1 200 Fine By Me\r\nX-aB: 1\r\nSet-Cookie: a=1\r\nDate: x\r\nset-cookie: b=2\r\n\
                  Content-Length: 2\r\nKeep-Alive: timeout=5\r\n\r\nok";

/// C21: path, query, header case and order are the client's, byte by byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_values_order_and_target_pass_untouched() {
    let (origin, heads) = scripted(&[OK]).await;
    let (gateway, _table) = gateway_to(&origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say(
        "GeT //a%2f%7Eb;c=d/?q=%zz&&?x HTTP/1.1\r\nACCEPT: */*\r\nhOST: HOST\r\nX-Empty:\r\nx-b: 2\t 3\r\n\
         X-B: 4\r\nContent-LENGTH: 0\r\n\r\n",
    )
    .await;
    let head = raw.head().await;
    let (before, after) = head.split_once("x-request-id: ").unwrap();
    assert_eq!(
        before,
        "HTTP/1.1 200 Fine By Me\r\nX-aB: 1\r\nSet-Cookie: a=1\r\nDate: x\r\nset-cookie: b=2\r\nContent-Length: 2\r\n"
    );
    assert_eq!(after.matches("\r\n").count(), 2);
    let heads = heads.lock().await;
    let (before, after) = heads[0]
        .split_once("x-forwarded-for: 127.0.0.1\r\n")
        .unwrap();
    assert_eq!(
        before,
        format!(
            "GeT //a%2f%7Eb;c=d/?q=%zz&&?x HTTP/1.1\r\nACCEPT: */*\r\nhOST: {HOST}\r\nX-Empty: \r\nx-b: 2\t 3\r\n\
             X-B: 4\r\nContent-LENGTH: 0\r\n"
        )
    );
    assert!(after.starts_with(&format!(
        "x-forwarded-proto: http\r\nx-forwarded-host: {HOST}\r\nx-request-id: "
    )));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_to_the_server_as_a_whole_and_an_absolute_target_pass() {
    let (origin, heads) = scripted(&[OK, OK]).await;
    let (gateway, _table) = gateway_to(&origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say("OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\nGET http://HOST:81/x?y HTTP/1.1\r\nHost: other.test\r\n\r\n")
        .await;
    for _ in 0..2 {
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        raw.bytes(2).await;
    }
    let heads = heads.lock().await;
    assert!(
        heads[0].starts_with(&format!("OPTIONS * HTTP/1.1\r\nHost: {HOST}\r\n")),
        "{heads:?}"
    );
    assert!(
        heads[1].starts_with(&format!("GET /x?y HTTP/1.1\r\nHost: {HOST}:81\r\n")),
        "{heads:?}"
    );
    gateway.stop().await;
}

/// S3, S6: what could be understood in two ways reaches no upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_head_has_its_status_an_id_and_ends_the_connection() {
    let (origin, heads) = scripted(&[]).await;
    let (gateway, _table) = gateway_to(&origin, Options::default()).await;
    let long = "x".repeat(17 << 10);
    let fields = "a: b\r\n".repeat(129);
    let large = format!("a: {}\r\n", "x".repeat(66 << 10));
    for (request, status) in [
        (format!("GET /{long} HTTP/1.1\r\nHost: HOST\r\n\r\n"), 414),
        (format!("GET / HTTP/1.1\r\nHost: HOST\r\n{fields}\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: HOST\r\n{large}\r\n"), 431),
        ("GET / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".into(), 501),
        ("GET / HTTP/1.2\r\nHost: HOST\r\n\r\n".into(), 505),
        ("GET / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx".into(), 400),
        ("GET / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\nHost: HOST\n\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: HOST\r\n folded\r\n\r\n".into(), 400),
        ("GET  / HTTP/1.1\r\nHost: HOST\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost : HOST\r\n\r\n".into(), 400),
    ] {
        let begin = request.chars().take(60).collect::<String>();
        let mut raw = Raw::to(&gateway).await;
        raw.say(&request).await;
        let (answer, clean) = raw.rest().await;
        assert!(clean, "{begin:?}");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{begin:?}: {answer:?}");
        assert!(answer.contains("\r\nx-request-id: ") && answer.contains("\r\nconnection: close\r\n"), "{answer:?}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer:?}");
    }
    assert!(heads.lock().await.is_empty());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_comes_too_slowly_is_a_408() {
    let (origin, _) = scripted(&[]).await;
    let options = Options::default().flag("--header-timeout", "300ms");
    let (gateway, _table) = gateway_to(&origin, options).await;
    let answer = Raw::whole(&gateway, "GET / HTTP/1.1\r\nHost: ").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    assert!(answer.contains("\r\nx-request-id: "), "{answer:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_none_is_a_502() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(300));
    let large = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "x".repeat(140 << 10));
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\nserver: x\n\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        &many,
        &large,
    ] {
        let answer: &'static str = answer.to_owned().leak();
        let origin = Origin::blunt("127.64.0.2", answer).await;
        let (gateway, _table) = gateway_to(&origin, Options::default()).await;
        let mut raw = Raw::to(&gateway).await;
        raw.say("GET / HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
        assert!(
            raw.head().await.starts_with("HTTP/1.1 502 "),
            "{answer:.60?}"
        );
        gateway.stop().await;
    }
}
