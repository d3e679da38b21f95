//! Faults in the answer's body: what was cut is cut for the client, and nothing is left for others.

use std::time::{Duration, Instant};

use crate::support::Options;
use crate::support::ask::{End, Speaks};

use super::script::Act::{Bytes, Close, Done, Drip, Reset, Say, Seen, Stall};
use super::script::{Scripts, Stage};

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// Bodies that end too early, or in a way that their framing does not know.
fn cut() -> Scripts {
    let sized = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc";
    let open = "HTTP/1.1 200 OK\r\n\r\nabc";
    let chunks = move |rest: &'static str| vec![Say(CHUNKED), Say("3\r\nabc\r\n"), Seen, Say(rest)];
    let then = |mut script: Vec<_>, act| {
        script.push(act);
        script
    };
    vec![
        ("/length-close", vec![Say(sized), Close]),
        ("/length-reset", vec![Say(sized), Seen, Reset]),
        (
            "/chunked-close",
            vec![Say(CHUNKED), Say("3\r\nabc\r\n"), Close],
        ),
        (
            "/chunked-reset",
            vec![Say(CHUNKED), Say("3\r\nabc\r\n"), Seen, Reset],
        ),
        ("/in-a-chunk", then(chunks("9\r\nabc"), Close)),
        ("/in-a-chunks-size", then(chunks("1"), Close)),
        ("/before-a-chunks-end", then(chunks("3\r\nabc"), Close)),
        ("/in-the-last-chunk", then(chunks("0\r\n"), Close)),
        ("/in-the-trailers", then(chunks("0\r\nx: y\r\n"), Close)),
        ("/no-size", chunks("zz\r\nabc\r\n")),
        ("/empty-size", chunks("\r\nabc\r\n")),
        ("/huge-size", chunks("ffffffffffffffff0\r\nabc\r\n")),
        ("/negative-size", chunks("-3\r\nabc\r\n")),
        ("/longer-than-its-size", chunks("3\r\nabcdef\r\n0\r\n\r\n")),
        ("/bare-lf-in-a-chunk", chunks("3\nabc\n0\n\n")),
        ("/open-reset", vec![Say(open), Seen, Reset]),
    ]
}

/// C12: a body cut by the upstream is cut for the client, and its connection is not used again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_body_never_looks_whole() {
    let scripts = cut();
    let paths: Vec<_> = scripts.iter().map(|(path, _)| *path).collect();
    let stage = Stage::set(scripts, Options::default()).await;
    stage
        .each(paths, |path, speaks, heard| {
            assert!(
                heard.status == 200 && heard.end == End::Cut && b"abcabc".starts_with(&heard.body),
                "{path} by {speaks:?}: {heard:?}"
            );
        })
        .await;
    stage.gateway.stop().await;
}

/// A client of HTTP/1.0 knows no framing but the end: a cut is a reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_body_is_a_reset_for_http_1_0() {
    use crate::support::ask::H1;
    let scripts = cut();
    let paths: Vec<_> = scripts.iter().map(|(path, _)| *path).collect();
    let stage = Stage::set(scripts, Options::default()).await;
    for path in paths {
        stage.seen.forget_permits(usize::MAX);
        let mut h1 = H1::dial(stage.gateway.addresses.http).await;
        h1.say(format!(
            "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n",
            super::script::HOST
        ))
        .await;
        let heard = h1.answer(false, &stage.seen).await;
        // With its length announced, a clean close is a cut too.
        let cut = heard.end == End::Cut;
        assert!(heard.status == 200 && cut, "{path}: {heard:?}");
    }
    stage.gateway.stop().await;
}

/// What whole answers look like beside the cut ones, and the bytes that follow them unasked.
fn beyond() -> Scripts {
    let poison = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    vec![
        (
            "/length-glued",
            vec![Say(
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\
                 content-length: 6\r\n\r\npoison",
            )],
        ),
        (
            "/length-junk",
            vec![Say(
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok and much more",
            )],
        ),
        (
            "/chunked",
            vec![Say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                 2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\
                 content-length: 6\r\n\r\npoison")],
        ),
        (
            "/late",
            vec![
                Say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
                Seen,
                Say(poison),
                Done,
            ],
        ),
        (
            "/twice",
            vec![
                Say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
                Seen,
                Say("\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"),
                Done,
            ],
        ),
    ]
}

/// C12, S4: bytes after the answer's end are nobody's answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_beyond_the_end_are_never_the_next_answer() {
    let stage = Stage::set(beyond(), Options::default()).await;
    for (path, script) in beyond() {
        for speaks in [Speaks::H1, Speaks::H2] {
            let mut asker = stage.dial(speaks).await;
            let heard = stage.ask(&mut asker, path).await;
            assert!(heard.is(200, "ok"), "{path} by {speaks:?}: {heard:?}");
            if script.iter().any(|act| matches!(act, Done)) {
                stage.done(path).await;
            }
            stage.is_sane(&mut asker, speaks, path).await;
        }
    }
    stage.gateway.stop().await;
}

/// C12: answers that have no body by their status or method keep what the upstream sends with
/// them from everybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_where_none_may_be_goes_to_nobody() {
    use crate::support::ask::Question;
    let scripts = vec![
        (
            "/204",
            vec![Say("HTTP/1.1 204 No Content\r\n\r\n\
                 HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")],
        ),
        (
            "/304",
            vec![Say(
                "HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\ncontent-length: 6\r\n\r\npoison",
            )],
        ),
        (
            "/head",
            vec![Say("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")],
        ),
        (
            "/head-chunked",
            vec![Say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                 6\r\npoison\r\n0\r\n\r\n")],
        ),
    ];
    let stage = Stage::set(scripts, Options::default()).await;
    for (path, method, status) in [
        ("/204", "GET", 204),
        ("/304", "GET", 304),
        ("/head", "HEAD", 200),
        ("/head-chunked", "HEAD", 200),
    ] {
        for speaks in [Speaks::H1, Speaks::H2] {
            let mut asker = stage.dial(speaks).await;
            let question = Question {
                method,
                ..Question::get(super::script::HOST, path)
            };
            let heard = stage.put(&mut asker, &question).await;
            assert!(heard.is(status, ""), "{path} by {speaks:?}: {heard:?}");
            stage.is_sane(&mut asker, speaks, path).await;
        }
    }
    stage.gateway.stop().await;
}

/// C9, C11: a body that the upstream ends by closing is whole, at once, and framed for the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_up_to_the_close_is_whole_at_once() {
    let scripts = vec![
        ("/1.1", vec![Say("HTTP/1.1 200 OK\r\n\r\nabc"), Close]),
        ("/1.0", vec![Say("HTTP/1.0 200 OK\r\n\r\nabc"), Close]),
        (
            "/claims-keep-alive",
            vec![
                Say("HTTP/1.1 200 OK\r\nconnection: keep-alive\r\n\r\nabc"),
                Close,
            ],
        ),
        (
            "/half",
            vec![
                Say("HTTP/1.1 200 OK\r\n\r\nabc"),
                super::script::Act::HalfClose,
            ],
        ),
        ("/empty", vec![Say("HTTP/1.1 200 OK\r\n\r\n"), Close]),
    ];
    let paths: Vec<_> = scripts.iter().map(|(path, _)| *path).collect();
    let stage = Stage::set(scripts, Options::default()).await;
    let begun = Instant::now();
    stage
        .each(paths, |path, speaks, heard| {
            let body = if path == "/empty" { "" } else { "abc" };
            assert!(heard.is(200, body), "{path} by {speaks:?}: {heard:?}");
        })
        .await;
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    stage.gateway.stop().await;
}

/// C14: every byte goes on as it comes, and a slow answer is a whole one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_byte_by_byte_is_whole() {
    let scripts = vec![
        (
            "/length",
            vec![Drip(
                "HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 5\r\n\r\nabcde",
            )],
        ),
        (
            "/chunked",
            vec![Drip(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                 2;ext=\"a;b\"\r\nab\r\n3\r\ncde\r\n0\r\nx-sum: 5\r\n\r\n",
            )],
        ),
        (
            "/after-1xx",
            vec![Drip(
                "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
                 HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcde",
            )],
        ),
    ];
    let paths: Vec<_> = scripts.iter().map(|(path, _)| *path).collect();
    let stage = Stage::set(scripts, Options::default()).await;
    stage
        .each(paths, |path, speaks, heard| {
            assert!(heard.is(200, "abcde"), "{path} by {speaks:?}: {heard:?}");
        })
        .await;
    stage.gateway.stop().await;
}

/// Any number of chunks, and extensions that make them large, stay within bounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_chunks_and_long_extensions_are_understood_or_refused() {
    let mut small = CHUNKED.as_bytes().to_vec();
    for _ in 0..100_000 {
        small.extend_from_slice(b"1\r\na\r\n");
    }
    small.extend_from_slice(b"0\r\n\r\n");
    let mut long = CHUNKED.as_bytes().to_vec();
    long.extend_from_slice(b"3\r\nabc\r\n3;");
    long.extend_from_slice(&vec![b'e'; 1 << 20]);
    long.extend_from_slice(b"\r\nabc\r\n0\r\n\r\n");
    let mut trailers = CHUNKED.as_bytes().to_vec();
    trailers.extend_from_slice(b"3\r\nabc\r\n0\r\n");
    for number in 0..100_000 {
        trailers.extend_from_slice(format!("x-{number}: y\r\n").as_bytes());
    }
    trailers.extend_from_slice(b"\r\n");
    let scripts = vec![
        ("/small", vec![Bytes(small)]),
        ("/long-extension", vec![Bytes(long)]),
        ("/many-trailers", vec![Bytes(trailers)]),
    ];
    let paths: Vec<_> = scripts.iter().map(|(path, _)| *path).collect();
    let stage = Stage::set(scripts, Options::default()).await;
    stage
        .each(paths, |path, speaks, heard| match path {
            "/small" => assert!(
                heard.end == End::Whole && heard.body.len() == 100_000,
                "{speaks:?}"
            ),
            _ => assert!(
                heard.end == End::Cut,
                "{path} by {speaks:?}: {} {:?}",
                heard.status,
                heard.end
            ),
        })
        .await;
    stage.gateway.stop().await;
}

/// A body that stops coming holds nobody: the client may leave, and the limit on silence counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_body_ends_with_its_client_or_at_the_limit() {
    let sized = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc";
    let scripts = vec![
        ("/length", vec![Say(sized), Stall]),
        ("/chunked", vec![Say(CHUNKED), Say("3\r\nabc\r\n"), Stall]),
        ("/open", vec![Say("HTTP/1.1 200 OK\r\n\r\nabc"), Stall]),
    ];
    let paths: Vec<_> = scripts.iter().map(|(path, _)| *path).collect();
    let stage = Stage::set(
        scripts,
        Options::default().flag("--stream-idle-timeout", "1s"),
    )
    .await;
    for path in paths {
        for speaks in [Speaks::H1, Speaks::H2] {
            let mut asker = stage.dial(speaks).await;
            let heard = stage.ask(&mut asker, path).await;
            assert!(
                heard.end == End::Cut && heard.body == b"abc",
                "{path} by {speaks:?}: {heard:?}"
            );
            stage.done(path).await;
            stage.is_sane(&mut asker, speaks, path).await;
        }
    }
    stage.gateway.stop().await;

    // Without that limit in sight it is the client's end that ends it.
    let scripts = vec![("/length", vec![Say(sized), Stall])];
    let stage = Stage::set(scripts, Options::default()).await;
    for speaks in [Speaks::H1, Speaks::H2] {
        let mut asker = stage.dial(speaks).await;
        tokio::select! {
            heard = stage.ask(&mut asker, "/length") => panic!("an end: {heard:?}"),
            permit = stage.seen.acquire() => permit.unwrap().forget(),
        }
        // The stream is dropped with the question, HTTP/1's connection with its asker.
        drop(asker);
        stage.done("/length").await;
    }
    stage.gateway.stop().await;
}
