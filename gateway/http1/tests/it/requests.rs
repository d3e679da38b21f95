//! Request heads, one line per case.

use edd_http1::{
    FIELDS_MAX, Limits, Progress, RequestBody, RequestError, Slots, Version, parse_request,
};

/// The error of a head, none if it is accepted; panics while it is incomplete.
fn refused(bytes: &[u8]) -> Option<RequestError> {
    match parse_request(bytes, &mut Slots::new(), &Limits::default()) {
        Ok(Progress::Complete(_, end)) => {
            assert_eq!(end, bytes.len(), "{}", bytes.escape_ascii());
            None
        }
        Ok(Progress::Partial) => panic!("incomplete: {}", bytes.escape_ascii()),
        Err(error) => Some(error),
    }
}

fn status(bytes: &[u8]) -> u16 {
    refused(bytes).map_or(200, |error| error.status())
}

#[test]
fn a_usual_head_is_taken_apart() {
    let bytes = b"POST http://A.example:81/p/a?q=1?2 HTTP/1.1\r\nhOST: a.example\r\nX-Blanks:  \t a b \t\r\n\
        Empty:\r\nConnection: keep-alive, X-Hop , Upgrade\r\nUpgrade: websocket\r\nContent-Length: 12\r\n\
        Expect: 100-Continue\r\nX-Hop: 1\r\n\r\nrest";
    let mut slots = Slots::new();
    let Ok(Progress::Complete(head, end)) = parse_request(bytes, &mut slots, &Limits::default())
    else {
        panic!("refused");
    };
    assert_eq!(&bytes[end..], b"rest");
    assert_eq!(head.method, "POST");
    assert_eq!(head.target, "http://A.example:81/p/a?q=1?2");
    assert_eq!(head.version, Version::H11);
    assert_eq!(head.authority, Some("A.example:81"));
    assert_eq!(head.host, Some("a.example"));
    assert_eq!((head.path, head.query), ("/p/a", Some("q=1?2")));
    assert_eq!(head.body, RequestBody::Length(12));
    assert_eq!(head.upgrade, Some("websocket"));
    assert!(head.keep_alive && head.expect_continue);
    let fields: Vec<_> = head.fields.iter().collect();
    assert_eq!(fields.len(), 8);
    assert_eq!(fields[0], (&b"hOST"[..], &b"a.example"[..]));
    assert_eq!(fields[1], (&b"X-Blanks"[..], &b"a b"[..]));
    assert_eq!(fields[2], (&b"Empty"[..], &b""[..]));
}

#[test]
fn the_connection_goes_on_as_version_and_options_say() {
    for (version, options, keep_alive) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: Keep-Alive, CLOSE\r\n", false),
        ("1.1", "Connection: x\r\nConnection: close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let bytes = format!("GET / HTTP/{version}\r\nHost: a\r\n{options}\r\n");
        let mut slots = Slots::new();
        let head = match parse_request(bytes.as_bytes(), &mut slots, &Limits::default()) {
            Ok(Progress::Complete(head, _)) => head,
            other => panic!("{other:?}"),
        };
        assert_eq!(head.keep_alive, keep_alive, "{bytes}");
    }
}

#[test]
fn an_upgrade_needs_its_connection_option_and_the_version() {
    for (version, fields, upgrade) in [
        (
            "1.1",
            "Connection: upgrade\r\nUpgrade: websocket\r\n",
            Some("websocket"),
        ),
        (
            "1.1",
            "Connection: upgrade\r\nUpgrade: a/1, b\r\n",
            Some("a/1, b"),
        ),
        ("1.1", "Upgrade: websocket\r\n", None),
        ("1.1", "Connection: close\r\nUpgrade: websocket\r\n", None),
        ("1.1", "Connection: upgrade\r\n", None),
        (
            "1.1",
            "Connection: upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n",
            None,
        ),
        ("1.1", "Connection: upgrade\r\nUpgrade: a b\r\n", None),
        ("1.1", "Connection: upgrade\r\nUpgrade: a/\r\n", None),
        ("1.0", "Connection: upgrade\r\nUpgrade: websocket\r\n", None),
    ] {
        let bytes = format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
        let mut slots = Slots::new();
        match parse_request(bytes.as_bytes(), &mut slots, &Limits::default()) {
            Ok(Progress::Complete(head, _)) => assert_eq!(head.upgrade, upgrade, "{bytes}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_client_waits_for_100_only_before_a_body() {
    for (version, fields, expects) in [
        ("1.1", "Expect: 100-continue\r\nContent-Length: 1\r\n", true),
        (
            "1.1",
            "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n",
            true,
        ),
        (
            "1.1",
            "Expect: 100-continue\r\nContent-Length: 0\r\n",
            false,
        ),
        ("1.1", "Expect: 100-continue\r\n", false),
        (
            "1.0",
            "Expect: 100-continue\r\nContent-Length: 1\r\n",
            false,
        ),
    ] {
        let bytes = format!("PUT / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
        let mut slots = Slots::new();
        match parse_request(bytes.as_bytes(), &mut slots, &Limits::default()) {
            Ok(Progress::Complete(head, _)) => assert_eq!(head.expect_continue, expects, "{bytes}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn request_lines_have_one_form() {
    use RequestError::*;
    for (line, error) in [
        ("GET / HTTP/1.1\r\n", None),
        ("\r\nGET / HTTP/1.1\r\n", None),
        ("M!#$%&'*+-.^_`|~ / HTTP/1.1\r\n", None),
        ("GET /\u{e4} HTTP/1.1\r\n", None),
        ("\r\n\r\nGET / HTTP/1.1\r\n", Some(LeadingLines)),
        ("\nGET / HTTP/1.1\r\n", Some(LeadingLines)),
        ("\r\n\nGET / HTTP/1.1\r\n", Some(LeadingLines)),
        ("\rGET / HTTP/1.1\r\n", Some(LeadingLines)),
        (" GET / HTTP/1.1\r\n", Some(Method)),
        ("G\0T / HTTP/1.1\r\n", Some(Method)),
        ("GET\t/ HTTP/1.1\r\n", Some(Method)),
        ("GET: / HTTP/1.1\r\n", Some(Method)),
        ("G\u{e4}T / HTTP/1.1\r\n", Some(Method)),
        ("GET\r\n", Some(Method)),
        (
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1\r\n",
            Some(MethodTooLong),
        ),
        ("GET  / HTTP/1.1\r\n", Some(Target)),
        ("GET /\t HTTP/1.1\r\n", Some(Target)),
        ("GET /a\x0bb HTTP/1.1\r\n", Some(Target)),
        ("GET /a#b HTTP/1.1\r\n", Some(Target)),
        ("GET /a\x7f HTTP/1.1\r\n", Some(Target)),
        ("GET /\r\n", Some(Target)),
        ("GET /  HTTP/1.1\r\n", Some(VersionMalformed)),
        ("GET / HTTP/1.1 \r\n", Some(VersionMalformed)),
        ("GET / HTTP/1.1\n", Some(VersionMalformed)),
        ("GET / HTTP/1.1\r \n", Some(VersionMalformed)),
        ("GET / http/1.1\r\n", Some(VersionMalformed)),
        ("GET / HTTP/1,1\r\n", Some(VersionMalformed)),
        ("GET / HTTP/11\r\n", Some(VersionMalformed)),
        ("GET / HTTP/1.10\r\n", Some(VersionMalformed)),
        ("GET / /b HTTP/1.1\r\n", Some(VersionMalformed)),
        ("GET / HTTP/1.2\r\n", Some(Version)),
        ("GET / HTTP/0.9\r\n", Some(Version)),
        ("PRI * HTTP/2.0\r\n", Some(Version)),
        ("GET * HTTP/1.1\r\n", Some(TargetForm)),
        ("GET a HTTP/1.1\r\n", Some(TargetForm)),
        ("CONNECT a:443 HTTP/1.1\r\n", Some(Connect)),
    ] {
        let bytes = format!("{line}Host: a\r\n\r\n");
        assert_eq!(refused(bytes.as_bytes()), error, "{}", bytes.escape_debug());
    }
    assert_eq!(
        refused(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"),
        Some(Target)
    );
}

#[test]
fn lines_and_fields_have_one_form() {
    use RequestError::*;
    for (fields, error) in [
        (&b"a: b\r\n"[..], None),
        (b"a:b\r\n", None),
        (b"a:\r\n", None),
        (b"a: \r\n", None),
        (b"a: \xff\t\x80\r\n", None),
        (b"a: b\n", Some(BareLf)),
        (b"\n", Some(BareLf)),
        (b"a: b\rc\r\n", Some(FieldValue)),
        (b"a: b\r\r\n", Some(FieldValue)),
        (b"\rb: c\r\n", Some(FieldName)),
        (b"a: b\r\n c\r\n", Some(FieldName)),
        (b"a: b\r\n\tc\r\n", Some(FieldName)),
        (b" a: b\r\n", Some(FieldName)),
        (b"a : b\r\n", Some(FieldName)),
        (b"a\t: b\r\n", Some(FieldName)),
        (b": b\r\n", Some(FieldName)),
        (b"a\r\n", Some(FieldName)),
        (b"a b: c\r\n", Some(FieldName)),
        (b"a\0: c\r\n", Some(FieldName)),
        (b"\xe4: c\r\n", Some(FieldName)),
        (b"a(b): c\r\n", Some(FieldName)),
        (b"a: \0\r\n", Some(FieldValue)),
        (b"a: \x01\r\n", Some(FieldValue)),
        (b"a: \x0b\r\n", Some(FieldValue)),
        (b"a: \x7f\r\n", Some(FieldValue)),
        (b"Connection: a b\r\n", Some(Connection)),
        (b"Expect: 200-ok\r\n", Some(Expectation)),
        (b"Expect: y 100-continue\r\n", Some(ExpectMalformed)),
        (b"Expect: a=b, 100-continue\r\n", Some(Expectation)),
    ] {
        let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\n", fields, b"\r\n"].concat();
        assert_eq!(refused(&bytes), error, "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_request_has_one_host() {
    use RequestError::*;
    for (version, fields, error) in [
        ("1.1", "Host: a\r\n", None),
        ("1.1", "Host: [::1]:80\r\n", None),
        ("1.0", "", None),
        ("1.1", "", Some(MissingHost)),
        ("1.1", "Host: a\r\nhost: a\r\n", Some(HostRepeated)),
        ("1.0", "Host: a\r\nHost: b\r\n", Some(HostRepeated)),
        ("1.1", "Host:\r\n", Some(BadHost)),
        ("1.1", "Host: a, b\r\n", Some(BadHost)),
        ("1.1", "Host: a b\r\n", Some(BadHost)),
        ("1.1", "Host: u@a\r\n", Some(BadHost)),
        ("1.1", "Host: a/b\r\n", Some(BadHost)),
        ("1.1", "Host: a\u{e4}\r\n", Some(BadHost)),
    ] {
        let bytes = format!("GET / HTTP/{version}\r\n{fields}\r\n");
        assert_eq!(refused(bytes.as_bytes()), error, "{bytes:?}");
    }
}

#[test]
fn ambiguous_framing_has_its_status() {
    for (version, fields, expected) in [
        ("1.1", "Content-Length: 5", 200),
        ("1.1", "Transfer-Encoding: chunked", 200),
        ("1.1", "Content-Length: 5\r\nContent-Length: 5", 400),
        ("1.1", "Content-Length: 5\r\nContent-Length: 6", 400),
        ("1.1", "Content-Length: 5, 5", 400),
        ("1.1", "Content-Length: +5", 400),
        ("1.1", "Content-Length:", 400),
        ("1.1", "Content-Length: 99999999999999999999", 400),
        (
            "1.1",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            400,
        ),
        (
            "1.1",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            400,
        ),
        (
            "1.1",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            400,
        ),
        ("1.1", "Transfer-Encoding: chunked, chunked", 400),
        ("1.1", "Transfer-Encoding: identity", 400),
        ("1.1", "Transfer-Encoding: xchunked", 501),
        ("1.1", "Transfer-Encoding: gzip, chunked", 501),
        ("1.1", "Transfer_Encoding: chunked", 400),
        ("1.0", "Transfer-Encoding: chunked", 400),
    ] {
        let bytes = format!("POST / HTTP/{version}\r\nHost: a\r\n{fields}\r\n\r\n");
        assert_eq!(status(bytes.as_bytes()), expected, "{bytes:?}");
    }
    assert_eq!(
        status(b"TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"),
        400
    );
}

/// S14: neither one endless line nor endless many are kept.
#[test]
fn s14_a_head_that_is_too_large_is_refused_before_it_is_whole() {
    let limits = Limits::default();
    let outcome = |bytes: &[u8]| {
        parse_request(bytes, &mut Slots::new(), &limits)
            .map(|p| matches!(p, Progress::Partial) || panic!("complete"))
            .map_err(|e| e.status())
    };
    let head = b"GET / HTTP/1.1\r\nHost: a\r\n";
    let mut target = b"GET /".to_vec();
    target.resize(4 + limits.target_max, b'a');
    assert_eq!(outcome(&target), Ok(true));
    target.push(b'a');
    assert_eq!(outcome(&target), Err(414));

    let mut line = [&head[..], b"x: "].concat();
    line.resize(limits.head_max - 1, b'a');
    assert_eq!(outcome(&line), Ok(true));
    line.push(b'a');
    assert_eq!(outcome(&line), Err(431));

    let many = |n: usize| [&head[..], &b"x: y\r\n".repeat(n - 1)].concat();
    assert_eq!(outcome(&many(FIELDS_MAX)), Ok(true));
    assert_eq!(outcome(&many(FIELDS_MAX + 1)), Err(431));
    let whole = [&many(FIELDS_MAX)[..], b"\r\n"].concat();
    assert_eq!(status(&whole), 200);

    let mut exact = [&head[..], b"x: "].concat();
    exact.resize(limits.head_max - 4, b'a');
    exact.extend_from_slice(b"\r\n\r\n");
    assert_eq!((exact.len(), status(&exact)), (limits.head_max, 200));
    exact.insert(40, b'a');
    assert_eq!(outcome(&exact), Err(431));
}

#[test]
fn garbage_is_refused_at_its_first_byte() {
    let limits = Limits::default();
    for bytes in [&b"\x16\x03\x01"[..], b"\0", b"{", b"\n", b"GET \0"] {
        let error = parse_request(bytes, &mut Slots::new(), &limits).map(|_| ());
        assert_eq!(error.map_err(|e| e.status()), Err(400), "{bytes:?}");
    }
}
