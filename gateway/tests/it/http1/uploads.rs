//! Uploads: early answers, stalls, back-pressure.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::{Hands, Raw, gateway_to};
use crate::support::{DEADLINE, Options};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// C13: the rest of an answered upload is never taken for the next request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_goes_on_after_its_answer_is_finished_and_both_sides_are_kept() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say("POST /1 HTTP/1.1\r\nHost: HOST\r\nContent-Length: 6\r\n\r\nabc")
        .await;
    let mut up = hands.next().await;
    up.head().await;
    up.say(OK).await;
    raw.head().await;
    assert_eq!(raw.bytes(2).await, "ok");
    raw.say("def").await;
    assert_eq!(up.bytes(6).await, "abcdef");
    raw.say("GET /2 HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    assert!(up.head().await.starts_with("GET /2 "));
    up.say(OK).await;
    raw.head().await;
    assert_eq!(raw.bytes(2).await, "ok");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_answers_and_closes_is_heard_though_it_reads_nothing() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    for _ in 0..5 {
        let mut raw = Raw::to(&gateway).await;
        raw.say("POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        let mut up = hands.next().await;
        up.head().await;
        up.say("HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno")
            .await;
        drop(up);
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        let upload = async {
            // Until it is not taken any more, or the answer is there.
            for _ in 0..64 {
                if timeout(DEADLINE, raw.0.write_all(chunk.as_bytes()))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        };
        let _ = timeout(Duration::from_secs(1), upload).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 403 "));
        assert_eq!(raw.bytes(2).await, "no");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_body_is_cut_for_the_upstream_and_the_client_is_told() {
    let mut hands = Hands::new().await;
    let options = Options::default().flag("--body-timeout", "300ms");
    let (gateway, _table) = gateway_to(&hands.origin, options).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say("POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 6\r\n\r\nabc")
        .await;
    let mut up = hands.next().await;
    up.head().await;
    assert_eq!(up.bytes(3).await, "abc");
    assert!(!up.rest().await.1, "a reset");
    let (answer, clean) = raw.rest().await;
    assert!(clean && answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_and_its_answer_may_flow_at_the_same_time() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say("POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let mut up = hands.next().await;
    up.head().await;
    up.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    raw.head().await;
    for word in ["one", "two", "six"] {
        let chunk = format!("3\r\n{word}\r\n");
        raw.say(&chunk).await;
        assert_eq!(up.bytes(chunk.len()).await, chunk);
        up.say(&chunk).await;
        assert_eq!(raw.bytes(chunk.len()).await, chunk);
    }
    raw.say("0\r\n\r\n").await;
    assert_eq!(up.bytes(5).await, "0\r\n\r\n");
    up.say("0\r\n\r\n").await;
    assert_eq!(raw.bytes(5).await, "0\r\n\r\n");
    gateway.stop().await;
}
