//! Faults before the answer's head is complete: the client gets a status of the gateway's own.

use std::time::{Duration, Instant};

use crate::support::ask::Speaks;
use crate::support::{Gateway, Options, Table};

use super::script::Act::{Bytes, Close, Endless, HalfClose, Reset, Say, Stall};
use super::script::{HOST, Scripts, Stage};

/// The upstream's time in these tests.
const PATIENCE: Duration = Duration::from_secs(1);

fn broken() -> Scripts {
    let fields = |count: usize| {
        let fields: String = (0..count).map(|n| format!("x-{n}: {n}\r\n")).collect();
        format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n").into_bytes()
    };
    let value = |len: usize| {
        let value = "v".repeat(len);
        format!("HTTP/1.1 200 OK\r\nx: {value}\r\ncontent-length: 0\r\n\r\n").into_bytes()
    };
    vec![
        ("/reset", vec![Reset]),
        ("/close", vec![Close]),
        ("/half-close", vec![HalfClose]),
        (
            "/reset-in-head",
            vec![Say("HTTP/1.1 200 OK\r\nconten"), Reset],
        ),
        (
            "/close-in-head",
            vec![Say("HTTP/1.1 200 OK\r\nconten"), Close],
        ),
        (
            "/close-before-the-blank-line",
            vec![Say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n"), Close],
        ),
        (
            "/close-after-103",
            vec![Say("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"), Close],
        ),
        (
            "/another-protocol",
            vec![Say("SSH-2.0-OpenSSH_9.2\r\n\r\n"), Close],
        ),
        (
            "/tls-alert",
            vec![Bytes(vec![21, 3, 3, 0, 2, 2, 70]), Close],
        ),
        (
            "/http2-settings",
            vec![
                Bytes(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x80".to_vec()),
                Close,
            ],
        ),
        ("/no-head", vec![Say("<html>hello</html>\r\n\r\n"), Close]),
        ("/zeros", vec![Bytes(vec![0; 4096]), Close]),
        (
            "/bad-status",
            vec![Say("HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n"), Close],
        ),
        (
            "/bad-version",
            vec![Say("HTTP/3.0 200 OK\r\ncontent-length: 0\r\n\r\n"), Close],
        ),
        (
            "/two-lengths",
            vec![Say(
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
            )],
        ),
        (
            "/odd-length",
            vec![Say("HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\nabc")],
        ),
        (
            "/split-field",
            vec![Say(
                "HTTP/1.1 200 OK\r\nx: a\r\n b\rc: d\r\ncontent-length: 0\r\n\r\n",
            )],
        ),
        ("/too-many-fields", vec![Bytes(fields(1000))]),
        ("/huge-field", vec![Bytes(value(1 << 20))]),
        (
            "/endless-status-line",
            vec![Endless(b"HTTP/1.1 200 aaaaaaaa")],
        ),
        (
            "/endless-field",
            vec![Say("HTTP/1.1 200 OK\r\nx: "), Endless(b"v")],
        ),
        (
            "/endless-fields",
            vec![Say("HTTP/1.1 200 OK\r\n"), Endless(b"x: y\r\n")],
        ),
        (
            "/unasked-101",
            vec![
                Say("HTTP/1.1 101 Switching Protocols\r\n\
                     connection: upgrade\r\nupgrade: websocket\r\n\r\n"),
                Stall,
            ],
        ),
    ]
}

/// R9: a broken upstream is told from a slow one, at once and in words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_answer_is_a_502_and_harms_nobody_after_it() {
    let scripts = broken();
    let paths: Vec<_> = scripts.iter().map(|(path, _)| *path).collect();
    let stage = Stage::set(scripts, Options::default()).await;
    stage
        .each(paths, |path, speaks, heard| {
            let expected = (heard.status, heard.end);
            assert!(
                heard.status == 502 && heard.text().starts_with("502"),
                "{path} by {speaks:?}: {expected:?} {heard:?}"
            );
        })
        .await;
    stage.gateway.stop().await;
}

/// A fresh connection that broke is not tried again: the upstream may have acted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_on_a_fresh_connection_is_sent_once() {
    let scripts = vec![("/reset", vec![Reset]), ("/close", vec![Close])];
    let stage = Stage::set(scripts, Options::default()).await;
    for path in ["/reset", "/close"] {
        let mut asker = stage.dial(Speaks::H1).await;
        assert_eq!(stage.ask(&mut asker, path).await.status, 502);
        assert_eq!(stage.asked(path), 1, "{path}");
    }
    stage.gateway.stop().await;
}

/// R9: no upstream holds a client for minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_before_the_heads_end_is_a_504_in_time() {
    let scripts = vec![
        ("/mute", vec![Stall]),
        ("/mute-in-head", vec![Say("HTTP/1.1 200 OK\r\nx: "), Stall]),
        (
            "/mute-after-103",
            vec![Say("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"), Stall],
        ),
    ];
    let paths: Vec<_> = scripts.iter().map(|(path, _)| *path).collect();
    let stage = Stage::set(scripts, Options::default().flag("--upstream-timeout", "1s")).await;
    for path in paths {
        for speaks in [Speaks::H1, Speaks::H2] {
            let mut asker = stage.dial(speaks).await;
            let begun = Instant::now();
            let heard = stage.ask(&mut asker, path).await;
            let took = begun.elapsed();
            assert_eq!(heard.status, 504, "{path} by {speaks:?}: {heard:?}");
            assert!(
                took >= PATIENCE && took < PATIENCE * 15,
                "{path} by {speaks:?}: {took:?}"
            );
            // The upstream is let go, not kept for the next one.
            stage.done(path).await;
            stage.is_sane(&mut asker, speaks, path).await;
        }
    }
    stage.gateway.stop().await;
}

/// 1xx answers without end are neither relayed for ever nor collected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn informational_answers_without_end_are_ended() {
    let scripts = vec![(
        "/endless",
        vec![Endless(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")],
    )];
    let stage = Stage::set(scripts, Options::default().flag("--upstream-timeout", "2s")).await;
    for speaks in [Speaks::H1, Speaks::H2] {
        let mut asker = stage.dial(speaks).await;
        let heard = stage.ask(&mut asker, "/endless").await;
        assert!(
            matches!(heard.status, 502 | 504),
            "{speaks:?}: {}",
            heard.status
        );
        stage.done("/endless").await;
        stage.is_sane(&mut asker, speaks, "endless").await;
    }
    stage.gateway.stop().await;
}

/// R9: connection refused and a dead address are told at once and in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_a_502() {
    let listener = std::net::TcpListener::bind("127.64.0.2:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, nobody);
    for flag in ["--http1.1", "--http2-prior-knowledge"] {
        let got = gateway.http(HOST, "/", &[flag]).await;
        assert_eq!(got.status, 502, "{flag}");
        assert!(got.field("x-request-id").is_some(), "{flag}");
    }
    gateway.stop().await;
}
