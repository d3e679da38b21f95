//! Sizes and counts that a client cannot exceed, and what it gets instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::frames::*;
use crate::support::{DEADLINE, Gateway, Options, Origin, Table, eventually, read_head};

const HOST: &str = "c1.compute.localhost";

/// 2^31-1, the widest window.
const WIDE: u32 = 0x7fff_ffff;

const INITIAL_WINDOW_SIZE: u16 = 4;

async fn friendly(options: Options) -> (Gateway, Origin) {
    let origin = Origin::friendly("127.64.0.2").await;
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    (gateway, origin)
}

/// S14: header sections over 64 KiB or 128 fields are 431, and the connection goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_are_too_large_are_431_and_the_next_request_is_served() {
    let (gateway, _origin) = friendly(Options::default()).await;
    let mut raw = Raw::open(gateway.addresses.http).await;
    let mut stream = 1;
    let many: Vec<(&str, &str)> = vec![("x-many", "1"); 130];
    let large = "v".repeat(15_000);
    let large: Vec<(&str, &str)> = vec![("x-large", &*large); 5];
    for fields in [many, large] {
        raw.head(stream, END_STREAM, &head("GET", HOST, "/", &fields))
            .await;
        let answer = raw.until(HEADERS, stream).await;
        assert_eq!(answer.status(), 431);
        stream += 2;
    }
    let long = format!("/{}", "p".repeat(16 * 1024));
    raw.get(stream, HOST, &long).await;
    assert_eq!(raw.whole(stream).await.0, 414);
    raw.get(stream + 2, HOST, "/").await;
    assert_eq!(raw.whole(stream + 2).await.0, 200);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_streams_than_allowed_are_refused_and_the_others_are_not() {
    let origin = Origin::raw("127.64.0.2", async move |_, mut stream: TcpStream| {
        read_head(&mut stream).await;
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await;
    })
    .await;
    let other = Origin::friendly("127.64.0.3").await;
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 80, origin.address);
    table.run("c2", 80, other.address);
    let mut raw = Raw::open(gateway.addresses.http).await;
    for request in 0..255 {
        raw.get(request * 2 + 1, HOST, "/").await;
    }
    raw.get(511, "c2.compute.localhost", "/").await;
    assert_eq!(raw.whole(511).await.0, 200);
    raw.get(513, HOST, "/").await;
    raw.get(515, "c2.compute.localhost", "/").await;
    assert_eq!(raw.until(RST_STREAM, 515).await.code(), REFUSED_STREAM);
    // One that is given up makes room for another.
    raw.send(&frame(RST_STREAM, 0, 1, &8u32.to_be_bytes()))
        .await;
    raw.get(517, "c2.compute.localhost", "/").await;
    assert_eq!(raw.whole(517).await.0, 200);
    drop(raw);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_begun_and_never_finished_is_a_408() {
    let (gateway, _origin) = friendly(Options::default().flag("--body-timeout", "300ms")).await;
    let mut raw = Raw::open(gateway.addresses.http).await;
    let head = head("POST", HOST, "/upload", &[("content-length", "10")]);
    raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    raw.send(&frame(DATA, 0, 1, b"some")).await;
    let (status, _, reset) = raw.whole(1).await;
    assert_eq!((status, reset), (408, None));
    // Its rest is not wanted any more, which is no error (RFC 9113, section 8.1).
    assert_eq!(raw.until(RST_STREAM, 1).await.code(), NO_ERROR);
    gateway.stop().await;
}

/// S13: who says nothing at all does not stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_request_is_told_to_go_when_it_is_idle() {
    let (gateway, _origin) = friendly(Options::default().flag("--idle-timeout", "300ms")).await;
    let mut raw = Raw::open(gateway.addresses.http).await;
    raw.get(1, HOST, "/").await;
    assert_eq!(raw.whole(1).await.0, 200);
    let mut told = false;
    while let Some(frame) = raw.next().await {
        told |= frame.kind == GOAWAY && frame.code() == NO_ERROR;
        raw.answer(&frame).await;
    }
    assert!(told);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_of_one_byte_gets_one_byte_and_is_abuse_in_the_long_run() {
    let (gateway, _origin) = friendly(Options::default()).await;
    let mut raw = Raw::with_settings(gateway.addresses.http, &[(INITIAL_WINDOW_SIZE, 1)]).await;
    raw.get(1, HOST, "/download?mib=1").await;
    assert_eq!(raw.until(HEADERS, 1).await.status(), 200);
    let update = frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes());
    let mut pieces = 0;
    loop {
        match raw.next().await {
            Some(frame) if frame.kind == DATA => {
                assert_eq!(frame.payload.len(), 1);
                pieces += 1;
                raw.send(&update).await;
            }
            Some(frame) if frame.kind == GOAWAY => {
                assert_eq!(frame.code(), ENHANCE_YOUR_CALM);
                break;
            }
            Some(frame) => raw.answer(&frame).await,
            None => panic!("closed without a word after {pieces}"),
        }
    }
    assert!((500..5000).contains(&pieces), "{pieces}");
    gateway.stop().await;
}

/// A client whose windows are wide and who reads nothing holds back the upstreams, not the gateway's memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_nothing_slows_all_its_upstreams_down() {
    const STREAMS: u32 = 50;
    let written = Arc::new(AtomicUsize::new(0));
    let stuck = Arc::new(AtomicUsize::new(0));
    let (total, stopped) = (Arc::clone(&written), Arc::clone(&stuck));
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let (total, stopped) = (Arc::clone(&total), Arc::clone(&stopped));
        async move {
            // The kernel's buffers would hide what the gateway does.
            let socket = socket2::SockRef::from(&stream);
            let _ = socket.set_send_buffer_size(16 << 10);
            read_head(&mut stream).await;
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head).await.unwrap();
            let chunk = [&b"4000\r\n"[..], &[7; 0x4000], b"\r\n"].concat();
            let mut counted = false;
            loop {
                match timeout(Duration::from_millis(500), stream.write_all(&chunk)).await {
                    Ok(Ok(())) => {
                        total.fetch_add(chunk.len(), Ordering::SeqCst);
                    }
                    Ok(Err(_)) => return,
                    // Half a chunk may be gone by now, which matters to nobody.
                    Err(_) if !std::mem::replace(&mut counted, true) => {
                        stopped.fetch_add(1, Ordering::SeqCst);
                    }
                    Err(_) => {}
                }
            }
        }
    })
    .await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let mut raw = Raw::with_settings(gateway.addresses.http, &[(INITIAL_WINDOW_SIZE, WIDE)]).await;
    raw.send(&frame(WINDOW_UPDATE, 0, 0, &(WIDE - 65_535).to_be_bytes()))
        .await;
    for request in 0..STREAMS {
        raw.get(request * 2 + 1, HOST, "/").await;
    }
    eventually("all upstreams wait", || async {
        stuck.load(Ordering::SeqCst) == usize::try_from(STREAMS).unwrap()
    })
    .await;
    let taken = written.load(Ordering::SeqCst);
    assert!(taken < 50 << 20, "{taken}");
    // Others do not wait with it.
    let mut other = Raw::open(gateway.addresses.http).await;
    other.get(1, HOST, "/").await;
    assert_eq!(
        timeout(DEADLINE, other.until(DATA, 1))
            .await
            .unwrap()
            .payload[0],
        7
    );
    gateway.stop().await;
}
