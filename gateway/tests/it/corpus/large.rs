//! Large bodies without TLS, which the kernel moves: where they end is where their length says.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::client::Client;
use crate::support::client::dial;
use crate::support::{DEADLINE, Gateway, Options, Origin, Table, read_head};

const SIZE: usize = 1 << 20;
const HOST: &str = "large.compute.localhost";

/// Bytes that show what is missing or doubled.
fn body() -> Vec<u8> {
    (0..SIZE).map(|n| (n / 7 + n / 4_096) as u8).collect()
}

async fn gateway(upstream: &Origin) -> (Gateway, Table) {
    let gateway = Gateway::start(Options::default().flag("--workers", "1")).await;
    let mut table = Table::of(&gateway);
    table.run("large", 80, upstream.address);
    (gateway, table)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_a_large_answer_is_nobodys_answer() {
    let upstream = Origin::raw("127.64.9.1", async |number, mut stream: TcpStream| {
        while !read_head(&mut stream).await.is_empty() {
            let head =
                format!("HTTP/1.1 200 OK\r\nX-Number: {number}\r\nContent-Length: {SIZE}\r\n\r\n");
            let evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
            let all = [head.as_bytes(), &body(), evil].concat();
            if stream.write_all(&all).await.is_err() {
                return;
            }
        }
    })
    .await;
    let (gateway, _table) = gateway(&upstream).await;
    let mut client = Client::over(dial(gateway.addresses.http).await);
    for _ in 0..3 {
        let ask = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        client
            .stream
            .write_all(ask.as_bytes())
            .await
            .expect("asked");
        let answer = client.answer("large", false).await.expect("an answer");
        assert_eq!((answer.status, answer.whole), (200, true));
        assert!(answer.body == body(), "{} bytes", answer.body.len());
    }
    assert_eq!(upstream.connections.load(Ordering::SeqCst), 3);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_answer_that_is_cut_is_cut_for_the_client() {
    let upstream = Origin::raw("127.64.9.2", async |_, mut stream: TcpStream| {
        read_head(&mut stream).await;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
        let part = [head.as_bytes(), &body()[..SIZE / 2]].concat();
        let _ = stream.write_all(&part).await;
    })
    .await;
    let (gateway, _table) = gateway(&upstream).await;
    let mut client = Client::over(dial(gateway.addresses.http).await);
    let ask = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    client
        .stream
        .write_all(ask.as_bytes())
        .await
        .expect("asked");
    let answer = client.answer("cut", false).await.expect("an answer");
    assert_eq!((answer.status, answer.whole), (200, false));
    gateway.stop().await;
}

/// Reads requests with bodies of [`SIZE`], or none, and says how long each body was and whether it was right.
async fn collect(mut stream: TcpStream, seen: mpsc::Sender<(String, usize, bool)>) {
    loop {
        let head = read_head(&mut stream).await;
        if head.is_empty() {
            return;
        }
        let line = head.lines().next().unwrap_or_default().to_owned();
        let wanted = if head.to_ascii_lowercase().contains("content-length") {
            SIZE
        } else {
            0
        };
        let mut got = vec![0; wanted];
        let mut at = 0;
        while at < wanted {
            match stream.read(&mut got[at..]).await {
                Ok(n @ 1..) => at += n,
                _ => break,
            }
        }
        let is_right = got[..at] == body()[..at];
        let _ = seen.send((line, at, is_right)).await;
        if at < wanted {
            return;
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_a_large_upload_is_the_next_request() {
    let (send, mut seen) = mpsc::channel(8);
    let upstream = Origin::raw("127.64.9.3", move |_, stream| collect(stream, send.clone())).await;
    let (gateway, _table) = gateway(&upstream).await;
    let post = format!("POST /one HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {SIZE}\r\n\r\n");
    let get = format!("GET /two HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let all = [
        post.as_bytes(),
        &body(),
        get.as_bytes(),
        post.as_bytes(),
        &body(),
    ]
    .concat();
    let (read, mut write) = dial(gateway.addresses.http).await.into_split();
    let sent = tokio::spawn(async move {
        write.write_all(&all).await.expect("sent");
        write
    });
    let mut client = Client::over(read);
    for (line, size) in [("POST /one", SIZE), ("GET /two", 0), ("POST /one", SIZE)] {
        let answer = client.answer(line, false).await.expect("an answer");
        assert_eq!(answer.status, 200);
        let (found, got, is_right) = seen.recv().await.expect("a request");
        assert!(found.starts_with(line), "{found}");
        assert_eq!((got, is_right), (size, true), "{line}");
    }
    drop(sent.await);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_that_is_cut_is_not_whole_for_the_upstream() {
    let (send, mut seen) = mpsc::channel(8);
    let upstream = Origin::raw("127.64.9.4", move |_, stream| collect(stream, send.clone())).await;
    let (gateway, _table) = gateway(&upstream).await;
    let post = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {SIZE}\r\n\r\n");
    let mut client = dial(gateway.addresses.http).await;
    client.write_all(post.as_bytes()).await.expect("sent");
    client.write_all(&body()[..SIZE / 2]).await.expect("sent");
    drop(client);
    let seen = tokio::time::timeout(DEADLINE, seen.recv()).await;
    let (_, got, is_right) = seen.expect("in time").expect("a request");
    assert!(got <= SIZE / 2 && is_right, "{got}");
    gateway.stop().await;
}
