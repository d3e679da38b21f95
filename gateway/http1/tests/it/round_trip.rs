//! What is written is read back as the same, and nothing else.

use edd_http1::{
    BodyReader, Limits, Progress, Question, RequestBody, ResponseBody, Slots, Trailers, Version,
    What, is_forbidden_trailer, parse_request, parse_response, write,
};
use proptest::prelude::*;

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z!#$%&'*+.^_`|~-][A-Za-z0-9-]{0,12}".prop_filter("not a field with a meaning", |n| {
        let plain = n.replace('_', "-").to_ascii_lowercase();
        ![
            "host",
            "connection",
            "content-length",
            "transfer-encoding",
            "expect",
            "upgrade",
        ]
        .contains(&plain.as_str())
    })
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(
        any::<u8>().prop_filter("text", |b| *b == b'\t' || (*b >= b' ' && *b != 0x7f)),
        0..20,
    )
    .prop_map(|bytes| {
        let blank = |b: &u8| *b == b' ' || *b == b'\t';
        let start = bytes.iter().position(|b| !blank(b)).unwrap_or(bytes.len());
        let end = bytes
            .iter()
            .rposition(|b| !blank(b))
            .map_or(start, |e| e + 1);
        bytes[start..end].to_vec()
    })
}

proptest! {
    #[test]
    fn a_written_request_is_read_back(
        method in "[A-Z]{1,10}".prop_filter("no tunnel", |m| m != "CONNECT" && m != "TRACE"),
        path in "/[a-zA-Z0-9%/._~;=-]{0,20}",
        query in prop::option::of("[a-z=&?/%]{0,10}"),
        fields in prop::collection::vec((name(), value()), 0..10),
        body in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..4),
        trailers in prop::collection::vec((name(), value()), 0..4),
        in_chunks in any::<bool>(),
        tail in prop::collection::vec(any::<u8>(), 0..10),
    ) {
        let mut out = Vec::new();
        write::request_line_parts(&mut out, method.as_bytes(), path.as_bytes(), query.as_deref().map(str::as_bytes)).unwrap();
        write::field(&mut out, b"Host", b"a.example").unwrap();
        for (name, value) in &fields {
            write::field(&mut out, name.as_bytes(), value).unwrap();
        }
        let mut sent = Trailers::new();
        let whole = body.concat();
        if in_chunks {
            write::chunked(&mut out);
            write::end_of_head(&mut out);
            for piece in &body {
                write::chunk(&mut out, piece);
            }
            for (name, value) in &trailers {
                sent.push(name.as_bytes(), value).unwrap();
            }
            write::last_chunk(&mut out, &sent).unwrap();
        } else {
            write::content_length(&mut out, whole.len() as u64);
            write::end_of_head(&mut out);
            out.extend_from_slice(&whole);
        }
        let end = out.len();
        out.extend_from_slice(&tail);

        let mut slots = Slots::new();
        let Ok(Progress::Complete(head, at)) = parse_request(&out, &mut slots, &Limits::default()) else {
            return Err(TestCaseError::fail("refused"));
        };
        prop_assert_eq!(head.method, method);
        prop_assert_eq!(head.path, path);
        prop_assert_eq!(head.query.map(str::to_owned), query);
        let read: Vec<_> = head.fields.iter().skip(1).take(fields.len())
            .map(|(n, v)| (String::from_utf8(n.to_vec()).unwrap(), v.to_vec())).collect();
        prop_assert_eq!(head.fields.len(), fields.len() + 2);
        prop_assert_eq!(read, fields);
        let expected = if in_chunks { RequestBody::Chunked } else { RequestBody::Length(whole.len() as u64) };
        prop_assert_eq!(head.body, expected);
        let (read, read_trailers, used) = drain(BodyReader::from(head.body), &out[at..]);
        prop_assert_eq!(read, whole);
        prop_assert_eq!(at + used, end);
        prop_assert_eq!(read_trailers.unwrap_or_default(), sent);
    }

    #[test]
    fn a_written_response_is_read_back(
        status in 200_u16..=999,
        reason in "[ -~]{0,20}",
        fields in prop::collection::vec((name(), value()), 0..10),
        length in any::<u32>(),
    ) {
        let mut out = Vec::new();
        write::status_line(&mut out, Version::H11, status, reason.as_bytes()).unwrap();
        for (name, value) in &fields {
            write::field(&mut out, name.as_bytes(), value).unwrap();
        }
        write::content_length(&mut out, u64::from(length));
        write::end_of_head(&mut out);
        let mut slots = Slots::new();
        let Ok(Progress::Complete(head, at)) = parse_response(&out, &mut slots, &Limits::default(), Question::Other) else {
            return Err(TestCaseError::fail("refused"));
        };
        prop_assert_eq!(at, out.len());
        prop_assert_eq!((head.status, head.reason), (status, reason.as_bytes()));
        prop_assert_eq!(head.fields.len(), fields.len() + 1);
        let expected = if matches!(status, 204 | 304) { ResponseBody::None } else { ResponseBody::Length(u64::from(length)) };
        prop_assert_eq!(head.body, expected);
        prop_assert_eq!(head.content_length, Some(u64::from(length)));
    }

    #[test]
    fn whatever_is_written_stays_one_line(name in any::<Vec<u8>>(), value in any::<Vec<u8>>()) {
        let mut out = Vec::new();
        if write::field(&mut out, &name, &value).is_ok() {
            prop_assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
            prop_assert_eq!(out.iter().filter(|b| **b == b'\r').count(), 1);
            prop_assert!(out.ends_with(b"\r\n"));
        } else {
            prop_assert!(out.is_empty());
        }
        let mut trailers = Trailers::new();
        if trailers.push(&name, &value).is_ok() {
            prop_assert_eq!(trailers.is_empty(), is_forbidden_trailer(&name));
        }
    }
}

fn drain(mut reader: BodyReader, input: &[u8]) -> (Vec<u8>, Option<Trailers>, usize) {
    let (mut data, mut trailers, mut at) = (Vec::new(), None, 0);
    loop {
        let step = reader.read(&input[at..]).unwrap();
        at += step.consumed;
        match step.what {
            What::Data(piece) => data.extend_from_slice(piece),
            What::Trailers(found) => trailers = Some(found),
            What::End => return (data, trailers, at),
            What::NeedMore => panic!("the body is whole"),
        }
    }
}
