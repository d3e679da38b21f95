//! Bodies: how they are delimited on one side and on the other.

use tokio::io::AsyncWriteExt;

use super::{Hands, Raw, gateway_to, scripted};
use crate::support::Options;

const TRAILERS: &str = "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                        2\r\nok\r\n0\r\nX-Sum: 7\r\nContent-Length: 9\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_reach_the_clients_that_take_them() {
    let (origin, heads) = scripted(&[TRAILERS, TRAILERS]).await;
    let (gateway, _table) = gateway_to(&origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say("GET / HTTP/1.1\r\nHost: HOST\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
        .await;
    let head = raw.head().await;
    assert!(head.contains("\r\nTrailer: x-sum\r\n"), "{head:?}");
    // What may not be a trailer is left out.
    let body = "2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n";
    assert_eq!(raw.bytes(body.len()).await, body);
    raw.say("GET / HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    raw.head().await;
    let body = "2\r\nok\r\n0\r\n\r\n";
    assert_eq!(raw.bytes(body.len()).await, body);
    let heads = heads.lock().await;
    assert!(
        heads[0].contains("\r\nconnection: te\r\nte: trailers\r\n"),
        "{heads:?}"
    );
    assert!(!heads[1].contains("\r\nte: "), "{heads:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_are_written_anew_and_request_trailers_reach_the_upstream() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say(
        "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: Chunked\r\n\r\n\
         0003;name=\"va;lue\"\r\nabc\r\n2\r\nde\r\n000;last\r\nX-Sum: 5\r\nHost: evil.test\r\n\r\n",
    )
    .await;
    let mut up = hands.next().await;
    let head = up.head().await;
    assert!(
        head.ends_with("\r\ntransfer-encoding: chunked\r\n\r\n"),
        "{head:?}"
    );
    let body = up.until("0\r\nX-Sum: 5\r\n\r\n").await;
    assert_eq!(body, "3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n");
    up.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    let head = raw.head().await;
    assert!(
        head.starts_with("HTTP/1.1 204 ") && !head.contains("ontent-"),
        "{head:?}"
    );
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_up_to_the_close_is_chunked_for_1_1_and_closed_for_1_0() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    for (version, body) in [("1.1", "2\r\nok\r\n1\r\n!\r\n0\r\n\r\n"), ("1.0", "ok!")] {
        let mut raw = Raw::to(&gateway).await;
        raw.say(&format!("GET / HTTP/{version}\r\nHost: HOST\r\n\r\n"))
            .await;
        let mut up = hands.next().await;
        up.head().await;
        up.say("HTTP/1.0 200 OK\r\n\r\nok").await;
        let head = raw.head().await;
        assert_eq!(
            head.contains("\r\ntransfer-encoding: chunked\r\n"),
            version == "1.1",
            "{head:?}"
        );
        // The first piece does not wait for the second.
        let first = if version == "1.1" { 7 } else { 2 };
        assert_eq!(raw.bytes(first).await, body[..first]);
        up.say("!").await;
        up.0.shutdown().await.unwrap();
        if version == "1.1" {
            assert_eq!(raw.bytes(body.len() - first).await, body[first..]);
        } else {
            assert_eq!(raw.rest().await, (body[first..].into(), true));
        }
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_leave_the_connection_usable() {
    let (origin, _) = scripted(&[
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ])
    .await;
    let (gateway, _table) = gateway_to(&origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    for (method, status, length) in [
        ("HEAD", "200", Some("5")),
        ("HEAD", "200", None),
        ("GET", "304", Some("7")),
        ("DELETE", "204", None),
        ("GET", "200", Some("2")),
    ] {
        raw.say(&format!("{method} / HTTP/1.1\r\nHost: HOST\r\n\r\n"))
            .await;
        let head = raw.head().await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{method}: {head:?}"
        );
        let told = head
            .lines()
            .find_map(|l| l.strip_prefix("Content-Length: "));
        assert_eq!(told, length, "{head:?}");
    }
    assert_eq!(raw.bytes(2).await, "ok");
    gateway.stop().await;
}

/// A body that was cut must not look complete to anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_body_that_breaks_is_never_ended_for_the_upstream() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    for (framing, begin, rest) in [
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n", "x\r\n"),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n", ""),
        ("Content-Length: 9", "abc", ""),
    ] {
        let mut raw = Raw::to(&gateway).await;
        raw.say(&format!(
            "POST / HTTP/1.1\r\nHost: HOST\r\n{framing}\r\n\r\n{begin}"
        ))
        .await;
        let mut up = hands.next().await;
        up.head().await;
        up.until("abc").await;
        raw.say(rest).await;
        if rest.is_empty() {
            raw.0.shutdown().await.unwrap();
        }
        let (seen, clean) = up.rest().await;
        assert!(!clean && !seen.contains("0\r\n"), "{framing}: {seen:?}");
        let (answer, _) = raw.rest().await;
        if rest.is_empty() {
            assert_eq!(answer, "");
        } else {
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
        }
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answers_broken_chunk_is_cut_for_the_client() {
    let (origin, _) = scripted(&[
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\nevil\r\n0\r\n\r\n",
    ])
    .await;
    let (gateway, _table) = gateway_to(&origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say("GET / HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    raw.head().await;
    assert_eq!(raw.bytes(7).await, "2\r\nok\r\n");
    assert_eq!(raw.rest().await.0, "");
    gateway.stop().await;
}
