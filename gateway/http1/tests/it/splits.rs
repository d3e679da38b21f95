//! Any split of the input gives the same outcome: an attacker chooses the segments.

use edd_http1::{
    BodyReader, Limits, Progress, Question, Slots, Trailers, What, parse_request, parse_response,
};
use proptest::prelude::*;

/// Everything that a connection's bytes were understood as.
#[derive(Debug, Default, PartialEq)]
struct Understood {
    heads: Vec<String>,
    bodies: Vec<Vec<u8>>,
    trailers: Vec<Trailers>,
    end: Option<String>,
    /// Bytes that were taken as whole messages.
    consumed: usize,
}

/// Feeds `bytes` in pieces that end at `cuts`, as a connection would, and collects what they mean.
fn understand(bytes: &[u8], cuts: &[usize], requests: bool) -> Understood {
    let limits = Limits {
        target_max: 24,
        head_max: 160,
        fields_max: 4,
    };
    let mut ends: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut seen = Understood::default();
    let mut at = 0;
    let mut body: Option<BodyReader> = None;
    for end in ends {
        loop {
            let input = &bytes[at..end];
            match &mut body {
                None => {
                    let mut slots = Slots::new();
                    let head = if requests {
                        match parse_request(input, &mut slots, &limits) {
                            Ok(Progress::Partial) => break,
                            Ok(Progress::Complete(head, n)) => {
                                (format!("{head:?}"), n, BodyReader::from(head.body))
                            }
                            Err(error) => {
                                seen.end = Some(error.to_string());
                                return seen;
                            }
                        }
                    } else {
                        match parse_response(input, &mut slots, &limits, Question::Other) {
                            Ok(Progress::Partial) => break,
                            Ok(Progress::Complete(head, n)) => {
                                (format!("{head:?}"), n, BodyReader::from(head.body))
                            }
                            Err(error) => {
                                seen.end = Some(error.to_string());
                                return seen;
                            }
                        }
                    };
                    seen.heads.push(head.0);
                    seen.bodies.push(Vec::new());
                    at += head.1;
                    body = Some(head.2);
                }
                Some(reader) => match reader.read(input) {
                    Err(error) => {
                        seen.end = Some(error.to_string());
                        return seen;
                    }
                    Ok(step) => {
                        at += step.consumed;
                        assert!(at <= end, "consumed more than there was");
                        match step.what {
                            What::Data(data) => {
                                assert!(!data.is_empty());
                                seen.bodies.last_mut().unwrap().extend_from_slice(data);
                            }
                            What::Trailers(trailers) => seen.trailers.push(trailers),
                            What::NeedMore => {
                                assert_eq!(at, end, "left bytes behind");
                                break;
                            }
                            What::End => {
                                body = None;
                                seen.consumed = at;
                            }
                        }
                    }
                },
            }
        }
    }
    seen
}

/// Pieces that messages, good and bad, are made of.
fn fragments(requests: bool) -> impl Strategy<Value = Vec<u8>> {
    let start: &[&str] = if requests {
        &[
            "GET / HTTP/1.1\r\nHost: a\r\n",
            "POST /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\n",
            "POST /\u{e4} HTTP/1.1\r\nhost: a\r\n",
            "GET / HTTP/1.0\r\n",
            "GET /",
            " HTTP/1.",
        ]
    } else {
        &[
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 204\r\n",
            "HTTP/1.1 100 \r\n",
            "HTTP/1.0 200 \u{e4}\r\n",
            "HTTP/1.",
            "200 ",
        ]
    };
    let rest: &[&str] = &[
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Connection: close\r\n",
        "Expect: 100-continue\r\n",
        "Host: b\r\n",
        "a: b\r\n",
        "a: b\n",
        "\r\n",
        "\r",
        "\n",
        "5\r\nhello\r\n",
        "3;a=\"b\"\r\nabc\r\n",
        "0\r\n\r\n",
        "0\r\nX-T: 1\r\n\r\n",
        "hello",
        " ",
        "\t",
        "\0",
        ":",
        ";",
    ];
    let all: Vec<Vec<u8>> = start
        .iter()
        .chain(start)
        .chain(rest)
        .map(|s| s.as_bytes().to_vec())
        .chain([vec![0xff]])
        .collect();
    prop::collection::vec(prop::sample::select(all), 1..14).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn requests_mean_the_same_however_they_are_split(
        bytes in fragments(true),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let whole = understand(&bytes, &[], true);
        prop_assert_eq!(&understand(&bytes, &cuts, true), &whole);
        let each: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(&understand(&bytes, &each, true), &whole);
    }

    #[test]
    fn responses_mean_the_same_however_they_are_split(
        bytes in fragments(false),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let whole = understand(&bytes, &[], false);
        prop_assert_eq!(&understand(&bytes, &cuts, false), &whole);
        let each: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(&understand(&bytes, &each, false), &whole);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let each: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(understand(&bytes, &each, true), understand(&bytes, &[], true));
        prop_assert_eq!(understand(&bytes, &each, false), understand(&bytes, &[], false));
    }
}

#[test]
fn the_test_sees_pipelined_messages() {
    let bytes = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
        POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n";
    let seen = understand(bytes, &[], true);
    assert_eq!(seen.heads.len(), 2);
    assert_eq!(seen.bodies, [b"hello".to_vec(), b"abc".to_vec()]);
    assert_eq!(seen.trailers.len(), 1);
    assert_eq!((seen.consumed, seen.end), (bytes.len(), None));
}
