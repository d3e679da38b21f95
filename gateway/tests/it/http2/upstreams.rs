//! Upstreams that speak HTTP/2 (`h2c://`): shared connections, streams both ways, and how they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::client::Greeting;
use crate::support::{DEADLINE, Gateway, Options, Origin, SOON};

/// A request as an upstream of the test gets it: number of its connection, number on it, and the stream.
struct Asked {
    connection: usize,
    number: usize,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
}

/// An upstream that takes `streams` at once and gives each request to `serve`.
async fn upstream<F: Future<Output = ()> + Send + 'static>(
    streams: u32,
    requests_max: usize,
    serve: impl Fn(Asked) -> F + Clone + Send + Sync + 'static,
) -> Origin {
    far_upstream(Duration::ZERO, streams, requests_max, serve).await
}

/// One whose settings take so long to arrive.
async fn far_upstream<F: Future<Output = ()> + Send + 'static>(
    latency: Duration,
    streams: u32,
    requests_max: usize,
    serve: impl Fn(Asked) -> F + Clone + Send + Sync + 'static,
) -> Origin {
    Origin::raw("127.0.0.1", move |connection, stream: TcpStream| {
        let serve = serve.clone();
        async move {
            let mut builder = server::Builder::new();
            builder.max_concurrent_streams(streams);
            tokio::time::sleep(latency).await;
            let Ok(mut h2) = builder.handshake::<_, Bytes>(stream).await else {
                return;
            };
            let mut number = 0;
            while let Some(Ok((request, respond))) = h2.accept().await {
                let asked = Asked {
                    connection,
                    number,
                    request,
                    respond,
                };
                tokio::spawn(serve(asked));
                number += 1;
                if number == requests_max {
                    h2.graceful_shutdown();
                }
            }
        }
    })
    .await
}

/// Answers with what it saw, and says how much came.
async fn mirror(mut asked: Asked) {
    let head = format!(
        "{} {} {:?}",
        asked.request.method(),
        asked.request.uri(),
        asked.request.headers()
    );
    let mut length = 0;
    let body = asked.request.body_mut();
    while let Some(Ok(data)) = body.data().await {
        length += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    let answer = Response::builder()
        .header("x-connection", asked.connection)
        .body(())
        .unwrap();
    let mut send = asked.respond.send_response(answer, false).unwrap();
    send.send_data(format!("{head} {length} {trailers:?}").into(), false)
        .unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    send.send_trailers(trailers).unwrap();
}

async fn start(origin: &Origin, more: &str) -> Gateway {
    let routes = format!(
        "routes:\n- {{host: a.test, target: 'h2c://{}'{more}}}\n",
        origin.address
    );
    Gateway::start(Options::routes(routes)).await
}

async fn client(gateway: &Gateway) -> SendRequest<Bytes> {
    let ca = gateway.ca();
    let greeting = Greeting {
        name: "a.test",
        ca: Some(&ca),
        alpn: &[b"h2"],
    };
    let tls = greeting.dial(gateway.addresses.https).await.unwrap();
    let (send, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    send
}

fn ask(method: &str) -> Request<()> {
    Request::builder()
        .method(method)
        .uri("https://a.test/x?y")
        .body(())
        .unwrap()
}

/// Status, connection, body and trailers.
async fn whole(
    answer: h2::client::ResponseFuture,
) -> Result<(u16, String, String, HeaderMap), h2::Error> {
    let answer = timeout(DEADLINE, answer)
        .await
        .expect("an answer in time")?;
    let status = answer.status().as_u16();
    let connection = answer
        .headers()
        .get("x-connection")
        .map(|c| c.to_str().unwrap().to_owned());
    let mut body = answer.into_body();
    let mut text = Vec::new();
    while let Some(data) = timeout(DEADLINE, body.data()).await.expect("data in time") {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        text.extend(data);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    let text = String::from_utf8(text).unwrap();
    Ok((status, connection.unwrap_or_default(), text, trailers))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_all_clients_share_a_connection_and_keep_what_they_say() {
    let origin = upstream(100, usize::MAX, mirror).await;
    // One thread, so that there is one connection.
    let routes = format!(
        "routes:\n- {{host: a.test, target: 'h2c://{}'}}\n",
        origin.address
    );
    let gateway = Gateway::start(Options::routes(routes).flag("--workers", "1")).await;
    let mut send = client(&gateway).await;
    let mut asked = Vec::new();
    for _ in 0..50 {
        let mut request = ask("POST");
        let headers = request.headers_mut();
        headers.insert("te", "trailers".parse().unwrap());
        headers.append("cookie", "a=1".parse().unwrap());
        headers.append("cookie", "b=2".parse().unwrap());
        let (answer, mut body) = send.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-hash", "42".parse().unwrap());
        body.send_trailers(trailers).unwrap();
        asked.push(whole(answer));
    }
    for answer in asked {
        let (status, connection, text, trailers) = answer.await.unwrap();
        assert_eq!((status, connection.as_str()), (200, "0"));
        assert!(text.starts_with("POST https://a.test/x?y "), "{text}");
        for part in [
            "\"te\": \"trailers\"",
            "\"cookie\": \"a=1; b=2\"",
            "\"x-forwarded-for\": ",
            " 5 {\"x-hash\": \"42\"}",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(trailers["grpc-status"], "0");
    }
    let h1 = gateway
        .https("a.test", "/x", &["--http1.1", "--data", "four"])
        .await;
    assert!(
        h1.text().starts_with("POST https://a.test:"),
        "{}",
        h1.text()
    );
    assert!(h1.text().contains(" 4 {}"), "{}", h1.text());
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_carries_more_streams_than_the_upstream_allows() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (Arc::clone(&open), Arc::clone(&most));
    let origin = upstream(2, usize::MAX, move |asked| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            now.fetch_sub(1, Ordering::SeqCst);
            mirror(asked).await;
        }
    })
    .await;
    let gateway = start(&origin, "").await;
    let mut send = client(&gateway).await;
    let asked: Vec<_> = (0..100)
        .map(|_| whole(send.send_request(ask("GET"), true).unwrap().0))
        .collect();
    for answer in asked {
        assert_eq!(answer.await.unwrap().0, 200);
    }
    assert!(
        origin.connections.load(Ordering::SeqCst) <= 8,
        "{:?}",
        origin.connections
    );
    gateway.stop().await;
}

/// Sent at once they would be refused, and sent again to the next connection too early as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_before_the_settings_waits_for_them() {
    let origin = far_upstream(Duration::from_millis(100), 2, usize::MAX, mirror).await;
    let gateway = start(&origin, "").await;
    let mut send = client(&gateway).await;
    let asked: Vec<_> = (0..40)
        .map(|_| whole(send.send_request(ask("GET"), true).unwrap().0))
        .collect();
    for answer in asked {
        assert_eq!(answer.await.unwrap().0, 200);
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_goes_away_loses_no_request() {
    // Each connection serves three requests and says so.
    let origin = upstream(100, 3, mirror).await;
    let gateway = start(&origin, "").await;
    let mut send = client(&gateway).await;
    for _ in 0..12 {
        let answer = send.send_request(ask("GET"), true).unwrap().0;
        assert_eq!(whole(answer).await.unwrap().0, 200);
    }
    assert!(origin.connections.load(Ordering::SeqCst) >= 4);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_refused_unprocessed_is_sent_again() {
    let origin = upstream(100, usize::MAX, async move |mut asked: Asked| {
        match asked.number {
            1 => asked.respond.send_reset(Reason::REFUSED_STREAM),
            _ => mirror(asked).await,
        }
    })
    .await;
    let gateway = start(&origin, "").await;
    let mut send = client(&gateway).await;
    for _ in 0..4 {
        let answer = send.send_request(ask("GET"), true).unwrap().0;
        assert_eq!(whole(answer).await.unwrap().0, 200);
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_reset_upstream_is_reset_for_the_client() {
    let origin = upstream(100, usize::MAX, async move |mut asked: Asked| {
        let mut send = asked
            .respond
            .send_response(Response::new(()), false)
            .unwrap();
        send.send_data(Bytes::from_static(b"half"), false).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        send.send_reset(Reason::INTERNAL_ERROR);
    })
    .await;
    let gateway = start(&origin, "").await;
    let mut send = client(&gateway).await;
    let answer = send.send_request(ask("GET"), true).unwrap().0;
    let error = whole(answer).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    let h1 = gateway.https("a.test", "/x", &["--http1.1"]).await;
    assert_eq!((h1.exit, h1.text().as_str()), (18, "half"));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_taken_back_is_reset_upstream_at_once() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let origin = upstream(100, usize::MAX, move |mut asked: Asked| {
        let tell = tell.clone();
        async move {
            tell.send(None).unwrap();
            let reason = std::future::poll_fn(|cx| asked.respond.poll_reset(cx)).await;
            tell.send(reason.ok()).unwrap();
        }
    })
    .await;
    let gateway = start(&origin, "").await;
    let mut send = client(&gateway).await;
    let (answer, mut body) = send.send_request(ask("POST"), false).unwrap();
    assert_eq!(told.recv().await.unwrap(), None);
    body.send_reset(Reason::CANCEL);
    drop(answer);
    let seen = timeout(SOON, told.recv()).await.expect("in time");
    assert_eq!(seen.unwrap(), Some(Reason::CANCEL));
    gateway.stop().await;
}

/// As gRPC does: each message is answered before the next one is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_of_a_stream_flow_message_by_message() {
    let origin = upstream(100, usize::MAX, async move |mut asked: Asked| {
        let mut send = asked
            .respond
            .send_response(Response::new(()), false)
            .unwrap();
        let body = asked.request.body_mut();
        while let Some(Ok(data)) = body.data().await {
            body.flow_control().release_capacity(data.len()).unwrap();
            send.send_data(data, false).unwrap();
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        send.send_trailers(trailers).unwrap();
    })
    .await;
    let gateway = start(&origin, "").await;
    let mut send = client(&gateway).await;
    let (answer, mut upload) = send.send_request(ask("POST"), false).unwrap();
    let mut download = timeout(DEADLINE, answer)
        .await
        .unwrap()
        .unwrap()
        .into_body();
    for number in 0..100 {
        let message = Bytes::from(format!("message {number}"));
        upload.send_data(message.clone(), false).unwrap();
        let mut heard = Vec::new();
        while heard.len() < message.len() {
            let data = timeout(DEADLINE, download.data())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            download
                .flow_control()
                .release_capacity(data.len())
                .unwrap();
            heard.extend(data);
        }
        assert_eq!(heard, message);
    }
    upload.send_data(Bytes::new(), true).unwrap();
    assert!(timeout(DEADLINE, download.data()).await.unwrap().is_none());
    assert_eq!(
        download.trailers().await.unwrap().unwrap()["grpc-status"],
        "0"
    );
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_call_that_takes_too_long_exceeds_its_deadline() {
    let origin = upstream(100, usize::MAX, async move |asked: Asked| {
        std::future::pending::<()>().await;
        drop(asked);
    })
    .await;
    let gateway = start(&origin, ", timeout: 300ms").await;
    let mut send = client(&gateway).await;
    let mut request = ask("POST");
    request
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    let (answer, mut body) = send.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    let answer = timeout(DEADLINE, answer).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["grpc-status"], "4");
    assert!(answer.body().is_end_stream());
    gateway.stop().await;
}

/// What is no HTTP/2 server at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_speaks_something_else_is_a_502() {
    let origin = Origin::blunt("127.0.0.1", "HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let gateway = start(&origin, "").await;
    let got = gateway.https("a.test", "/", &["--http2"]).await;
    assert_eq!(got.status, 502);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_take_back_is_no_fault_of_the_upstream() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let origin = upstream(100, usize::MAX, move |mut asked: Asked| {
        let tell = tell.clone();
        async move {
            if asked.request.method() == "GET" {
                return mirror(asked).await;
            }
            tell.send("asked").unwrap();
            let _ = std::future::poll_fn(|cx| asked.respond.poll_reset(cx)).await;
            tell.send("reset").unwrap();
        }
    })
    .await;
    let gateway = start(&origin, "").await;
    let mut send = client(&gateway).await;
    let mut hears = async |what| {
        let heard = timeout(DEADLINE, told.recv()).await.expect("in time");
        assert_eq!(heard, Some(what));
    };
    // More than the breaker forgives.
    for n in 0..12 {
        let (answer, mut body) = send.send_request(ask("PUT"), n % 2 == 0).unwrap();
        hears("asked").await;
        if n % 3 == 0 {
            body.send_reset(Reason::CANCEL);
            drop(answer);
        } else {
            // The same, by the h2 crate.
            drop((answer, body));
        }
        hears("reset").await;
    }
    let answer = send.send_request(ask("GET"), true).unwrap().0;
    assert_eq!(whole(answer).await.unwrap().0, 200);
    gateway.stop().await;
}

/// As Envoy counts them: a reset by the upstream is its failure, whatever the code says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_resets_what_it_is_asked_fails() {
    for reason in [
        Reason::INTERNAL_ERROR,
        Reason::CANCEL,
        Reason::REFUSED_STREAM,
    ] {
        let serve = move |mut asked: Asked| async move { asked.respond.send_reset(reason) };
        let origin = upstream(100, usize::MAX, serve).await;
        let gateway = start(&origin, "").await;
        let mut send = client(&gateway).await;
        for n in 0..11 {
            let answer = send.send_request(ask("GET"), true).unwrap().0;
            let status = whole(answer).await.unwrap().0;
            assert_eq!(status, if n < 10 { 502 } else { 503 }, "{n} {reason:?}");
        }
        gateway.stop().await;
    }
}
