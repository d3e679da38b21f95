//! The end of HTTP connections when the gateway drains.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use crate::control::get;
use crate::support::{DEADLINE, Gateway, Options, Origin, Table, eventually, read_head};

const ASK: &str = "GET / HTTP/1.1\r\nHost: c1.compute.localhost\r\n\r\n";

/// Answers each request when the test says so; says itself when one has come.
async fn on_command() -> (Origin, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (came, coming) = mpsc::channel(8);
    let (go, going) = mpsc::channel::<()>(8);
    let going = std::sync::Arc::new(Mutex::new(going));
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let (came, going) = (came.clone(), going.clone());
        async move {
            while !read_head(&mut stream).await.is_empty() {
                came.send(()).await.unwrap();
                going.lock().await.recv().await;
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    (origin, coming, go)
}

/// R4: a stop cut uploads and answers under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_under_way_are_finished_and_idle_connections_closed() {
    let (origin, mut coming, go) = on_command().await;
    // One thread: when one connection has seen the drain, all have.
    let options = Options::default().flag("--workers", "1");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let mut idle = TcpStream::connect(gateway.addresses.http).await.unwrap();
    idle.write_all(ASK.as_bytes()).await.unwrap();
    coming.recv().await.unwrap();
    go.send(()).await.unwrap();
    assert!(!read_head(&mut idle).await.is_empty());
    assert_eq!(idle.read_u16().await.unwrap().to_be_bytes(), *b"ok");

    let mut busy = TcpStream::connect(gateway.addresses.http).await.unwrap();
    busy.write_all(ASK.as_bytes()).await.unwrap();
    let other = TcpStream::connect(gateway.addresses.http).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(other))
        .await
        .unwrap();
    let h2 = tokio::spawn(connection);
    let request = http::Request::get("http://c1.compute.localhost/")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let h2_answer = tokio::spawn(sender.send_request(request));
    for _ in 0..2 {
        timeout(DEADLINE, coming.recv()).await.unwrap().unwrap();
    }
    gateway.drain();
    assert_eq!(
        timeout(DEADLINE, idle.read(&mut [0]))
            .await
            .unwrap()
            .unwrap(),
        0
    );
    for _ in 0..2 {
        go.send(()).await.unwrap();
    }
    let mut answer = String::new();
    let read = busy.read_to_string(&mut answer);
    timeout(DEADLINE, read).await.unwrap().unwrap();
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer:?}");
    assert!(answer.ends_with("\r\n\r\nok"), "{answer:?}");
    let answer = timeout(DEADLINE, h2_answer)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    // GOAWAY, all streams done, closed.
    timeout(DEADLINE, h2).await.unwrap().unwrap().unwrap();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_outlasts_the_drain_is_cut() {
    let (origin, mut coming, _go) = on_command().await;
    let options = Options::default().flag("--drain-timeout", "300ms");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let mut stuck = TcpStream::connect(gateway.addresses.http).await.unwrap();
    stuck.write_all(ASK.as_bytes()).await.unwrap();
    coming.recv().await.unwrap();
    let begun = Instant::now();
    gateway.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(15));
    let mut answer = String::new();
    let _ = timeout(DEADLINE, stuck.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 503 "),
        "{answer:?}"
    );
}

/// R4: who asks is told, who comes is refused, what runs is finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_lowered_and_an_upload_under_way_is_finished() {
    let origin = Origin::friendly("127.64.0.2").await;
    let options = Options::default().flag("--drain-timeout", "40s");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let (http, admin) = (gateway.addresses.http, gateway.admin);
    let mut upload = TcpStream::connect(http).await.unwrap();
    let head = "POST /upload HTTP/1.1\r\nHost: c1.compute.localhost\r\nContent-Length: 10\r\n\r\n";
    upload.write_all(head.as_bytes()).await.unwrap();
    upload.write_all(b"12345").await.unwrap();
    eventually("it is under way", || async {
        gateway.shared.gate.upstreams() == 1
    })
    .await;
    gateway.drain();
    eventually("not ready", || async {
        get(admin, "/readyz").await.0 == 503
    })
    .await;
    eventually("nobody is let in", || async {
        TcpStream::connect(http).await.is_err()
    })
    .await;
    upload.write_all(b"67890").await.unwrap();
    let mut answer = String::new();
    let read = upload.read_to_string(&mut answer);
    timeout(DEADLINE, read).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("10"), "{answer}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_connection_lives_until_the_deadline_and_is_cut_then() {
    let origin = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        read_head(&mut stream).await;
        let switch =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.write_all(switch.as_bytes()).await.unwrap();
        while let Ok(byte) = stream.read_u8().await {
            stream.write_all(&[byte]).await.unwrap();
        }
    })
    .await;
    let options = Options::default().flag("--drain-timeout", "2s");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let mut stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
    let ask = "GET / HTTP/1.1\r\nHost: c1.compute.localhost\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 101 "));
    gateway.drain();
    let begun = Instant::now();
    let mut echoed = 0;
    loop {
        let alive = stream.write_all(b"?").await.is_ok();
        let read = timeout(DEADLINE, stream.read_u8()).await.unwrap();
        if !alive || read.is_err() {
            break;
        }
        echoed += 1;
        // Not a wait for anything: a pace.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lived = begun.elapsed();
    assert!(lived >= Duration::from_millis(1900), "cut after {lived:?}");
    assert!(lived < Duration::from_secs(15), "cut after {lived:?}");
    assert!(echoed > 10);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_may_send_the_request_that_was_on_its_way() {
    let (origin, mut coming, go) = on_command().await;
    let options = Options::default()
        .flag("--workers", "1")
        .flag("--drain-timeout", "8s");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let http = gateway.addresses.http;
    let mut kept = TcpStream::connect(http).await.unwrap();
    kept.write_all(ASK.as_bytes()).await.unwrap();
    coming.recv().await.unwrap();
    go.send(()).await.unwrap();
    assert!(!read_head(&mut kept).await.is_empty());
    assert_eq!(kept.read_u16().await.unwrap().to_be_bytes(), *b"ok");
    // One that has not asked yet.
    let mut fresh = TcpStream::connect(http).await.unwrap();
    eventually("both are in", || async { gateway.shared.gate.open() == 2 }).await;
    gateway.drain();
    eventually("it has begun", || async {
        TcpStream::connect(http).await.is_err()
    })
    .await;
    for stream in [&mut kept, &mut fresh] {
        stream.write_all(ASK.as_bytes()).await.unwrap();
        timeout(DEADLINE, coming.recv()).await.unwrap().unwrap();
        go.send(()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        timeout(DEADLINE, read).await.unwrap().unwrap();
        let answer = answer.to_ascii_lowercase();
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer:?}");
        assert!(answer.ends_with("\r\n\r\nok"), "{answer:?}");
    }
    gateway.stop().await;
}
