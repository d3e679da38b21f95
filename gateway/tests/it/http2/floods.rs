//! What a client sends too much of ends its connection, is counted, and disturbs nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;

use super::frames::*;
use crate::support::{Gateway, Options, Origin, Table, eventually, read_head};

const HOST: &str = "c1.compute.localhost";

/// A gateway with one container that answers, and a client that must not notice anything.
struct Place {
    gateway: Gateway,
    _origin: Origin,
    bystander: Raw,
    next: u32,
}

impl Place {
    async fn new() -> Self {
        let origin = Origin::friendly("127.64.0.2").await;
        let gateway = Gateway::start(Options::default()).await;
        Table::of(&gateway).run("c1", 80, origin.address);
        let bystander = Raw::open(gateway.addresses.http).await;
        let mut place = Self {
            gateway,
            _origin: origin,
            bystander,
            next: 1,
        };
        place.nobody_else_notices().await;
        place
    }

    async fn nobody_else_notices(&mut self) {
        self.bystander.get(self.next, HOST, "/").await;
        let (status, _, reset) = self.bystander.whole(self.next).await;
        assert_eq!((status, reset), (200, None));
        self.next += 2;
    }

    async fn counted(&self, reason: &str) {
        let line = format!("edd_gateway_h2_connections_ended_total{{reason=\"{reason}\"}} 1\n");
        let admin = self.gateway.admin;
        eventually(&format!("{reason} counted"), || async {
            metrics(admin).await.contains(&line)
        })
        .await;
    }

    /// Sends `bytes` again and again until the connection is told to calm down.
    async fn flood(&mut self, bytes: &[u8], reason: &str) {
        let mut raw = Raw::open(self.gateway.addresses.http).await;
        let head = head("POST", HOST, "/upload", &[]);
        raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        let many = bytes.repeat(3000);
        let Raw { io } = &mut raw;
        let (read, mut write) = io.split();
        let mut reading = std::pin::pin!(goaway(read));
        let writing = async {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut write, &many).await;
            std::future::pending::<()>().await;
        };
        let code = tokio::select! {
            code = &mut reading => code,
            () = writing => unreachable!(),
        };
        assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{reason}");
        self.counted(reason).await;
        self.nobody_else_notices().await;
    }
}

async fn goaway(mut read: impl tokio::io::AsyncRead + Unpin) -> Option<u32> {
    use tokio::io::AsyncReadExt;
    loop {
        let mut head = [0; 9];
        read.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        read.read_exact(&mut payload).await.ok()?;
        if head[3] == GOAWAY {
            return Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
}

pub(super) async fn metrics(admin: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let ask = b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, ask)
        .await
        .unwrap();
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut text)
        .await
        .unwrap();
    text
}

/// S13, S14: frames that ask for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_frames_without_end_are_answered_with_calm() {
    for bytes in [
        frame(PING, 0, 0, &[7; 8]),
        frame(SETTINGS, 0, 0, &[]),
        frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 7]),
        frame(0xfa, 0, 0, b"whatever"),
        frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes()),
    ] {
        Place::new().await.flood(&bytes, "control_flood").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_data_frames_without_end_are_answered_with_calm() {
    let mut place = Place::new().await;
    place.flood(&frame(DATA, 0, 1, &[]), "calm").await;
}

/// A block that never ends must be given up before it costs memory (CVE-2024-27316 and the like).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_continued_for_ever_ends_the_connection() {
    let mut place = Place::new().await;
    let mut raw = Raw::open(place.gateway.addresses.http).await;
    raw.send(&frame(HEADERS, 0, 1, &head("GET", HOST, "/", &[])))
        .await;
    let more = frame(CONTINUATION, 0, 1, &block(&[("x", "y")]));
    raw.send(&more.repeat(1000)).await;
    assert_eq!(raw.until_goaway().await, ENHANCE_YOUR_CALM);
    place.counted("calm").await;
    place.nobody_else_notices().await;
}

/// CVE-2023-44487: each pair in a segment of its own, so that the requests do get somewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_taken_back_at_once_end_the_connection() {
    let open = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (now, peak) = (Arc::clone(&open), Arc::clone(&most));
    let origin = Origin::raw("127.64.0.3", move |_, mut stream: TcpStream| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        async move {
            let count = now.fetch_add(1, Ordering::SeqCst) + 1;
            peak.fetch_max(count, Ordering::SeqCst);
            read_head(&mut stream).await;
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await;
            now.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let mut place = Place::new().await;
    Table::of(&place.gateway).run("c2", 80, origin.address);
    let mut raw = Raw::open(place.gateway.addresses.http).await;
    let head = head("GET", "c2.compute.localhost", "/", &[]);
    for request in 0..2000u32 {
        let stream = request * 2 + 1;
        let mut pair = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
        pair.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        raw.send(&pair).await;
        // An answer to the ping says that the pair was read.
        raw.send(&frame(PING, 0, 0, &[1; 8])).await;
        let mut over = false;
        loop {
            match raw.next().await {
                Some(frame) if frame.kind == PING => break,
                Some(frame) if frame.kind == GOAWAY => {
                    assert_eq!(frame.code(), ENHANCE_YOUR_CALM);
                    over = true;
                    break;
                }
                Some(_) => {}
                None => panic!("closed without a word after {request}"),
            }
        }
        if over {
            assert!(request >= 500, "{request}");
            place.counted("rapid_reset").await;
            place.nobody_else_notices().await;
            eventually("the upstream is rid of them", || async {
                open.load(Ordering::SeqCst) == 0
            })
            .await;
            assert!(most.load(Ordering::SeqCst) < 256, "{most:?}");
            return;
        }
    }
    panic!("never told to calm down");
}
