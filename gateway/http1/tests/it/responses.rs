//! Response heads, one line per case.

use edd_http1::{Limits, Progress, Question, ResponseBody, ResponseError, Slots, parse_response};

type Outcome = Result<(u16, ResponseBody, bool), ResponseError>;

fn read(bytes: &[u8], question: Question) -> Outcome {
    match parse_response(bytes, &mut Slots::new(), &Limits::default(), question) {
        Ok(Progress::Complete(head, end)) => {
            assert_eq!(end, bytes.len(), "{}", bytes.escape_ascii());
            Ok((head.status, head.body, head.keep_alive))
        }
        Ok(Progress::Partial) => panic!("incomplete: {}", bytes.escape_ascii()),
        Err(error) => Err(error),
    }
}

#[test]
fn bodies_are_delimited_as_rfc_9112_says() {
    use Question::{Head, Other};
    use ResponseBody::{Chunked, Length, None, UntilClose};
    for (question, text, body, keep_alive) in [
        (Other, "1.1 200 OK\r\nContent-Length: 5", Length(5), true),
        (
            Other,
            "1.1 200 OK\r\nTransfer-Encoding: Chunked",
            Chunked,
            true,
        ),
        (Other, "1.1 200 OK", UntilClose, false),
        (Other, "1.1 200", UntilClose, false),
        (Other, "1.1 200 \r\nContent-Length: 0", Length(0), true),
        (Other, "1.0 200 OK\r\nContent-Length: 5", Length(5), false),
        (
            Other,
            "1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive",
            Length(5),
            true,
        ),
        (
            Other,
            "1.1 200 OK\r\nContent-Length: 5\r\nConnection: close",
            Length(5),
            false,
        ),
        (Other, "1.1 204 x", None, true),
        (Other, "1.1 204 x\r\nContent-Length: 0", None, true),
        (Other, "1.1 204 x\r\nContent-Length: 5", None, false),
        (
            Other,
            "1.1 204 x\r\nTransfer-Encoding: chunked",
            None,
            false,
        ),
        (Other, "1.1 304 x\r\nContent-Length: 5", None, true),
        (Other, "1.1 304 x\r\nTransfer-Encoding: chunked", None, true),
        (Other, "1.1 205 x\r\nContent-Length: 5", Length(5), true),
        (Other, "1.1 100 Continue", None, true),
        (Other, "1.1 103 Early Hints\r\nLink: </a>", None, true),
        (Other, "1.1 101 Switching\r\nContent-Length: 0", None, true),
        (Other, "1.1 999 x\r\nContent-Length: 5", Length(5), true),
        (Head, "1.1 200 OK\r\nContent-Length: 5", None, true),
        (Head, "1.1 200 OK", None, true),
        (Head, "1.1 200 OK\r\nTransfer-Encoding: chunked", None, true),
    ] {
        let bytes = format!("HTTP/{text}\r\n\r\n");
        let status = text[4..7].parse().unwrap();
        assert_eq!(
            read(bytes.as_bytes(), question),
            Ok((status, body, keep_alive)),
            "{question:?} {text}"
        );
    }
}

#[test]
fn malformed_heads_are_refused() {
    use ResponseError::*;
    for (text, error) in [
        (&b"HTTP/1.2 200 OK\r\n"[..], Version),
        (b"HTTP/2 200 OK\r\n", Version),
        (b"http/1.1 200 OK\r\n", Version),
        (b"HTTP/1.1  200 OK\r\n", Status),
        (b"HTTP/1.1 20 OK\r\n", Status),
        (b"HTTP/1.1 2000 OK\r\n", Status),
        (b"HTTP/1.1 099 OK\r\n", Status),
        (b"HTTP/1.1 +20 OK\r\n", Status),
        (b"HTTP/1.1\t200 OK\r\n", Status),
        (b"HTTP/1.1 200\tOK\r\n", Status),
        (b"HTTP/1.1 200\n", Status),
        (b"HTTP/1.1 200 OK\n", BareLf),
        (b"HTTP/1.1 200 O\rK\r\n", Reason),
        (b"HTTP/1.1 200 O\0K\r\n", Reason),
        (b"\r\nHTTP/1.1 200 OK\r\n", Version),
        (b"ICY 200 OK\r\n", Version),
        (b"HTTP/1.1 200 OK\r\na: b\n", BareLf),
        (b"HTTP/1.1 200 OK\r\na : b\r\n", FieldName),
        (b"HTTP/1.1 200 OK\r\na: b\r\n c\r\n", FieldName),
        (b"HTTP/1.1 200 OK\r\n: b\r\n", FieldName),
        (b"HTTP/1.1 200 OK\r\na: \0\r\n", FieldValue),
        (b"HTTP/1.1 200 OK\r\na: b\rSet-Cookie: c\r\n", FieldValue),
        (b"HTTP/1.1 200 OK\r\nConnection: a b\r\n", Connection),
        (
            b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n",
            InterimBody,
        ),
        (
            b"HTTP/1.1 103 x\r\nTransfer-Encoding: chunked\r\n",
            InterimBody,
        ),
    ] {
        let bytes = [text, b"\r\n"].concat();
        assert_eq!(
            read(&bytes, Question::Other),
            Err(error),
            "{}",
            bytes.escape_ascii()
        );
    }
    for fields in [
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 6",
        "Content-Length: -1",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: identity",
    ] {
        for question in [Question::Other, Question::Head] {
            let bytes = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
            let outcome = read(bytes.as_bytes(), question);
            assert!(matches!(outcome, Err(Framing(_))), "{fields}: {outcome:?}");
        }
    }
    let old = read(
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        Question::Other,
    );
    assert!(matches!(old, Err(Framing(_))));
}

#[test]
fn what_is_too_large_is_refused_before_it_is_whole() {
    let limits = Limits::default();
    let error = |bytes: &[u8]| {
        parse_response(bytes, &mut Slots::new(), &limits, Question::Other)
            .map(|_| ())
            .err()
    };
    let mut line = b"HTTP/1.1 200 ".to_vec();
    line.resize(limits.head_max, b'a');
    assert_eq!(error(&line), Some(ResponseError::HeadTooLong));
    assert_eq!(error(&line[..limits.head_max - 1]), None);
    let many = [&b"HTTP/1.1 200 OK\r\n"[..], &b"a: b\r\n".repeat(129)].concat();
    assert_eq!(error(&many), Some(ResponseError::TooManyFields));
}
