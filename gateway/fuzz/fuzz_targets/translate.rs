#![no_main]
//! An HTTP/2 head that is let through, written as HTTP/1, is one request, and the same one.

use arbitrary::Arbitrary;
use edd_http1::translate::{Pseudo, request, trailer_passes};
use edd_http1::{BodyReader, Limits, Progress, Slots, Trailers, What, parse_request, write};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Head<'a> {
    method: Method<'a>,
    https: bool,
    authority: Option<Text<'a>>,
    path: Option<Text<'a>>,
    protocol: Option<&'a [u8]>,
    fields: Vec<(Name<'a>, &'a [u8])>,
    body: &'a [u8],
    trailers: Vec<(Name<'a>, &'a [u8])>,
}

#[derive(Arbitrary, Debug)]
enum Method<'a> {
    Get,
    Options,
    Connect,
    Raw(&'a [u8]),
}

/// Bytes that are often, but not always, near something that passes.
#[derive(Arbitrary, Debug)]
enum Text<'a> {
    Host,
    Path,
    Behind(&'a [u8]),
    Raw(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
enum Name<'a> {
    Known(u8),
    Raw(&'a [u8]),
}

const NAMES: [&[u8]; 16] = [
    b"accept",
    b"connection",
    b"content-length",
    b"content_length",
    b"cookie",
    b"expect",
    b"host",
    b"keep-alive",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"transfer_encoding",
    b"upgrade",
    b"x-forwarded-for",
    b":path",
    b"Host",
];

impl<'a> Name<'a> {
    fn bytes(&self) -> &'a [u8] {
        match self {
            Name::Known(n) => NAMES[usize::from(*n) % NAMES.len()],
            Name::Raw(bytes) => bytes,
        }
    }
}

impl Text<'_> {
    fn bytes(&self, begins: &[u8]) -> Vec<u8> {
        match self {
            Text::Host => b"a.example:81".to_vec(),
            Text::Path => b"/p?q".to_vec(),
            Text::Behind(bytes) => [begins, bytes].concat(),
            Text::Raw(bytes) => bytes.to_vec(),
        }
    }
}

fuzz_target!(|head: Head<'_>| {
    let method = match head.method {
        Method::Get => &b"GET"[..],
        Method::Options => b"OPTIONS",
        Method::Connect => b"CONNECT",
        Method::Raw(bytes) => bytes,
    };
    let authority = head.authority.as_ref().map(|a| a.bytes(b"a"));
    let path = head.path.as_ref().map(|p| p.bytes(b"/"));
    let pseudo = Pseudo {
        method,
        scheme: Some(if head.https { b"https" } else { b"http" }),
        authority: authority.as_deref(),
        path: path.as_deref(),
        protocol: head.protocol,
    };
    let fields = || head.fields.iter().map(|(n, v)| (n.bytes(), *v));
    let Ok(translated) = request(&pseudo, fields(), &Limits::default()) else {
        return;
    };
    // An extended CONNECT becomes a GET with an upgrade, which the engine writes; the rest stays as it is.
    let method = translated.protocol.map_or(translated.method, |_| "GET");

    let mut out = Vec::new();
    write::request_line_parts(
        &mut out,
        method.as_bytes(),
        translated.path.as_bytes(),
        translated.query.map(str::as_bytes),
    )
    .expect("a line that passes can be written");
    write::field(&mut out, b"host", translated.authority.as_bytes()).expect("a host");
    let passes = |name: &[u8]| {
        !matches!(
            name,
            b"host" | b"te" | b"expect" | b"content-length" | b"cookie"
        )
    };
    let mut expected = vec![(b"host".to_vec(), translated.authority.as_bytes().to_vec())];
    for (name, value) in fields().filter(|(name, _)| passes(name)) {
        write::field(&mut out, name, value).expect("a field that passes can be written");
        expected.push((name.to_vec(), value.to_vec()));
    }
    let cookies: Vec<_> = fields()
        .filter(|(n, _)| *n == b"cookie")
        .map(|(_, v)| v)
        .collect();
    assert_eq!(cookies.len(), translated.cookies);
    if !cookies.is_empty() {
        let joined = cookies.join(&b"; "[..]);
        write::field(&mut out, b"cookie", &joined).expect("cookies can be joined");
    }
    let mut trailers = Trailers::new();
    for (name, value) in &head.trailers {
        if trailer_passes(name.bytes(), value) {
            trailers
                .push(name.bytes(), value)
                .expect("a trailer that passes");
        }
    }
    let is_trace = method == "TRACE";
    if !is_trace {
        write::chunked(&mut out);
    }
    write::end_of_head(&mut out);
    if !is_trace {
        write::chunk(&mut out, head.body);
        write::last_chunk(&mut out, &trailers).expect("trailers");
    }
    let end = out.len();
    out.extend_from_slice(b"GET /next HTTP/1.1\r\n");

    let limits = Limits {
        // The joined cookies and what we added may make it a little longer.
        head_max: usize::MAX,
        ..Limits::default()
    };
    let mut slots = Slots::new();
    let read = match parse_request(&out, &mut slots, &limits) {
        Ok(Progress::Complete(read, at)) => (read, at),
        // At the very limit of fields, ours are the ones too many.
        Err(edd_http1::RequestError::TooManyFields) if expected.len() > 120 => return,
        // HTTP/2 has longer methods.
        Err(edd_http1::RequestError::MethodTooLong) => return,
        other => panic!("{other:?} of {}", out.escape_ascii()),
    };
    let (read, mut at) = read;
    assert_eq!(read.method, method);
    assert_eq!(read.path, translated.path);
    assert_eq!(read.query, translated.query);
    assert_eq!(read.authority, None);
    assert_eq!(read.host, Some(translated.authority));
    assert!(read.keep_alive && read.upgrade.is_none() && !read.expect_continue);
    let found: Vec<_> = read
        .fields
        .iter()
        .filter(|(name, _)| *name != b"cookie" && *name != b"transfer-encoding")
        .map(|(n, v)| (n.to_vec(), v.to_vec()))
        .collect();
    assert_eq!(found, expected);

    let mut reader = BodyReader::from(read.body);
    let mut body = Vec::new();
    let mut read_trailers = Trailers::new();
    loop {
        let step = reader.read(&out[at..]).expect("a body");
        at += step.consumed;
        match step.what {
            What::Data(data) => body.extend_from_slice(data),
            What::Trailers(found) => read_trailers = found,
            What::End => break,
            What::NeedMore => panic!("a whole body"),
        }
    }
    assert_eq!(at, end, "where the next request begins");
    if !is_trace {
        assert_eq!(body, head.body);
        assert_eq!(read_trailers, trailers);
    }
});
