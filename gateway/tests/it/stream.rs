//! Bodies on their way: at once, in flat memory, at the reader's pace, and never falsely complete.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::{
    DEADLINE, Gateway, Options, Origin, REVOCATION, Table, eventually, read_head,
};

const HOST: &str = "c1.compute.localhost";

const ASK: &str = "GET /x HTTP/1.1\r\nHost: c1.compute.localhost\r\n\r\n";

async fn gateway_to(origin: &Origin) -> (Gateway, Table) {
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 80, origin.address);
    (gateway, table)
}

/// An event stream that says a number whenever the test counts up.
async fn ticker() -> (Origin, watch::Sender<usize>) {
    let (count, counted) = watch::channel(0);
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let mut counted = counted.clone();
        async move {
            read_head(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                        transfer-encoding: chunked\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).await;
            loop {
                let event = format!("data: {}\n\n", *counted.borrow_and_update());
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                if stream.write_all(chunk.as_bytes()).await.is_err() {
                    return;
                }
                if counted.changed().await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, count)
}

/// Reads until `text` has come.
async fn read_until(stream: &mut TcpStream, text: &str) {
    let mut seen = Vec::new();
    let look = async {
        while !seen.windows(text.len()).any(|w| w == text.as_bytes()) {
            seen.push(stream.read_u8().await.expect("more"));
        }
    };
    timeout(DEADLINE, look).await.expect(text);
}

/// C14: answers sat in a buffer until it was full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_one_by_one() {
    let (origin, count) = ticker().await;
    let (gateway, _table) = gateway_to(&origin).await;
    let mut stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
    stream.write_all(ASK.as_bytes()).await.unwrap();
    for number in 0..5 {
        read_until(&mut stream, &format!("data: {number}\n\n")).await;
        count.send(number + 1).unwrap();
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_container_ends_its_own_stream_within_a_second() {
    let (origin, count) = ticker().await;
    let (gateway, mut table) = gateway_to(&origin).await;
    table.run("c2", 80, origin.address);
    let mut first = TcpStream::connect(gateway.addresses.http).await.unwrap();
    first.write_all(ASK.as_bytes()).await.unwrap();
    let mut second = TcpStream::connect(gateway.addresses.http).await.unwrap();
    let ask = ASK.replace("c1.", "c2.");
    second.write_all(ask.as_bytes()).await.unwrap();
    read_until(&mut first, "data: 0\n\n").await;
    read_until(&mut second, "data: 0\n\n").await;

    table.remove("c1");
    let mut rest = Vec::new();
    let ended = timeout(REVOCATION, first.read_to_end(&mut rest)).await;
    let _ = ended.expect("in time");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "no clean end");
    count.send(1).unwrap();
    read_until(&mut second, "data: 1\n\n").await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_http2_only_the_stream_of_the_removed_container_is_reset() {
    let (origin, count) = ticker().await;
    let (gateway, mut table) = gateway_to(&origin).await;
    table.run("c2", 80, origin.address);
    let stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut bodies = Vec::new();
    for host in [HOST, "c2.compute.localhost"] {
        let request = http::Request::get(format!("http://{host}/"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let answer = timeout(DEADLINE, sender.send_request(request)).await;
        let mut body = answer.unwrap().unwrap().into_body();
        let frame = timeout(DEADLINE, body.frame()).await.unwrap();
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "data: 0\n\n");
        bodies.push(body);
    }
    table.remove("c1");
    let mut second = bodies.pop().unwrap();
    let mut first = bodies.pop().unwrap();
    let frame = timeout(REVOCATION, first.frame()).await;
    assert!(frame.expect("in time").expect("a reset").is_err());
    count.send(1).unwrap();
    let frame = timeout(DEADLINE, second.frame()).await.unwrap();
    assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_cut_upstream_is_cut_for_the_client() {
    let by_length = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc";
    let by_chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
    for answer in [by_length, by_chunks] {
        let origin = Origin::blunt("127.64.0.2", answer).await;
        let gateway = Gateway::start(Options::default()).await;
        Table::of(&gateway).run("c1", 443, origin.address);
        let h1 = gateway.https(HOST, "/", &["--http1.1"]).await;
        assert_eq!((h1.exit, h1.text().as_str()), (18, "abc"), "{answer:?}");
        let h2 = gateway.https(HOST, "/", &["--http2"]).await;
        assert_eq!((h2.exit, h2.text().as_str()), (92, "abc"), "{answer:?}");
        gateway.stop().await;
    }
}

/// Peak memory of this process so far, in KiB.
fn peak_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_pass_in_flat_memory() {
    let origin = Origin::friendly("127.64.0.2").await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 443, origin.address);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    std::fs::File::create(&file)
        .unwrap()
        .set_len(96 << 20)
        .unwrap();
    let file = file.display().to_string();
    gateway.https(HOST, "/download?mib=1", &[]).await;
    let before = peak_kib();
    for flag in ["--http1.1", "--http2"] {
        let report = [
            "--output",
            "/dev/null",
            "--write-out",
            "%{size_download}",
            flag,
        ];
        let got = gateway.https(HOST, "/download?mib=96", &report).await;
        assert_eq!((got.exit, got.text()), (0, (96 << 20).to_string()));
        let upload = ["--upload-file", &file, "--header", "expect:", flag];
        let got = gateway.https(HOST, "/upload", &upload).await;
        assert_eq!((got.exit, got.text()), (0, (96 << 20).to_string()));
    }
    let grown = peak_kib() - before;
    assert!(grown < 48 << 10, "memory grew by {grown} KiB");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_slows_the_upstream_down() {
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let count = Arc::clone(&count);
        async move {
            read_head(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).await;
            let chunk = vec![7; 64 << 10];
            while stream.write_all(&chunk).await.is_ok() {
                count.fetch_add(chunk.len(), Ordering::SeqCst);
            }
        }
    })
    .await;
    let (gateway, _table) = gateway_to(&origin).await;
    let mut stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
    stream.write_all(ASK.as_bytes()).await.unwrap();
    read_until(&mut stream, "\r\n\r\n").await;
    // Until nothing has moved for a while: all buffers on the way are full.
    let mut last = 0;
    let mut quiet = 0;
    eventually("the upstream waits", || {
        let now = written.load(Ordering::SeqCst);
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        let settled = now > 0 && quiet > 100;
        async move { settled }
    })
    .await;
    assert!(last < 64 << 20, "{last} bytes are on the way");
    drop(stream);
    // The client is gone: so is the connection to the upstream.
    let before = written.load(Ordering::SeqCst);
    eventually("the upstream is let go", || {
        let held = Arc::strong_count(&written);
        async move { held <= 2 }
    })
    .await;
    assert!(written.load(Ordering::SeqCst) - before < 64 << 20);
    gateway.stop().await;
}
