//! Ends that must not be mistaken: answers that survive an unread upload, cuts that look like cuts,
//! and peers that read nothing.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::{DEADLINE, Gateway, Options, Origin, REVOCATION, SOON, Table, read_head};

/// Whoever takes nothing for a part of it takes nothing at all.
const PAUSE: Duration = Duration::from_secs(1);

async fn dial(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.addresses.http).await.unwrap()
}

/// Everything up to the end, and how that looks.
async fn read_to_end(stream: &mut TcpStream) -> (String, io::Result<usize>) {
    let mut all = Vec::new();
    let end = timeout(DEADLINE, stream.read_to_end(&mut all)).await;
    (String::from_utf8(all).unwrap(), end.expect("an end"))
}

fn assert_reset(end: io::Result<usize>) {
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_reaches_a_client_that_is_still_uploading() {
    let early = "HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig";
    let origin = Origin::raw("127.64.0.2", async move |_, mut stream: TcpStream| {
        read_head(&mut stream).await;
        let _ = stream.write_all(early.as_bytes()).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let routes = "routes:\n- {host: a.test, target: '127.0.0.1:1'}\n";
    // An upstream may read on after its answer; so long the client's rest is waited for.
    let options = Options::routes(routes).flag("--body-timeout", "1s");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    for (host, status) in [
        ("none.compute.localhost", "404"),
        ("a.test", "308"),
        ("c1.compute.localhost", "413"),
    ] {
        let (mut read, mut write) = dial(&gateway).await.into_split();
        let length = 1 << 20;
        let head = format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n");
        let upload = tokio::spawn(async move {
            write.write_all(head.as_bytes()).await?;
            // One less than announced: the gateway never has all of it.
            write.write_all(&vec![7; length - 1]).await?;
            io::Result::Ok(write)
        });
        let mut answer = String::new();
        let end = timeout(DEADLINE, read.read_to_string(&mut answer)).await;
        end.expect("an end").expect("no reset");
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer:?}"
        );
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let length = format!("content-length: {}", body.len());
        assert!(head.contains(&length), "{answer:?}");
        upload.await.unwrap().expect("all was taken");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_answers_but_never_reads_is_not_kept() {
    let (closed, mut closing) = mpsc::channel(1);
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let closed = closed.clone();
        async move {
            read_head(&mut stream).await;
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            while let Ok(None) = stream.take_error() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            closed.send(()).await.unwrap();
        }
    })
    .await;
    let options = Options::default().flag("--body-timeout", "1s");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let mut stream = dial(&gateway).await;
    let head = "POST / HTTP/1.1\r\nHost: c1.compute.localhost\r\nContent-Length: 88388608\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // Until nobody takes any more of it.
    let upload = stream.write_all(&[7; 1 << 16]);
    let mut taken = timeout(DEADLINE, upload).await;
    while taken.is_ok() {
        taken = timeout(PAUSE / 4, stream.write_all(&[7; 1 << 16])).await;
    }
    let mut status = [0; 12];
    let answer = timeout(DEADLINE, stream.read_exact(&mut status)).await;
    answer.unwrap().unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    drop(stream);
    let seen = timeout(SOON, closing.recv()).await;
    seen.expect("closed in time").unwrap();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_1_0_client_sees_a_cut_body_as_a_reset() {
    let begin = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let origin = Origin::raw("127.64.0.2", async move |number, mut stream: TcpStream| {
        read_head(&mut stream).await;
        let _ = stream.write_all(begin.as_bytes()).await;
        // The first breaks off when the client says so, the second is stopped.
        let go = number == 0;
        let _ = timeout(if go { PAUSE } else { DEADLINE }, stream.read_u8()).await;
    })
    .await;
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 80, origin.address);
    for stopped in [false, true] {
        let mut stream = dial(&gateway).await;
        let ask = "GET / HTTP/1.0\r\nHost: c1.compute.localhost\r\n\r\n";
        stream.write_all(ask.as_bytes()).await.unwrap();
        let head = timeout(DEADLINE, read_head(&mut stream)).await.unwrap();
        assert!(head.contains(" 200 OK\r\n"), "{head:?}");
        let mut body = [0; 3];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"abc");
        if stopped {
            table.remove("c1");
        }
        assert_reset(read_to_end(&mut stream).await.1);
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_connection_that_is_reset_is_reset_on_the_other_side() {
    let (reset, resetting) = mpsc::channel::<io::Result<usize>>(2);
    let origin = Origin::raw("127.64.0.2", move |number, mut stream: TcpStream| {
        let reset = reset.clone();
        async move {
            read_head(&mut stream).await;
            let agree =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
            stream.write_all(agree.as_bytes()).await.unwrap();
            if number == 0 {
                stream.read_u8().await.unwrap();
                stream.set_zero_linger().unwrap();
            } else {
                let end = stream.read_to_end(&mut Vec::new()).await;
                reset.send(end).await.unwrap();
            }
        }
    })
    .await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let ask = "GET / HTTP/1.1\r\nHost: c1.compute.localhost\r\n\
               Connection: Upgrade\r\nUpgrade: x\r\n\r\n";
    let mut switched = Vec::new();
    for _ in 0..2 {
        let mut stream = dial(&gateway).await;
        stream.write_all(ask.as_bytes()).await.unwrap();
        let head = timeout(DEADLINE, read_head(&mut stream)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head:?}");
        switched.push(stream);
    }
    let second = switched.pop().unwrap();
    let mut first = switched.pop().unwrap();
    first.write_all(b"x").await.unwrap();
    assert_reset(read_to_end(&mut first).await.1);
    second.set_zero_linger().unwrap();
    drop(second);
    let mut resetting = resetting;
    let end = timeout(DEADLINE, resetting.recv()).await.unwrap().unwrap();
    assert_reset(end);
    gateway.stop().await;
}

/// Writes for ever; says so when nobody takes it any more.
async fn flood() -> (Origin, mpsc::Receiver<()>) {
    let (blocked, blocking) = mpsc::channel(8);
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let blocked = blocked.clone();
        async move {
            read_head(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            loop {
                match timeout(PAUSE / 4, stream.write(&[7; 1 << 16])).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => return,
                    Err(_) => {
                        let _ = blocked.try_send(());
                    }
                }
            }
        }
    })
    .await;
    (origin, blocking)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_is_cut_with_its_container() {
    let (origin, mut blocking) = flood().await;
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 80, origin.address);
    let mut stream = dial(&gateway).await;
    let ask = "GET / HTTP/1.1\r\nHost: c1.compute.localhost\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    timeout(DEADLINE, blocking.recv()).await.unwrap().unwrap();
    table.remove("c1");
    let cut = async {
        while let Ok(None) = stream.take_error() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(REVOCATION, cut).await.expect("in time");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_stream_without_a_window_is_reset_with_its_container_or_when_idle() {
    let (origin, _blocking) = flood().await;
    let options = Options::default().flag("--stream-idle-timeout", "6s");
    let gateway = Gateway::start(options).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 80, origin.address);
    table.run("c2", 80, origin.address);
    let stream = dial(&gateway).await;
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut bodies = Vec::new();
    for host in ["c1", "c2"] {
        let request = http::Request::get(format!("http://{host}.compute.localhost/"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let answer = timeout(DEADLINE, sender.send_request(request)).await;
        bodies.push(answer.unwrap().unwrap().into_body());
    }
    let mut idle = bodies.pop().unwrap();
    let mut stopped = bodies.pop().unwrap();
    table.remove("c1");
    let frame = timeout(REVOCATION, stopped.frame()).await;
    assert!(frame.expect("in time").expect("a reset").is_err());
    let early = timeout(Duration::from_millis(100), idle.frame()).await;
    assert!(early.is_err(), "the other stream goes on");
    let frame = timeout(DEADLINE, idle.frame()).await;
    assert!(frame.expect("a limit").expect("a reset").is_err());
    gateway.stop().await;
}
