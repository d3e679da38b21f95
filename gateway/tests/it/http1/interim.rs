//! 1xx: what is passed on, and who asks for a body.

use std::time::{Duration, Instant};

use super::{Hands, Raw, gateway_to};
use crate::support::Options;

const ASK: &str =
    "POST / HTTP/1.1\r\nHost: HOST\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";

/// C15: the upstream decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expectation_is_answered_by_the_upstreams_100() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say(ASK).await;
    let mut up = hands.next().await;
    let head = up.head().await;
    assert!(head.contains("\r\nExpect: 100-continue\r\n"), "{head:?}");
    up.say("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(raw.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    raw.say("abc").await;
    assert_eq!(up.bytes(3).await, "abc");
    up.say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let head = raw.head().await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && !head.contains("connection"),
        "{head:?}"
    );
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expectation_may_be_refused_and_no_body_is_ever_sent() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say(ASK).await;
    let mut up = hands.next().await;
    up.head().await;
    up.say("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n")
        .await;
    // Whether the body comes all the same cannot be known: the connection ends.
    let (answer, clean) = raw.rest().await;
    assert!(clean && answer.starts_with("HTTP/1.1 417 "), "{answer:?}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer:?}");
    assert_eq!(up.rest().await.0, "");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_upstream_gets_its_body_after_a_second() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    let begun = Instant::now();
    raw.say(ASK).await;
    let mut up = hands.next().await;
    up.head().await;
    assert_eq!(raw.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(begun.elapsed() >= Duration::from_millis(900));
    raw.say("abc").await;
    assert_eq!(up.bytes(3).await, "abc");
    // Its own 100 comes too late to mean anything.
    up.say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answers_pass_to_those_who_know_them() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n";
    for version in ["1.1", "1.0"] {
        let mut raw = Raw::to(&gateway).await;
        raw.say(&format!("GET / HTTP/{version}\r\nHost: HOST\r\n\r\n"))
            .await;
        let mut up = hands.next().await;
        up.head().await;
        up.say(hints).await;
        if version == "1.1" {
            let passed = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
            assert_eq!(raw.head().await, passed);
            up.say(hints).await;
            assert_eq!(raw.head().await, passed);
        }
        up.say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: close\r\n\r\n").await;
        let head = raw.head().await;
        assert!(
            head.starts_with(&format!("HTTP/{version} 200 ")),
            "{head:?}"
        );
    }
    let mut raw = Raw::to(&gateway).await;
    raw.say("GET / HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    let mut up = hands.next().await;
    up.head().await;
    up.say(&"HTTP/1.1 102 Processing\r\n\r\n".repeat(1000))
        .await;
    let mut head = raw.head().await;
    while head.starts_with("HTTP/1.1 102 ") {
        head = raw.head().await;
    }
    assert!(head.starts_with("HTTP/1.1 502 "), "{head:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_a_switch_in_the_same_segment_is_not_lost() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say("GET / HTTP/1.1\r\nHost: HOST\r\nConnection: upgrade\r\nUpgrade: x/1\r\n\r\nearly ")
        .await;
    let mut up = hands.next().await;
    let head = up.head().await;
    assert!(
        head.ends_with("connection: upgrade\r\nupgrade: x/1\r\n\r\n"),
        "{head:?}"
    );
    up.say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x/1\r\nConnection: upgrade\r\n\r\nHTTP/1.1 200").await;
    let head = raw.head().await;
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("\r\nupgrade: x/1\r\n"),
        "{head:?}"
    );
    assert_eq!(raw.bytes(12).await, "HTTP/1.1 200");
    raw.say("GET").await;
    assert_eq!(up.bytes(9).await, "early GET");
    up.say("bye").await;
    drop(up);
    assert_eq!(raw.rest().await.0, "bye");
    gateway.stop().await;
}
