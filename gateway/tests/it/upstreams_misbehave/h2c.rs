//! Upstreams of HTTP/2 that break off, refuse, stall, or speak something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Gateway, Options, Origin};

const VERSIONS: [&str; 2] = ["--http1.1", "--http2"];

/// An upstream of HTTP/2 that does what the path says; counts the streams it was opened.
async fn upstream() -> (Origin, Arc<AtomicUsize>) {
    let streams = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&streams);
    let origin = Origin::raw("127.0.0.1", move |_, stream: TcpStream| {
        let count = Arc::clone(&count);
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            while let Some(Ok((request, respond))) = connection.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                match request.uri().path() {
                    "/goaway" => {
                        fine(respond, "/goaway");
                        connection.graceful_shutdown();
                    }
                    "/abrupt" => {
                        let mut respond = respond;
                        let answer = Response::builder().header("content-length", 9);
                        let answer = answer.body(()).unwrap();
                        let mut body = respond.send_response(answer, false).unwrap();
                        body.send_data(Bytes::from_static(b"abc"), false).unwrap();
                        connection.abrupt_shutdown(Reason::INTERNAL_ERROR);
                    }
                    "/lost" => return,
                    _ => {
                        tokio::spawn(play(request, respond));
                    }
                }
            }
        }
    })
    .await;
    (origin, streams)
}

fn fine(mut respond: SendResponse<Bytes>, path: &str) {
    let answer = Response::new(());
    if let Ok(mut body) = respond.send_response(answer, false) {
        let _ = body.send_data(Bytes::copy_from_slice(path.as_bytes()), true);
    }
}

async fn play(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) {
    let path = request.uri().path().to_owned();
    let begin = |respond: &mut SendResponse<Bytes>, length: Option<u64>| {
        let mut answer = Response::new(());
        if let Some(length) = length {
            answer.headers_mut().insert("content-length", length.into());
        }
        respond.send_response(answer, false).unwrap()
    };
    match path.as_str() {
        "/reset" => respond.send_reset(Reason::INTERNAL_ERROR),
        "/refused" => respond.send_reset(Reason::REFUSED_STREAM),
        "/cancelled" => respond.send_reset(Reason::CANCEL),
        "/mute" => {
            // Until the gateway resets it.
            let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            drop(reset);
        }
        "/cut" | "/cut-unsized" => {
            let length = (path == "/cut").then_some(9);
            let mut body = begin(&mut respond, length);
            body.send_data(Bytes::from_static(b"abc"), false).unwrap();
            // After the data, not instead of it.
            body.reserve_capacity(1);
            let _ = std::future::poll_fn(|cx| body.poll_capacity(cx)).await;
            tokio::task::yield_now().await;
            body.send_reset(Reason::INTERNAL_ERROR);
        }
        "/short" => {
            let mut body = begin(&mut respond, Some(9));
            body.send_data(Bytes::from_static(b"abc"), true).unwrap();
        }
        "/trailers" => {
            let mut body = begin(&mut respond, None);
            body.send_data(Bytes::from_static(b"abc"), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", http::HeaderValue::from_static("3"));
            body.send_trailers(trailers).unwrap();
        }
        _ => fine(respond, &path),
    }
}

async fn gateway_to(origin: &Origin) -> Gateway {
    let routes = format!(
        "routes:\n- {{host: a.test, target: 'h2c://{}', timeout: 1s}}\n",
        origin.address
    );
    Gateway::start(Options::routes(routes).flag("--workers", "1")).await
}

/// C17, R9: what goes wrong with one stream is told by a status and costs no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_fail_before_their_answer_have_a_status() {
    let (origin, streams) = upstream().await;
    let gateway = gateway_to(&origin).await;
    for (path, status, asked_max) in [
        ("/reset", 502, 1),
        ("/cancelled", 502, 1),
        // Not processed, says the upstream: it may be asked again, and not for ever.
        ("/refused", 502, 3),
        // A reused connection that died before its first byte: a GET may be sent again.
        ("/lost", 502, 3),
        ("/mute", 504, 1),
    ] {
        for version in VERSIONS {
            let before = streams.load(Ordering::SeqCst);
            let got = gateway.https("a.test", path, &[version]).await;
            assert_eq!(got.status, status, "{path} {version}");
            assert!(got.field("x-request-id").is_some(), "{path} {version}");
            let asked = streams.load(Ordering::SeqCst) - before;
            assert!(asked <= asked_max, "{path} {version}: asked {asked} times");
            let next = gateway.https("a.test", "/next", &[version]).await;
            assert_eq!(
                (next.status, next.text().as_str()),
                (200, "/next"),
                "{path}"
            );
        }
    }
    gateway.stop().await;
}

/// C12: a stream that is reset, lost or shorter than it said is cut for the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_cut_never_look_whole() {
    let (origin, _) = upstream().await;
    let gateway = gateway_to(&origin).await;
    for path in ["/cut", "/cut-unsized", "/short", "/abrupt"] {
        for version in VERSIONS {
            let got = gateway.https("a.test", path, &[version]).await;
            // Whether its head was sent before the cut was seen is a matter of time.
            let refused = got.exit == 0 && got.status == 502;
            let cut = matches!(got.exit, 18 | 52 | 56 | 92) && b"abc".starts_with(&got.body);
            assert!(refused || cut, "{path} {version}: {got:?}");
            let next = gateway.https("a.test", "/next", &[version]).await;
            assert_eq!(
                (next.status, next.text().as_str()),
                (200, "/next"),
                "{path}"
            );
        }
    }
    gateway.stop().await;
}

/// A connection that the upstream winds down is replaced, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_wound_down_costs_nothing() {
    let (origin, _) = upstream().await;
    let gateway = gateway_to(&origin).await;
    for version in VERSIONS {
        for _ in 0..10 {
            let got = gateway.https("a.test", "/goaway", &[version]).await;
            assert_eq!((got.status, got.text().as_str()), (200, "/goaway"));
            let posted = ["--data", "x", version];
            let got = gateway.https("a.test", "/posted", &posted).await;
            assert_eq!((got.status, got.text().as_str()), (200, "/posted"));
        }
    }
    gateway.stop().await;
}

/// P5: many requests share one connection of HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_share_one_connection() {
    let (origin, streams) = upstream().await;
    let gateway = gateway_to(&origin).await;
    for version in VERSIONS {
        for _ in 0..20 {
            let got = gateway.https("a.test", "/x", &[version]).await;
            assert_eq!((got.status, got.text().as_str()), (200, "/x"));
        }
    }
    assert_eq!(streams.load(Ordering::SeqCst), 40);
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
    gateway.stop().await;
}

/// Trailers pass to whoever has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_with_trailers_is_whole() {
    let (origin, _) = upstream().await;
    let gateway = gateway_to(&origin).await;
    for version in VERSIONS {
        let got = gateway.https("a.test", "/trailers", &[version]).await;
        assert_eq!((got.exit, got.text().as_str()), (0, "abc"), "{version}");
    }
    gateway.stop().await;
}

/// What answers the preface with something else, or nothing, is no upstream of HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_protocol_is_a_502_and_silence_a_504() {
    for (said, statuses) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[502][..]),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", &[502]),
        (b"garbage that is longer than a frame's head", &[502]),
        (b"", &[502, 504]),
    ] {
        let origin = Origin::raw("127.0.0.1", async move |_, mut stream: TcpStream| {
            let _ = stream.write_all(said).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let gateway = gateway_to(&origin).await;
        for version in VERSIONS {
            let got = gateway.https("a.test", "/", &[version]).await;
            assert!(
                statuses.contains(&got.status),
                "{} {version}: {}",
                said.escape_ascii(),
                got.status
            );
        }
        gateway.stop().await;
    }
}

/// Anybody may send such a target: it must not open the upstream's breaker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_http2_cannot_carry_is_the_clients_fault() {
    let (origin, streams) = upstream().await;
    let gateway = gateway_to(&origin).await;
    for _ in 0..12 {
        let got = gateway.https("a.test", "/<a>", &["--http1.1"]).await;
        assert_eq!((got.status, got.exit), (400, 0), "{got:?}");
    }
    let next = gateway.https("a.test", "/next", &["--http1.1"]).await;
    assert_eq!((next.status, next.text().as_str()), (200, "/next"));
    assert_eq!(streams.load(Ordering::SeqCst), 1);
    gateway.stop().await;
}
