//! Answers that come before the request is read, uploads that nobody reads, and cut uploads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::support::ask::{Asker, End, H1, H2, Question, Speaks, listen};
use crate::support::{DEADLINE, Gateway, Options, Origin, Table, read_head};

use super::script::Act::{Close, HalfClose, Read, Reset, Say, Stall};
use super::script::{HOST, Stage};

const TOO_LARGE: &str = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig";

/// More than all buffers on the way hold.
fn large() -> Bytes {
    Bytes::from(vec![7; 100 << 20])
}

/// C13: an answer that comes while the upload goes on is seen by the client, whatever becomes of
/// the upstream then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_is_seen_whatever_becomes_of_the_upload() {
    let scripts = vec![
        ("/closes", vec![Say(TOO_LARGE), Close]),
        ("/reads-some", vec![Read(1 << 20), Say(TOO_LARGE), Close]),
        ("/resets", vec![Read(1 << 20), Say(TOO_LARGE), Reset]),
        ("/half-closes", vec![Say(TOO_LARGE), HalfClose]),
        ("/stays", vec![Say(TOO_LARGE), Stall]),
        (
            "/says-so",
            vec![
                Say("HTTP/1.1 413 Content Too Large\r\nconnection: close\r\n\
                     content-length: 3\r\n\r\nbig"),
                Close,
            ],
        ),
    ];
    let paths: Vec<_> = scripts.iter().map(|(path, _)| *path).collect();
    let options = Options::default().flag("--body-timeout", "2s");
    let stage = Stage::set(scripts, options).await;
    let body = large();
    for path in paths {
        for speaks in [Speaks::H1, Speaks::H2] {
            let mut asker = stage.dial(speaks).await;
            let question = Question::post(HOST, path, body.clone());
            let begun = Instant::now();
            let heard = stage.put(&mut asker, &question).await;
            // A reset may overtake the answer on the upstream's own machine; nobody can help that.
            let lost = path == "/resets" && heard.status == 502;
            assert!(
                heard.is(413, "big") || lost,
                "{path} by {speaks:?} after {:?}: {heard:?}",
                begun.elapsed()
            );
            let mut fresh = stage.dial(speaks).await;
            stage.is_sane(&mut fresh, speaks, path).await;
        }
    }
    stage.gateway.stop().await;
}

/// C13: curl sees it too, and is content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_sees_an_early_answer_to_a_large_upload() {
    let scripts = vec![("/closes", vec![Say(TOO_LARGE), Close])];
    let stage = Stage::set(scripts, Options::default()).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(100 << 20).unwrap();
    let upload = file.path().display().to_string();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for expect in ["expect:", "expect: 100-continue"] {
            let more = ["--upload-file", &upload, "--header", expect, version];
            let got = stage.gateway.http(HOST, "/closes", &more).await;
            assert_eq!(
                (got.status, got.text().as_str(), got.exit),
                (413, "big", 0),
                "{version} {expect}"
            );
        }
    }
    stage.gateway.stop().await;
}

/// An upstream that goes away in the middle of an upload is a 502 that the client reads, though
/// it is still sending.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_lost_in_an_upload_is_a_502() {
    let scripts = vec![
        ("/closes", vec![Read(1000), Close]),
        ("/resets", vec![Read(1000), Reset]),
        ("/at-once", vec![Close]),
    ];
    let paths: Vec<_> = scripts.iter().map(|(path, _)| *path).collect();
    let options = Options::default().flag("--body-timeout", "2s");
    let stage = Stage::set(scripts, options).await;
    let body = large();
    for path in paths {
        for speaks in [Speaks::H1, Speaks::H2] {
            let mut asker = stage.dial(speaks).await;
            let question = Question::post(HOST, path, body.clone());
            let heard = stage.put(&mut asker, &question).await;
            assert_eq!(heard.status, 502, "{path} by {speaks:?}: {heard:?}");
            assert_eq!(heard.end, End::Whole, "{path} by {speaks:?}");
            assert_eq!(stage.asked(path) % 2, usize::from(speaks == Speaks::H1));
            let mut fresh = stage.dial(speaks).await;
            stage.is_sane(&mut fresh, speaks, path).await;
        }
    }
    stage.gateway.stop().await;
}

/// An upload that the upstream never reads is the upstream's fault (504), not the client's (408).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_nobody_reads_is_a_504() {
    let scripts = vec![("/deaf", vec![Stall])];
    let options = Options::default()
        .flag("--upstream-timeout", "3s")
        .flag("--body-timeout", "2s");
    let stage = Stage::set(scripts, options).await;
    let body = large();
    for speaks in [Speaks::H1, Speaks::H2] {
        let mut asker = stage.dial(speaks).await;
        let question = Question::post(HOST, "/deaf", body.clone());
        let heard = stage.put(&mut asker, &question).await;
        assert_eq!(heard.status, 504, "{speaks:?}: {heard:?}");
        stage.done("/deaf").await;
    }
    stage.gateway.stop().await;
}

/// C12: many uploads in many pieces take as long as they need: the upstream's time runs while it
/// is the upstream's turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_upload_outlasts_the_upstreams_time() {
    let scripts = vec![(
        "/slow",
        vec![
            Read(20),
            Say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
        ],
    )];
    let options = Options::default().flag("--upstream-timeout", "1500ms");
    let stage = Stage::set(scripts, options).await;
    let pause = || tokio::time::sleep(Duration::from_millis(150));

    let mut h1 = H1::dial(stage.gateway.addresses.http).await;
    h1.say(format!(
        "POST /slow HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 20\r\n\r\n"
    ))
    .await;
    for _ in 0..20 {
        pause().await;
        h1.say("x").await;
    }
    let heard = h1.answer(false, &stage.seen).await;
    assert!(heard.is(200, "ok"), "{heard:?}");

    let mut h2 = H2::dial(stage.gateway.addresses.http).await;
    let question = Question::post(HOST, "/slow", vec![0; 20]);
    let (answer, mut stream) = h2.send.send_request(H2::head(&question), false).unwrap();
    for sent in 1..=20 {
        pause().await;
        stream
            .send_data(Bytes::from_static(b"x"), sent == 20)
            .unwrap();
    }
    let heard = timeout(DEADLINE, listen(answer, &stage.seen)).await;
    let heard = heard.expect("in time");
    assert!(heard.is(200, "ok"), "{heard:?}");
    stage.gateway.stop().await;
}

/// Reads what comes after the head, to the end; the bytes and whether the end was clean.
async fn listener() -> (Origin, mpsc::Receiver<(String, Vec<u8>)>) {
    let (tell, told) = mpsc::channel(8);
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let tell = tell.clone();
        async move {
            let head = read_head(&mut stream).await;
            let mut body = Vec::new();
            let _ = stream.read_to_end(&mut body).await;
            let _ = tell.send((head, body)).await;
        }
    })
    .await;
    (origin, told)
}

/// Whether an upstream would take this as the whole body of a request with that head.
fn is_whole(head: &str, body: &[u8]) -> bool {
    if head.is_empty() {
        return false;
    }
    let head = head.to_ascii_lowercase();
    match head.split("content-length: ").nth(1) {
        Some(rest) => {
            let length = rest.split("\r\n").next().unwrap().parse::<usize>();
            body.len() >= length.unwrap()
        }
        None if head.contains("transfer-encoding: chunked") => body.ends_with(b"0\r\n\r\n"),
        None => true,
    }
}

/// S4, C12: a cut upload is cut for the upstream: it never gets what looks like a whole request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_upload_never_looks_whole_to_the_upstream() {
    let (origin, mut told) = listener().await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let mut hears = async |case: &str| {
        let (head, body) = timeout(DEADLINE, told.recv())
            .await
            .unwrap_or_else(|_| panic!("{case}: the upstream is held"))
            .unwrap();
        assert!(
            !is_whole(&head, &body),
            "{case}: {head:?} {:?}",
            body.escape_ascii().to_string()
        );
    };
    for (framing, part) in [
        ("Content-Length: 10", "abc"),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n"),
        ("Transfer-Encoding: chunked", "9\r\nabc"),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\nx: y\r\n"),
    ] {
        for reset in [false, true] {
            let mut h1 = H1::dial(gateway.addresses.http).await;
            h1.say(format!(
                "POST / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n{part}"
            ))
            .await;
            if reset {
                // Only once the request is under way.
                while origin.connections.load(std::sync::atomic::Ordering::SeqCst) == 0 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                h1.stream.set_zero_linger().unwrap();
            }
            drop(h1);
            if reset {
                // It may have been lost before anybody was asked.
                let _ = timeout(Duration::from_millis(500), async {
                    hears("a reset").await;
                })
                .await;
            } else {
                hears(&format!("{framing} {part:?}")).await;
            }
        }
    }
    gateway.stop().await;
}

/// C12: on HTTP/2 a reset, a lost connection and a body shorter or longer than announced are cuts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_upload_over_http2_never_looks_whole_to_the_upstream() {
    #[derive(Debug)]
    enum Cut {
        Reset,
        Lost,
        Short,
        Long,
    }
    for announced in [true, false] {
        for cut in [Cut::Reset, Cut::Lost, Cut::Short, Cut::Long] {
            if !announced && matches!(cut, Cut::Short | Cut::Long) {
                continue;
            }
            let (origin, mut told) = listener().await;
            let gateway = Gateway::start(Options::default()).await;
            Table::of(&gateway).run("c1", 80, origin.address);
            let mut h2 = H2::dial(gateway.addresses.http).await;
            let question = Question {
                method: "POST",
                fields: if announced {
                    &[("content-length", "10")]
                } else {
                    &[]
                },
                ..Question::get(HOST, "/")
            };
            let (answer, mut stream) = h2.send.send_request(H2::head(&question), false).unwrap();
            stream
                .send_data(Bytes::from_static(b"abc"), false)
                .expect("sent");
            // The request is under way.
            crate::support::eventually("it is asked", || async {
                origin.connections.load(std::sync::atomic::Ordering::SeqCst) == 1
            })
            .await;
            match cut {
                Cut::Reset => stream.send_reset(h2::Reason::CANCEL),
                Cut::Lost => drop((stream, answer, h2)),
                Cut::Short => {
                    let _ = stream.send_data(Bytes::from_static(b"d"), true);
                }
                Cut::Long => {
                    let _ = stream.send_data(Bytes::from_static(b"defghijklmno"), true);
                }
            }
            let heard = timeout(DEADLINE, told.recv()).await;
            let (head, body) = heard.expect("the upstream is let go").unwrap();
            // Of a body that is too long no more than announced may arrive, and not all of it.
            assert!(
                !is_whole(&head, &body),
                "{cut:?} {announced}: {head:?} {:?}",
                body.escape_ascii().to_string()
            );
            gateway.stop().await;
        }
    }
}

/// The body of an answer in chunks, as far as it has come.
fn said(heard: &[u8]) -> String {
    let heard = String::from_utf8_lossy(heard);
    let mut rest = heard.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let mut said = String::new();
    while let Some((size, chunk)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        said.push_str(&chunk[..size.min(chunk.len())]);
        rest = chunk.get(size + 2..).unwrap_or_default();
    }
    said
}

/// C13, C14: both directions flow at once, each piece answered before the next is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_and_its_answer_flow_at_once() {
    let origin = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        loop {
            let head = read_head(&mut stream).await.to_ascii_lowercase();
            if head.is_empty() {
                return;
            }
            assert!(head.contains("transfer-encoding: chunked\r\n"), "{head:?}");
            let agree = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n";
            stream.write_all(agree.as_bytes()).await.unwrap();
            // The chunks go back as they are: the last one ends both.
            let mut echoed = Vec::new();
            while !echoed.ends_with(b"0\r\n\r\n") {
                let from = echoed.len();
                if !matches!(stream.read_buf(&mut echoed).await, Ok(1..)) {
                    return;
                }
                stream.write_all(&echoed[from..]).await.unwrap();
            }
        }
    })
    .await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);

    let mut h1 = H1::dial(gateway.addresses.http).await;
    h1.say(format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"
    ))
    .await;
    let seen = Arc::new(Semaphore::new(0));
    {
        let (mut read, mut write) = h1.stream.split();
        let mut heard = Vec::new();
        for number in 0..10 {
            let hello = if number == 0 {
                "hi".to_owned()
            } else {
                format!("piece {number}")
            };
            let waited = timeout(DEADLINE, async {
                while !said(&heard).ends_with(&hello) {
                    assert_ne!(read.read_buf(&mut heard).await.unwrap(), 0);
                }
            });
            waited.await.unwrap_or_else(|_| panic!("no {hello}"));
            let next = format!("7\r\npiece {}\r\n", number + 1);
            if number < 8 {
                write.write_all(next.as_bytes()).await.unwrap();
            } else {
                write.write_all(b"0\r\n\r\n").await.unwrap();
                break;
            }
        }
        let rest = timeout(DEADLINE, async {
            while !heard.ends_with(b"0\r\n\r\n") {
                assert_ne!(read.read_buf(&mut heard).await.unwrap(), 0);
            }
        });
        rest.await.expect("a clean end");
    }
    // And the connection goes on.
    h1.say(format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ))
    .await;
    let heard = h1.answer(false, &seen).await;
    assert!(heard.is(200, "hi"), "{heard:?}");

    let mut h2 = H2::dial(gateway.addresses.http).await;
    let question = Question {
        method: "POST",
        ..Question::get(HOST, "/")
    };
    let (answer, mut stream) = h2.send.send_request(H2::head(&question), false).unwrap();
    let response = timeout(DEADLINE, answer).await.expect("a head").unwrap();
    let mut body = response.into_body();
    for number in 0..10 {
        let mut piece = Vec::new();
        let expected = if number == 0 {
            "hi".to_owned()
        } else {
            format!("piece {number}")
        };
        while piece.len() < expected.len() {
            let data = timeout(DEADLINE, body.data()).await.expect("in time");
            piece.extend_from_slice(&data.expect("more").unwrap());
        }
        assert_eq!(piece, expected.as_bytes());
        if number < 9 {
            let next = format!("piece {}", number + 1);
            stream.send_data(next.into(), false).unwrap();
        } else {
            stream.send_data(Bytes::new(), true).unwrap();
        }
    }
    let end = timeout(DEADLINE, body.data()).await.expect("in time");
    assert!(end.is_none_or(|data| data.unwrap().is_empty()));
    drop(seen);
    gateway.stop().await;
}

/// C15: the upstream decides on `Expect: 100-continue`: its refusal reaches a client that has not
/// sent its body, its consent too, and its silence does not hold the body back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstream_decides_whether_a_body_is_sent() {
    let refuse = "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno";
    let scripts = vec![
        ("/refuses", vec![Say(refuse)]),
        (
            "/refuses-and-closes",
            vec![
                Say("HTTP/1.1 417 Expectation Failed\r\nconnection: close\r\n\
                     content-length: 2\r\n\r\nno"),
                Close,
            ],
        ),
        (
            "/agrees",
            vec![
                Say("HTTP/1.1 100 Continue\r\n\r\n"),
                Read(3),
                Say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
            ],
        ),
        (
            "/silent",
            vec![
                Read(3),
                Say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
            ],
        ),
    ];
    let stage = Stage::set(scripts, Options::default()).await;
    let ask = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\n\
             Expect: 100-continue\r\n\r\n"
        )
    };
    for path in ["/refuses", "/refuses-and-closes"] {
        let mut h1 = H1::dial(stage.gateway.addresses.http).await;
        h1.say(ask(path)).await;
        let heard = h1.answer(false, &stage.seen).await;
        assert!(
            heard.is(417, "no") && heard.before.is_empty(),
            "{path}: {heard:?}"
        );
    }
    let mut h1 = H1::dial(stage.gateway.addresses.http).await;
    h1.say(ask("/agrees")).await;
    let (line, _) = h1.head().await.expect("consent");
    assert!(line.starts_with("HTTP/1.1 100 "), "{line:?}");
    h1.say("abc").await;
    let heard = h1.answer(false, &stage.seen).await;
    assert!(
        heard.is(200, "ok") && heard.before.is_empty(),
        "only once: {heard:?}"
    );
    // The client does not wait for ever, and need not.
    h1.say(ask("/silent")).await;
    h1.say("abc").await;
    let heard = h1.answer(false, &stage.seen).await;
    assert!(heard.is(200, "ok"), "{heard:?}");
    let mut asker = Asker::H1(h1);
    stage.is_sane(&mut asker, Speaks::H1, "expect").await;
    stage.gateway.stop().await;
}
