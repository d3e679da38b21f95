//! What is kept between requests, and how connections end.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::{HOST, Hands, Raw, gateway_to, scripted};
use crate::support::Options;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order_each_by_its_own_route() {
    let (origin, heads) = scripted(&[OK, OK.replace("ok", "OK").as_str()]).await;
    let (gateway, _table) = gateway_to(&origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    // S4: the second and the third are routed like the first.
    raw.say(
        "POST /1 HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\n\r\n\
         GET /2 HTTP/1.1\r\nHost: none.compute.localhost\r\n\r\n\
         GET /3 HTTP/1.1\r\nHost: HOST\r\n\r\n",
    )
    .await;
    assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(raw.bytes(2).await, "ok");
    let missing = raw.until("address\n").await;
    assert!(missing.starts_with("HTTP/1.1 404 "), "{missing:?}");
    assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(raw.bytes(2).await, "OK");
    assert_eq!(heads.lock().await.len(), 2);
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_may_come_byte_by_byte_and_its_answer_too() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    let mut up = None;
    for round in 0..2 {
        let body = "POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n\
                    3;x=\"y\"\r\nabc\r\n0\r\n\r\n";
        for byte in body.replace("HOST", HOST).bytes() {
            raw.0.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let up = match &mut up {
            Some(up) => up,
            None => up.insert(hands.next().await),
        };
        assert!(
            up.head()
                .await
                .ends_with("transfer-encoding: chunked\r\n\r\n")
        );
        let mut body = String::new();
        while !body.ends_with("0\r\n\r\n") {
            body.push_str(&up.bytes(1).await);
        }
        assert!(!body.contains(";x"), "{body:?}");
        for byte in
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".bytes()
        {
            up.0.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let answer = raw.until("0\r\n\r\n").await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let data: String = body.lines().skip(1).step_by(2).collect();
        assert!(
            data.starts_with("ok") || data == "ok" || body.contains('k'),
            "{round}: {body:?}"
        );
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_0_is_kept_alive_only_where_it_asks_and_the_length_is_known() {
    let open = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let (origin, heads) = scripted(&[OK, OK, open, OK]).await;
    let (gateway, _table) = gateway_to(&origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    let keep = "GET / HTTP/1.0\r\nHost: HOST\r\nConnection: keep-alive\r\n\r\n";
    for _ in 0..2 {
        raw.say(keep).await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head:?}");
        assert!(head.contains("\r\nconnection: keep-alive\r\n"), "{head:?}");
        assert_eq!(raw.bytes(2).await, "ok");
    }
    raw.say(keep).await;
    let (answer, clean) = raw.rest().await;
    assert!(
        clean && answer.ends_with("\r\nconnection: close\r\n\r\nok"),
        "{answer:?}"
    );
    let answer = Raw::whole(&gateway, "GET / HTTP/1.0\r\nHost: HOST\r\n\r\n").await;
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer:?}");
    // Upstreams are spoken to in 1.1 whatever the client speaks.
    assert!(
        heads
            .lock()
            .await
            .iter()
            .all(|head| head.starts_with("GET / HTTP/1.1\r\n"))
    );
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_ended_its_side_still_gets_its_answer() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say("POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\n\r\nabc")
        .await;
    raw.0.shutdown().await.unwrap();
    let mut up = hands.next().await;
    up.head().await;
    assert_eq!(up.bytes(3).await, "abc");
    up.say(OK).await;
    let (answer, clean) = raw.rest().await;
    assert!(clean && answer.ends_with("\r\n\r\nok"), "{answer:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_beyond_its_length_does_not_reach_the_next_client() {
    let surplus = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    let (origin, _) = scripted(&[surplus, OK]).await;
    let (gateway, _table) = gateway_to(&origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    for connections in [1, 2] {
        raw.say("GET / HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
        raw.head().await;
        assert_eq!(raw.bytes(2).await, "ok");
        assert_eq!(origin.connections.load(Ordering::SeqCst), connections);
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_idle_upstream_says_is_the_answer_to_nothing() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say("GET /1 HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    let mut first = hands.next().await;
    first.head().await;
    first.say(OK).await;
    raw.head().await;
    raw.bytes(2).await;
    first
        .say("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        .await;
    // The gateway lets go of it by itself.
    assert_eq!(first.rest().await.0, "");
    raw.say("GET /2 HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    let mut second = hands.next().await;
    assert!(second.head().await.starts_with("GET /2 "));
    second.say(OK).await;
    raw.head().await;
    assert_eq!(raw.bytes(2).await, "ok");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_closes_after_an_answer_where_either_side_wants_it() {
    let (origin, heads) =
        scripted(&[OK, &OK.replace("OK\r\n", "OK\r\nConnection: close\r\n"), OK]).await;
    let (gateway, _table) = gateway_to(&origin, Options::default()).await;
    let ask = "GET / HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n";
    let answer = Raw::whole(&gateway, ask).await;
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer:?}");
    // The client's wish is not the upstream's business, nor the other way round.
    assert!(!heads.lock().await[0].contains("onnection"));
    let mut raw = Raw::to(&gateway).await;
    for _ in 0..2 {
        raw.say("GET / HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
        let head = raw.head().await;
        assert!(!head.contains("onnection"), "{head:?}");
        raw.bytes(2).await;
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 2);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_between_requests_ends_a_connection_without_a_word() {
    let (origin, _) = scripted(&[OK]).await;
    let options = Options::default().flag("--idle-timeout", "300ms");
    let (gateway, _table) = gateway_to(&origin, options).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say("GET / HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    raw.head().await;
    raw.bytes(2).await;
    let begun = Instant::now();
    assert_eq!(raw.rest().await, (String::new(), true));
    assert!(begun.elapsed() >= Duration::from_millis(250));
    gateway.stop().await;
}

/// RFC 9112, section 9.6: whoever closes after an answer says so in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_the_gateways_own_says_that_it_is_the_last_if_a_body_is_left_unread() {
    let (origin, _) = scripted(&[]).await;
    let (gateway, _table) = gateway_to(&origin, Options::default()).await;
    for body in [
        "Content-Length: 5\r\n\r\nhe",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n",
    ] {
        let ask = format!("POST / HTTP/1.1\r\nHost: none.compute.localhost\r\n{body}");
        let answer = Raw::whole(&gateway, &ask).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer:?}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer:?}");
    }
    let mut raw = Raw::to(&gateway).await;
    for framing in ["", "Content-Length: 0\r\n", ""] {
        raw.say(&format!(
            "POST / HTTP/1.1\r\nHost: none.compute.localhost\r\n{framing}\r\n"
        ))
        .await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head:?}");
        assert!(!head.contains("\r\nconnection: "), "{head:?}");
        let (_, length) = head.split_once("content-length: ").unwrap();
        let length = length.split("\r\n").next().unwrap();
        raw.bytes(length.parse().unwrap()).await;
    }
    gateway.stop().await;
}
