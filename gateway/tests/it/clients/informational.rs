//! 1xx answers: 103 relayed, 100 at the upstream's will, none to those who cannot understand them.

use bytes::Bytes;
use tokio::time::timeout;

use crate::support::ask::{Asker, H1, H2, Question, Speaks, field, listen, unwatched};
use crate::support::{DEADLINE, Gateway, Options, Origin, Table, read_head};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HOST: &str = "c1.compute.localhost";

async fn gateway_to(origin: &Origin) -> Gateway {
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 80, origin.address);
    table.run("c2", 443, origin.address);
    gateway
}

/// Two hints, then the answer.
async fn hinting() -> Origin {
    Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        while !read_head(&mut stream).await.is_empty() {
            let answer = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
                 HTTP/1.1 103 Early Hints\r\nLink: </b.js>; rel=preload\r\n\
                 Connection: x-hop\r\nX-Hop: 1\r\n\r\n\
                 HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

/// C15: 103 Early Hints reach clients of both versions, in order, each once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_hints_are_relayed() {
    let origin = hinting().await;
    let gateway = gateway_to(&origin).await;
    for speaks in [Speaks::H1, Speaks::H2] {
        let mut asker = Asker::dial(speaks, gateway.addresses.http).await;
        for _ in 0..2 {
            let heard = asker.ask(&Question::get(HOST, "/"), &unwatched()).await;
            assert!(heard.is(200, "ok"), "{speaks:?}: {heard:?}");
            let links: Vec<_> = heard
                .before
                .iter()
                .map(|(status, fields)| (*status, field(fields, "link")))
                .collect();
            let expected = [
                (103, Some("</a.css>; rel=preload")),
                (103, Some("</b.js>; rel=preload")),
            ];
            assert_eq!(links, expected, "{speaks:?}: {heard:?}");
            // What concerns one hop stays on it.
            let (_, second) = &heard.before[1];
            assert_eq!(field(second, "x-hop"), None, "{speaks:?}");
        }
    }
    gateway.stop().await;
}

/// C15: a hint is there before the answer is, not with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hint_does_not_wait_for_the_answer() {
    // Each connection gets the hint, then waits for a byte that only follows it.
    let origin = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        read_head(&mut stream).await;
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        stream.write_all(hint.as_bytes()).await.unwrap();
        stream.read_u8().await.unwrap();
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let gateway = gateway_to(&origin).await;
    let mut h1 = H1::dial(gateway.addresses.http).await;
    h1.say(format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1\r\n\r\n"
    ))
    .await;
    let (line, _) = h1.head().await.expect("a hint");
    assert!(line.starts_with("HTTP/1.1 103 "), "{line:?}");
    h1.say("x").await;
    assert!(h1.answer(false, &unwatched()).await.is(200, "ok"));

    let mut h2 = H2::dial(gateway.addresses.http).await;
    let question = Question {
        method: "POST",
        ..Question::get(HOST, "/")
    };
    let (mut answer, mut stream) = h2.send.send_request(H2::head(&question), false).unwrap();
    let hint = std::future::poll_fn(|cx| answer.poll_informational(cx));
    let hint = timeout(DEADLINE, hint).await.expect("a hint in time");
    assert_eq!(hint.expect("a hint").unwrap().status().as_u16(), 103);
    stream.send_data(Bytes::from_static(b"x"), true).unwrap();
    assert!(listen(answer, &unwatched()).await.is(200, "ok"));
    gateway.stop().await;
}

/// C15: curl shows the hints by both versions, and gets its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_sees_early_hints() {
    let origin = hinting().await;
    let gateway = gateway_to(&origin).await;
    for (version, line) in [("--http1.1", "HTTP/1.1 103"), ("--http2", "HTTP/2 103")] {
        // Every head that comes is part of the output, and the body follows.
        let got = gateway
            .https("c2.compute.localhost", "/", &["--include", version])
            .await;
        assert_eq!((got.exit, got.status), (0, 200), "{version}");
        let text = got.text();
        assert_eq!(text.matches(line).count(), 2, "{version}: {text}");
        assert!(text.contains("</a.css>"), "{version}: {text}");
        assert!(text.ends_with("\r\n\r\nok"), "{version}: {text}");
    }
    gateway.stop().await;
}

/// A client of HTTP/1.0 does not know 1xx: it gets none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_0_gets_no_hints() {
    let origin = hinting().await;
    let gateway = gateway_to(&origin).await;
    let mut h1 = H1::dial(gateway.addresses.http).await;
    h1.say(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n"))
        .await;
    let heard = h1.answer(false, &unwatched()).await;
    assert!(heard.before.is_empty() && heard.is(200, "ok"), "{heard:?}");
    gateway.stop().await;
}

/// C15: curl's upload waits for the 100 that the upstream gives, by both versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_uploads_after_the_upstreams_100() {
    let origin = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        loop {
            let head = read_head(&mut stream).await.to_ascii_lowercase();
            if head.is_empty() {
                return;
            }
            assert!(head.contains("expect: 100-continue\r\n"), "{head:?}");
            assert!(head.contains("content-length: 5\r\n"), "{head:?}");
            let consent = "HTTP/1.1 100 Continue\r\nX-Consent: theirs\r\n\r\n";
            stream.write_all(consent.as_bytes()).await.unwrap();
            let mut body = [0; 5];
            stream.read_exact(&mut body).await.unwrap();
            assert_eq!(&body, b"hello");
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let gateway = gateway_to(&origin).await;
    let begun = std::time::Instant::now();
    for (version, line) in [("--http1.1", "HTTP/1.1 100"), ("--http2", "HTTP/2 100")] {
        let more = ["--data", "hello", "--header", "expect: 100-continue"];
        // Longer than a test may take: only the upstream's word can begin the upload.
        let patience = ["--expect100-timeout", "600", "--include", version];
        let more = [&more[..], &patience[..]].concat();
        let got = gateway.https("c2.compute.localhost", "/", &more).await;
        assert_eq!((got.exit, got.status), (0, 200), "{version}");
        let text = got.text();
        assert_eq!(text.matches(line).count(), 1, "{version}: {text}");
    }
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    gateway.stop().await;
}
