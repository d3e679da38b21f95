//! Upstreams of HTTP/2 that answer with the very frames they are told, right or wrong.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::frames::*;
use crate::support::curl::Curled;
use crate::support::{Gateway, Options, Origin};

const VERSIONS: [&str; 2] = ["--http1.1", "--http2"];

/// A frame of the answer; its stream is put in later.
type Part = (u8, u8, Vec<u8>);

fn says(flags: u8, fields: &[(&str, &str)]) -> Part {
    (HEADERS, END_HEADERS | flags, block(fields))
}

fn data(flags: u8, bytes: &[u8]) -> Part {
    (DATA, flags, bytes.to_vec())
}

fn reset(code: u32) -> Part {
    (RST_STREAM, 0, code.to_be_bytes().to_vec())
}

/// Answers each head with these frames, in one write.
async fn upstream(answer: Vec<Part>) -> Origin {
    Origin::raw("127.0.0.1", move |_, mut stream: TcpStream| {
        let answer = answer.clone();
        async move {
            let mut preface = [0; 24];
            if stream.read_exact(&mut preface).await.is_err() {
                return;
            }
            let mut out = frame(SETTINGS, 0, 0, &[]);
            loop {
                if stream.write_all(&out).await.is_err() {
                    return;
                }
                out.clear();
                let mut head = [0; 9];
                if stream.read_exact(&mut head).await.is_err() {
                    return;
                }
                let [a, b, c, kind, flags, d, e, f, g] = head;
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                if stream.read_exact(&mut vec![0; length]).await.is_err() {
                    return;
                }
                match kind {
                    SETTINGS if flags & 1 == 0 => out = frame(SETTINGS, 1, 0, &[]),
                    HEADERS => {
                        let id = u32::from_be_bytes([d, e, f, g]);
                        for (kind, flags, payload) in &answer {
                            out.extend(frame(*kind, *flags, id, payload));
                        }
                    }
                    _ => {}
                }
            }
        }
    })
    .await
}

/// What curl gets of such an answer, by both versions.
async fn asked(answer: Vec<Part>, path: &str, more: &[&str]) -> Vec<Curled> {
    let origin = upstream(answer).await;
    let routes = format!(
        "routes:\n- {{host: a.test, target: 'h2c://{}', timeout: 2s}}\n",
        origin.address
    );
    let gateway = Gateway::start(Options::routes(routes).flag("--workers", "1")).await;
    let mut all = Vec::new();
    for version in VERSIONS {
        let more = [more, &[version]].concat();
        all.push(gateway.https("a.test", path, &more).await);
    }
    gateway.stop().await;
    all
}

/// RFC 9113, section 8.1: a server that needs no more of the request says so after its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_whole_is_delivered_though_a_reset_follows_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(50 << 20).unwrap();
    let upload = file.path().display().to_string();
    let large = ["--upload-file", upload.as_str(), "--header", "expect:"];
    let small = ["--data", "x"];
    let head = |flags| says(flags, &[(":status", "413"), ("x-a", "b")]);
    for (what, answer, text) in [
        (
            "body",
            vec![head(0), data(END_STREAM, b"big"), reset(NO_ERROR)],
            "big",
        ),
        ("no body", vec![head(END_STREAM), reset(NO_ERROR)], ""),
        (
            "trailers",
            vec![
                head(0),
                data(0, b"big"),
                says(END_STREAM, &[("x-sum", "3")]),
                reset(NO_ERROR),
            ],
            "big",
        ),
    ] {
        for more in [&large[..], &small, &[]] {
            for got in asked(answer.clone(), "/x", more).await {
                assert_eq!(
                    (got.exit, got.text().as_str()),
                    (0, text),
                    "{what} {more:?}: {got:?}"
                );
                // curl writes trailers as if they were another head.
                if what != "trailers" {
                    assert_eq!((got.status, got.field("x-a")), (413, Some("b")));
                }
            }
        }
    }
}

/// Before its end an answer is cut, whatever the reset says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_not_whole_is_cut_by_any_reset() {
    for answer in [
        vec![
            says(0, &[(":status", "200")]),
            data(0, b"abc"),
            reset(NO_ERROR),
        ],
        vec![says(0, &[(":status", "200")]), reset(NO_ERROR)],
    ] {
        for got in asked(answer, "/x", &[]).await {
            let cut = matches!(got.exit, 18 | 52 | 56 | 92);
            assert!(cut || got.status == 502, "{got:?}");
        }
    }
    for got in asked(vec![reset(NO_ERROR)], "/x", &[]).await {
        assert_eq!((got.exit, got.status), (0, 502), "{got:?}");
    }
}

/// RFC 9110, section 8.6: one field, or none of the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_that_is_said_twice_is_said_once_and_two_lengths_are_a_502() {
    let twice = |a, b| {
        let fields = [
            (":status", "200"),
            ("content-length", a),
            ("content-length", b),
        ];
        vec![says(0, &fields), data(END_STREAM, b"ok")]
    };
    for got in asked(twice("2", "2"), "/x", &[]).await {
        assert_eq!((got.exit, got.status, got.text().as_str()), (0, 200, "ok"));
        assert_eq!(got.all("content-length"), ["2"], "{}", got.version);
    }
    for got in asked(twice("2", "2"), "/x", &["--head"]).await {
        assert_eq!(got.all("content-length"), ["2"], "{}", got.version);
    }
    for got in asked(twice("2", "3"), "/x", &[]).await {
        assert_eq!(got.status, 502, "{}", got.version);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answers_pass_within_bounds_and_never_a_101() {
    let answer = |interim: &str, count| {
        let mut all = vec![says(0, &[(":status", interim), ("link", "</a>")]); count];
        all.push(says(0, &[(":status", "200")]));
        all.push(data(END_STREAM, b"ok"));
        all
    };
    for (interim, count, status) in [
        ("103", 0, 200),
        ("103", 3, 200),
        ("103", 32, 200),
        ("103", 33, 502),
        ("101", 1, 502),
    ] {
        for got in asked(answer(interim, count), "/x", &[]).await {
            assert_eq!(
                got.status, status,
                "{count} times {interim} {}",
                got.version
            );
        }
    }
}
