//! HTTP/2 heads that may, and that must not, become HTTP/1.

use edd_http1::Limits;
use edd_http1::translate::{Pseudo, TranslateError, Translated, request, trailer_passes};

const GET: Pseudo<'static> = Pseudo {
    method: b"GET",
    scheme: Some(b"https"),
    authority: Some(b"a.example"),
    path: Some(b"/p?q"),
    protocol: None,
};

fn with<'a>(
    pseudo: &Pseudo<'a>,
    fields: &[(&'a str, &'a str)],
) -> Result<Translated<'a>, TranslateError> {
    let fields = fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
    request(pseudo, fields, &Limits::default())
}

#[test]
fn a_usual_request_passes() {
    let fields = [
        ("accept", "*/*"),
        ("cookie", "a=b"),
        ("cookie", "c=d"),
        ("te", "trailers"),
        ("content-length", "5"),
        ("expect", "100-continue"),
        ("host", "A.example"),
    ];
    let expected = Translated {
        method: "GET",
        authority: "a.example",
        path: "/p",
        query: Some("q"),
        protocol: None,
        content_length: Some(5),
        takes_trailers: true,
        expect_continue: true,
        cookies: 2,
    };
    assert_eq!(with(&GET, &fields), Ok(expected));
    let web_socket = Pseudo {
        method: b"CONNECT",
        protocol: Some(b"websocket"),
        ..GET
    };
    assert_eq!(with(&web_socket, &[]).unwrap().protocol, Some("websocket"));
    let by_host = Pseudo {
        authority: None,
        ..GET
    };
    assert_eq!(
        with(&by_host, &[("host", "b.example")]).unwrap().authority,
        "b.example"
    );
    let all = Pseudo {
        method: b"OPTIONS",
        path: Some(b"*"),
        ..GET
    };
    assert_eq!(with(&all, &[]).unwrap().path, "*");
}

#[test]
fn pseudo_fields_cannot_carry_a_second_line() {
    use TranslateError::*;
    for (pseudo, error) in [
        (
            Pseudo {
                method: b"GET / HTTP/1.1\r\nX: y",
                ..GET
            },
            Method,
        ),
        (Pseudo { method: b"", ..GET }, Method),
        (
            Pseudo {
                method: b"G T",
                ..GET
            },
            Method,
        ),
        (
            Pseudo {
                method: b"CONNECT",
                ..GET
            },
            Connect,
        ),
        (
            Pseudo {
                protocol: Some(b"websocket"),
                ..GET
            },
            Protocol,
        ),
        (
            Pseudo {
                method: b"CONNECT",
                protocol: Some(b"a\r\nb"),
                ..GET
            },
            Protocol,
        ),
        (
            Pseudo {
                scheme: None,
                ..GET
            },
            Scheme,
        ),
        (
            Pseudo {
                scheme: Some(b"https://evil.example/?"),
                ..GET
            },
            Scheme,
        ),
        (Pseudo { path: None, ..GET }, Path),
        (
            Pseudo {
                path: Some(b""),
                ..GET
            },
            Path,
        ),
        (
            Pseudo {
                path: Some(b"x"),
                ..GET
            },
            Path,
        ),
        (
            Pseudo {
                path: Some(b"*"),
                ..GET
            },
            Path,
        ),
        (
            Pseudo {
                path: Some(b"http://b.example/"),
                ..GET
            },
            Path,
        ),
        (
            Pseudo {
                path: Some(b"/ HTTP/1.1\r\nHost: b\r\n\r\n"),
                ..GET
            },
            Path,
        ),
        (
            Pseudo {
                path: Some(b"/a b"),
                ..GET
            },
            Path,
        ),
        (
            Pseudo {
                path: Some(b"/a\tb"),
                ..GET
            },
            Path,
        ),
        (
            Pseudo {
                path: Some(b"/a#b"),
                ..GET
            },
            Path,
        ),
        (
            Pseudo {
                path: Some(b"/\xff"),
                ..GET
            },
            Path,
        ),
        (
            Pseudo {
                authority: None,
                ..GET
            },
            MissingAuthority,
        ),
        (
            Pseudo {
                authority: Some(b""),
                ..GET
            },
            Authority,
        ),
        (
            Pseudo {
                authority: Some(b"u@a.example"),
                ..GET
            },
            Authority,
        ),
        (
            Pseudo {
                authority: Some(b"a.example\r\nX: y"),
                ..GET
            },
            Authority,
        ),
        (
            Pseudo {
                authority: Some(b"a.example/x"),
                ..GET
            },
            Authority,
        ),
        (
            Pseudo {
                authority: Some(b" a.example"),
                ..GET
            },
            Authority,
        ),
    ] {
        assert_eq!(with(&pseudo, &[]).err(), Some(error), "{pseudo:?}");
    }
    let path = vec![b'/'; 16 * 1024 + 1];
    let long = Pseudo {
        path: Some(&path),
        ..GET
    };
    assert_eq!(with(&long, &[]).err().map(|e| e.status()), Some(414));
}

#[test]
fn fields_cannot_change_the_framing() {
    use TranslateError::*;
    for (name, value, error) in [
        ("transfer-encoding", "chunked", ConnectionField),
        ("transfer_encoding", "chunked", ConnectionField),
        ("connection", "close", ConnectionField),
        ("keep-alive", "1", ConnectionField),
        ("proxy-connection", "x", ConnectionField),
        ("upgrade", "h2c", ConnectionField),
        ("http2-settings", "x", ConnectionField),
        ("te", "gzip", Te),
        ("te", "trailers, chunked", Te),
        ("content-length", "+5", Length),
        ("content-length", "5, 5", Length),
        ("content_length", "5", Length),
        ("Content-Length", "5", FieldName),
        ("X-Upper", "5", FieldName),
        ("", "5", FieldName),
        ("a b", "5", FieldName),
        ("a:b", "5", FieldName),
        (":status", "5", FieldName),
        ("a\r\nb", "5", FieldName),
        ("a", "b\r\nc: d", FieldValue),
        ("a", "b\nc", FieldValue),
        ("a", "b\rc", FieldValue),
        ("a", "b\0c", FieldValue),
        ("a", " b", FieldValue),
        ("a", "b\t", FieldValue),
        ("host", "b.example", Host),
        ("expect", "x", Expectation),
    ] {
        let found = with(&GET, &[(name, value)]).err();
        assert_eq!(
            found,
            Some(error),
            "{} {}",
            name.escape_debug(),
            value.escape_debug()
        );
    }
    let twice = [("content-length", "5"), ("content-length", "5")];
    assert_eq!(with(&GET, &twice).err(), Some(Length));
    let hosts = [("host", "a.example"), ("host", "a.example")];
    assert_eq!(with(&GET, &hosts).err(), Some(Host));
    let trace = Pseudo {
        method: b"TRACE",
        ..GET
    };
    assert_eq!(
        with(&trace, &[("content-length", "1")]).err(),
        Some(TraceBody)
    );
}

#[test]
fn many_and_large_fields_are_refused_but_cookies_count_once() {
    let many: Vec<_> = (0..129).map(|_| ("a", "b")).collect();
    assert_eq!(with(&GET, &many).err().map(|e| e.status()), Some(431));
    let cookies: Vec<_> = (0..300).map(|_| ("cookie", "a=b")).collect();
    assert_eq!(with(&GET, &cookies).map(|t| t.cookies), Ok(300));
    let large = "a".repeat(64 * 1024);
    assert_eq!(
        with(&GET, &[("a", &large)]).err().map(|e| e.status()),
        Some(431)
    );
}

#[test]
fn trailers_are_checked_like_fields() {
    assert!(trailer_passes(b"grpc-status", b"0"));
    for (name, value) in [
        ("content-length", "5"),
        ("Grpc-Status", "0"),
        (":path", "/"),
        ("a", "b\r\nc"),
        ("a", " b"),
    ] {
        assert!(!trailer_passes(name.as_bytes(), value.as_bytes()), "{name}");
    }
}
