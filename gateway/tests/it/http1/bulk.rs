//! Large bodies between plain sockets: spliced, and nobody can tell.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Hands, Raw, gateway_to};
use crate::support::Options;

const LEN: usize = 3_000_017;

fn body() -> Vec<u8> {
    (0..LEN).map(|i| (i * 31 % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_arrive_whole_both_ways_and_the_connections_go_on() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    let mut up = None;
    for _ in 0..3 {
        let ask = format!("POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: {LEN}\r\n\r\n");
        raw.say(&ask).await;
        let (mut read, mut write) = raw.0.split();
        let upload = async {
            write.write_all(&body()).await.unwrap();
        };
        let answer = async {
            let up = match &mut up {
                Some(up) => up,
                None => up.insert(hands.next().await),
            };
            up.head().await;
            let mut got = vec![0; LEN];
            up.0.read_exact(&mut got).await.unwrap();
            assert!(got == body());
            up.say(&format!("HTTP/1.1 200 OK\r\ncontent-length: {LEN}\r\n\r\n"))
                .await;
            up.0.write_all(&body()).await.unwrap();
        };
        let download = async {
            let mut got = Vec::new();
            while !got.ends_with(b"\r\n\r\n") {
                got.push(read.read_u8().await.unwrap());
            }
            let mut got = vec![0; LEN];
            read.read_exact(&mut got).await.unwrap();
            assert!(got == body());
        };
        tokio::join!(upload, answer, download);
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_that_is_cut_is_cut_for_the_other_side() {
    let mut hands = Hands::new().await;
    let (gateway, _table) = gateway_to(&hands.origin, Options::default()).await;
    let mut raw = Raw::to(&gateway).await;
    raw.say("GET / HTTP/1.1\r\nHost: HOST\r\n\r\n").await;
    let mut up = hands.next().await;
    up.head().await;
    up.say(&format!("HTTP/1.1 200 OK\r\ncontent-length: {LEN}\r\n\r\n"))
        .await;
    up.0.write_all(&body()[..LEN - 1]).await.unwrap();
    drop(up);
    raw.head().await;
    let mut got = Vec::new();
    let _ = raw.0.read_to_end(&mut got).await;
    assert_eq!(got.len(), LEN - 1);

    let mut raw = Raw::to(&gateway).await;
    raw.say(&format!(
        "PUT / HTTP/1.1\r\nHost: HOST\r\nContent-Length: {LEN}\r\n\r\n"
    ))
    .await;
    let mut up = hands.next().await;
    let ask = async {
        raw.0.write_all(&body()[..LEN - 1]).await.unwrap();
        raw.0.shutdown().await.unwrap();
    };
    let seen = async {
        up.head().await;
        let mut got = Vec::new();
        (up.0.read_to_end(&mut got).await.is_ok(), got.len())
    };
    let ((), (clean, len)) = tokio::join!(ask, seen);
    assert!(!clean && len < LEN, "{len}");
    gateway.stop().await;
}
