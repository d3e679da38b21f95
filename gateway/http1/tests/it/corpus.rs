//! The corpus of malformed and ambiguous messages against the parser alone. The same files run through the whole
//! gateway in `gateway/tests/it/corpus.rs`.

use edd_http1::translate::{self, Pseudo};
use edd_http1::{
    BodyReader, Limits, Progress, Question, Slots, What, parse_request, parse_response,
};

#[path = "../../../tests/corpus/reader.rs"]
#[allow(dead_code, reason = "what only the whole gateway needs")]
mod reader;

use reader::{Case, Forwarded, Framing, Request};

/// What a client's bytes come to: statuses, whether the connection ends, and what is understood.
fn serve(bytes: &[u8]) -> (Vec<u16>, bool, Vec<Request>) {
    let limits = Limits::default();
    let (mut statuses, mut understood) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < bytes.len() {
        let mut slots = Slots::new();
        let (head, end) = match parse_request(&bytes[at..], &mut slots, &limits) {
            Ok(Progress::Complete(head, end)) => (head, end),
            Ok(Progress::Partial) => panic!("incomplete at {at}"),
            Err(error) => {
                statuses.push(error.status());
                return (statuses, true, understood);
            }
        };
        at += end;
        let mut body = BodyReader::from(head.body);
        let mut request = Request {
            method: head.method.into(),
            target: match head.query {
                Some(query) => format!("{}?{query}", head.path).into(),
                None => head.path.into(),
            },
            fields: vec![(
                b"Host".to_vec(),
                head.authority.or(head.host).unwrap_or_default().into(),
            )],
            framing: match head.body {
                edd_http1::RequestBody::Chunked => Framing::Chunked,
                edd_http1::RequestBody::Length(_) => Framing::Length,
                edd_http1::RequestBody::None => Framing::None,
            },
            body: Vec::new(),
            trailers: Vec::new(),
        };
        loop {
            match body.read(&bytes[at..]) {
                Err(_) => {
                    statuses.push(400);
                    return (statuses, true, understood);
                }
                Ok(step) => {
                    at += step.consumed;
                    match step.what {
                        What::Data(data) => request.body.extend_from_slice(data),
                        What::Trailers(trailers) => {
                            request.trailers = trailers
                                .iter()
                                .map(|(n, v)| (n.to_vec(), v.to_vec()))
                                .collect();
                        }
                        What::End => break,
                        What::NeedMore => panic!("a body that is incomplete"),
                    }
                }
            }
        }
        understood.push(request);
        statuses.push(200);
        if !head.keep_alive {
            return (statuses, true, understood);
        }
    }
    (statuses, false, understood)
}

/// Only what the parser knows: the destination, not the fields that pass.
fn shorten(mut request: Request) -> Request {
    request
        .fields
        .retain(|(name, _)| name.eq_ignore_ascii_case(b"host"));
    for (name, _) in &mut request.fields {
        *name = b"Host".to_vec();
    }
    request
}

#[test]
fn requests_come_to_what_the_corpus_says() {
    let cases = reader::read(include_str!("../../../tests/corpus/requests.txt"));
    let mut refused = 0;
    for case in &cases {
        if case.get("by") == Some("gateway") {
            refused += 1;
            continue;
        }
        let outcome = std::panic::catch_unwind(|| serve(&case.input()));
        let (statuses, closed, understood) =
            outcome.unwrap_or_else(|_| panic!("{}: see above", case.name));
        let mut out: Vec<String> = statuses.iter().map(u16::to_string).collect();
        out.push(if closed { "closed" } else { "kept" }.into());
        assert_eq!(out.join(" "), case.need("out"), "{}", case.name);
        let expected = match case.forwarded() {
            Forwarded::Cut | Forwarded::Nothing => Vec::new(),
            Forwarded::Requests(requests) => requests.into_iter().map(shorten).collect(),
        };
        assert_eq!(understood, expected, "{}", case.name);
        refused += usize::from(statuses.iter().any(|s| *s >= 400));
    }
    assert!(refused >= 200, "{refused} refusals of {}", cases.len());
}

/// What an upstream's bytes come to, in the words of the corpus.
fn answer(case: &Case) -> (String, bool) {
    let bytes = case.input();
    let question = match case.get("ask") {
        Some("HEAD") => Question::Head,
        _ => Question::Other,
    };
    let closes = case.get("end") == Some("close");
    let mut out = Vec::new();
    let mut at = 0;
    loop {
        let mut slots = Slots::new();
        let head = parse_response(&bytes[at..], &mut slots, &Limits::default(), question);
        let Ok(Progress::Complete(head, end)) = head else {
            assert!(head.is_err() || closes, "an open end");
            out.push("502".to_owned());
            return (out.join(", "), false);
        };
        at += end;
        if head.is_interim() {
            out.push(head.status.to_string());
            continue;
        }
        let mut body = BodyReader::from(head.body);
        let mut text = String::new();
        loop {
            match body.read(&bytes[at..]) {
                Err(_) => {
                    out.push(format!("{} cut", head.status));
                    return (out.join(", "), false);
                }
                Ok(step) => {
                    at += step.consumed;
                    match step.what {
                        What::Data(data) => text.push_str(&String::from_utf8_lossy(data)),
                        What::Trailers(_) => {}
                        What::End => break,
                        What::NeedMore => {
                            assert!(closes, "an open body");
                            if body.ended_by_close().is_err() {
                                out.push(format!("{} cut", head.status));
                                return (out.join(", "), false);
                            }
                            break;
                        }
                    }
                }
            }
        }
        out.push(
            format!("{} whole {text}", head.status)
                .trim_end()
                .to_owned(),
        );
        let reuse = head.keep_alive && at == bytes.len() && !closes;
        return (out.join(", "), reuse);
    }
}

#[test]
fn responses_come_to_what_the_corpus_says() {
    let cases = reader::read(include_str!("../../../tests/corpus/responses.txt"));
    let mut refused = 0;
    for case in &cases {
        let outcome = std::panic::catch_unwind(|| answer(case));
        let (out, reuse) = outcome.unwrap_or_else(|_| panic!("{}: see above", case.name));
        assert_eq!(out, case.need("out"), "{}", case.name);
        let expected = case.need("reuse") == "yes";
        assert_eq!(reuse, expected, "{}: reuse", case.name);
        refused += usize::from(out.contains("502") || out.contains("cut"));
    }
    assert!(refused >= 60, "{refused} refusals of {}", cases.len());
}

#[test]
fn h2_requests_come_to_what_the_corpus_says() {
    let cases = reader::read(include_str!("../../../tests/corpus/h2.txt"));
    for case in &cases {
        if case.get("layer") == Some("h2") {
            continue;
        }
        let fields = case.fields();
        let pseudo = |name: &[u8]| {
            fields
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, v)| v.as_slice())
        };
        let head = Pseudo {
            method: pseudo(b":method").unwrap_or_default(),
            scheme: pseudo(b":scheme"),
            authority: pseudo(b":authority"),
            path: pseudo(b":path"),
            protocol: pseudo(b":protocol"),
        };
        let known = [":method", ":scheme", ":authority", ":path", ":protocol"];
        let plain = fields
            .iter()
            .filter(|(n, _)| !known.iter().any(|k| k.as_bytes() == n))
            .map(|(n, v)| (n.as_slice(), v.as_slice()));
        let outcome = translate::request(&head, plain, &Limits::default());
        match (&outcome, case.forwarded()) {
            (Err(_), Forwarded::Nothing) => assert_eq!(case.need("out"), "refused"),
            (Ok(request), Forwarded::Requests(expected)) => {
                let target = match request.query {
                    Some(query) => format!("{}?{query}", request.path),
                    None => request.path.to_owned(),
                };
                assert_eq!(
                    expected[0].method,
                    request.method.as_bytes(),
                    "{}",
                    case.name
                );
                assert_eq!(expected[0].target, target.as_bytes(), "{}", case.name);
                let host = &expected[0].fields[0].1;
                assert!(host.eq_ignore_ascii_case(request.authority.as_bytes()));
            }
            (outcome, expected) => panic!("{}: {outcome:?}, not {expected:?}", case.name),
        }
    }
}

#[test]
fn the_corpus_is_large_enough() {
    for (text, least) in [
        (include_str!("../../../tests/corpus/requests.txt"), 200),
        (include_str!("../../../tests/corpus/responses.txt"), 60),
        (include_str!("../../../tests/corpus/h2.txt"), 60),
    ] {
        assert!(reader::read(text).len() >= least);
    }
}
