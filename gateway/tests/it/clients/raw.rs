//! What no library can be made to say: pipelining, trailers, odd but legal framing.

use std::fmt::Write as _;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::ask::{Asker, H1, H2, Question, Speaks, field, listen, unwatched, upload};
use crate::support::{DEADLINE, Gateway, Options, Origin, Table, read_head};

const HOST: &str = "c1.compute.localhost";

async fn gateway_to(origin: &Origin) -> Gateway {
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    gateway
}

/// Answers each request with its target.
async fn target() -> Origin {
    Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        loop {
            let head = read_head(&mut stream).await;
            let Some(target) = head.split(' ').nth(1) else {
                return;
            };
            let length = target.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{target}");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// S4: ten thousand requests in a row without waiting, cut into segments without regard to where
/// they begin: each is routed and answered by itself, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_pipelined_requests_are_answered_in_order() {
    const COUNT: usize = 10_000;
    let origin = target().await;
    let gateway = gateway_to(&origin).await;
    let mut all = String::new();
    for number in 0..COUNT {
        write!(
            all,
            "GET /{number} HTTP/1.1\r\nHost: {}\r\n\r\n",
            // Not everything that comes on a connection goes where its first request went.
            if number % 100 == 99 {
                "none.compute.localhost"
            } else {
                HOST
            }
        )
        .unwrap();
    }
    let h1 = H1::dial(gateway.addresses.http).await;
    let (read, mut write) = h1.stream.into_split();
    let sending = tokio::spawn(async move {
        // A length that falls on other places of the request each time.
        for segment in all.as_bytes().chunks(1009) {
            write.write_all(segment).await.unwrap();
        }
        write
    });
    let mut read = tokio::io::BufReader::new(read);
    let hear = async {
        for number in 0..COUNT {
            let (status, body) = answer(&mut read).await;
            if number % 100 == 99 {
                assert_eq!(status, 404, "{number}");
            } else {
                assert_eq!((status, body), (200, format!("/{number}")), "{number}");
            }
        }
    };
    timeout(DEADLINE * 3, hear).await.expect("all in time");
    drop(sending.await.unwrap());
    gateway.stop().await;
}

/// One answer with a length.
async fn answer(read: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> (u16, String) {
    use tokio::io::AsyncBufReadExt;
    let (mut status, mut length) = (0, 0);
    loop {
        let mut line = String::new();
        assert_ne!(read.read_line(&mut line).await.unwrap(), 0, "an early end");
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("http/1.1 ") {
            status = rest[..3].parse().unwrap();
        } else if let Some(rest) = line.strip_prefix("content-length: ") {
            length = rest.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    read.read_exact(&mut body).await.unwrap();
    (status, String::from_utf8(body).unwrap())
}

/// Sends back the body and the trailers that it got.
async fn trailing() -> Origin {
    Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        loop {
            let head = read_head(&mut stream).await.to_ascii_lowercase();
            if head.is_empty() {
                return;
            }
            assert!(head.contains("transfer-encoding: chunked"), "{head:?}");
            let mut body = Vec::new();
            while !(body.ends_with(b"\r\n\r\n") && body.windows(3).any(|w| w == b"0\r\n")) {
                body.push(stream.read_u8().await.expect("more"));
            }
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&body).await.unwrap();
        }
    })
    .await
}

/// Trailers pass both ways by both versions; those that a trailer may not be are dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_pass_both_ways() {
    let origin = trailing().await;
    let gateway = gateway_to(&origin).await;
    let mut h1 = H1::dial(gateway.addresses.http).await;
    for _ in 0..2 {
        h1.say(format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\nTrailer: x-sum\r\n\
             Transfer-Encoding: chunked\r\n\r\n\
             3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\nContent-Length: 9\r\nHost: evil\r\n\r\n"
        ))
        .await;
        let heard = h1.answer(false, &unwatched()).await;
        assert!(heard.is(200, "abcde"), "{heard:?}");
        assert_eq!(field(&heard.trailers, "x-sum"), Some("5"), "{heard:?}");
        assert_eq!(field(&heard.trailers, "content-length"), None, "{heard:?}");
        assert_eq!(field(&heard.trailers, "host"), None, "{heard:?}");
    }

    let mut h2 = H2::dial(gateway.addresses.http).await;
    let question = Question {
        method: "POST",
        fields: &[("te", "trailers")],
        ..Question::get(HOST, "/")
    };
    let (answer, mut stream) = h2.send.send_request(H2::head(&question), false).unwrap();
    stream.send_data("abcde".into(), false).unwrap();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "5".parse().unwrap());
    stream.send_trailers(trailers).unwrap();
    let heard = timeout(DEADLINE, listen(answer, &unwatched())).await;
    let heard = heard.expect("an answer in time");
    assert!(heard.is(200, "abcde"), "{heard:?}");
    assert_eq!(field(&heard.trailers, "x-sum"), Some("5"), "{heard:?}");
    gateway.stop().await;
}

/// A body over HTTP/2 without a length is chunked towards HTTP/1.1; an empty one is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_without_a_length_over_http2_arrives_in_chunks() {
    let origin = trailing().await;
    let gateway = gateway_to(&origin).await;
    let mut h2 = H2::dial(gateway.addresses.http).await;
    let question = Question {
        method: "POST",
        ..Question::get(HOST, "/")
    };
    let (answer, stream) = h2.send.send_request(H2::head(&question), false).unwrap();
    let body = Bytes::from(vec![b'x'; 1 << 20]);
    let sending = tokio::spawn(upload(stream, body));
    let heard = timeout(DEADLINE, listen(answer, &unwatched())).await;
    let heard = heard.expect("an answer in time");
    assert_eq!(
        (heard.status, heard.body.len()),
        (200, 1 << 20),
        "{heard:?}"
    );
    sending.await.unwrap();
    gateway.stop().await;
}

/// C14, C16: an event stream is known by nothing but its bytes: whatever its path and type, each
/// event is there before the next is sent, by both versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_is_there_before_the_next_is_sent() {
    for (path, kind) in [
        ("/elsewhere", "text/event-stream"),
        ("/log", "text/plain"),
        ("/grpc-web", "application/octet-stream"),
    ] {
        for speaks in [Speaks::H1, Speaks::H2] {
            let (tick, ticks) = tokio::sync::mpsc::channel::<()>(1);
            let ticks = std::sync::Arc::new(tokio::sync::Mutex::new(ticks));
            let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
                let ticks = std::sync::Arc::clone(&ticks);
                async move {
                    read_head(&mut stream).await;
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n");
                    stream.write_all(head.as_bytes()).await.unwrap();
                    let mut number = 0;
                    while ticks.lock().await.recv().await.is_some() {
                        let event = format!("data: {number}\n\n");
                        stream.write_all(event.as_bytes()).await.unwrap();
                        number += 1;
                    }
                }
            })
            .await;
            let gateway = gateway_to(&origin).await;
            let seen = unwatched();
            let mut asker = Asker::dial(speaks, gateway.addresses.http).await;
            let question = Question::get(HOST, path);
            let first = tick.clone();
            let listening = async {
                tick.send(()).await.unwrap();
                // The body's first byte is seen though nothing follows it.
                let seen = timeout(DEADLINE, seen.acquire()).await;
                seen.unwrap_or_else(|_| panic!("no event on {path} by {speaks:?}"))
                    .unwrap()
                    .forget();
                first.send(()).await.unwrap();
                drop((first, tick));
                std::future::pending::<()>().await;
            };
            let heard = tokio::select! {
                heard = asker.ask(&question, &seen) => heard,
                () = listening => unreachable!("it waits for ever"),
            };
            assert!(
                heard.is(200, "data: 0\n\ndata: 1\n\n"),
                "{path} by {speaks:?}: {heard:?}"
            );
            gateway.stop().await;
        }
    }
}

/// Raw bytes of path, query and fields arrive as they were sent: no decoding, no reordering.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_client_wrote_is_what_the_upstream_reads() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let tell = tell.clone();
        async move {
            loop {
                let head = read_head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                tell.send(head).await.unwrap();
                let answer = "HTTP/1.1 200 OK\r\nX-Upper: A\r\nx-lower: b\r\nX-Upper: c\r\n\
                     Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let gateway = gateway_to(&origin).await;
    let mut h1 = H1::dial(gateway.addresses.http).await;
    let target = "/a%2Fb//c;d=e/%7Euser/%e2%82%ac?x=%20+&&y==&z=//../%2e%2e&[]{}|\"<>^`";
    h1.say(format!(
        "GET {target} HTTP/1.1\r\nhOsT: {HOST}\r\nX-Second: 2\r\nx-FIRST: 1\r\nX-Second: 3\r\n\
         Accept:\r\nX-Blank: \t a  b \t\r\n\r\n"
    ))
    .await;
    let head = timeout(DEADLINE, told.recv()).await.unwrap().unwrap();
    assert!(
        head.starts_with(&format!("GET {target} HTTP/1.1\r\n")),
        "{head}"
    );
    let ours: Vec<_> = head
        .split("\r\n")
        .filter(|line| line.to_ascii_lowercase().starts_with("x-"))
        .filter(|line| {
            let lower = line.to_ascii_lowercase();
            !lower.starts_with("x-forwarded-") && !lower.starts_with("x-request-id")
        })
        .collect();
    assert_eq!(
        ours,
        ["X-Second: 2", "x-FIRST: 1", "X-Second: 3", "X-Blank: a  b"],
        "{head}"
    );
    assert!(
        head.contains(&format!("\r\nhOsT: {HOST}\r\n"))
            || head.contains(&format!("\r\nHost: {HOST}\r\n"))
            || head.contains(&format!("\r\nhost: {HOST}\r\n")),
        "{head}"
    );
    // The answer's too, byte by byte.
    let mut heard = Vec::new();
    let read = async {
        while !heard.ends_with(b"\r\n\r\n") {
            heard.push(h1.stream.read_u8().await.unwrap());
        }
    };
    timeout(DEADLINE, read).await.expect("a head");
    let heard = String::from_utf8(heard).unwrap();
    let theirs: Vec<_> = heard
        .split("\r\n")
        .filter(|line| {
            let lower = line.to_ascii_lowercase();
            lower.starts_with("x-upper")
                || lower.starts_with("x-lower")
                || lower.starts_with("set-")
        })
        .collect();
    assert_eq!(
        theirs,
        [
            "X-Upper: A",
            "x-lower: b",
            "X-Upper: c",
            "Set-Cookie: a=1",
            "Set-Cookie: b=2"
        ],
        "{heard}"
    );
    gateway.stop().await;
}
