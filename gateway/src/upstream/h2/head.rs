//! A request head written as HTTP/1.1, as the h2 crate wants it.
//!
//! It was written by the gateway a moment before, so it is well formed; what
//! belongs to one HTTP/1 connection goes.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Uri, Version};

/// Reads `head`; none if it is not one.
pub(super) fn request(head: &[u8], secure: bool) -> Option<Request<()>> {
    let mut lines = lines(head);
    let mut words = lines.next()?.split(|b| *b == b' ');
    let method = Method::from_bytes(words.next()?).ok()?;
    let target = words.next()?;
    let mut headers = HeaderMap::with_capacity(24);
    let mut authority = None;
    for line in lines {
        let colon = line.iter().position(|b| *b == b':')?;
        let (name, value) = line.split_at(colon);
        let value = value.get(1..)?.trim_ascii();
        let name = HeaderName::from_bytes(name).ok()?;
        if name == header::HOST {
            authority = Some(value);
        } else if passes(&name, value) {
            headers.append(name, HeaderValue::from_bytes(value).ok()?);
        }
    }
    let uri = Uri::builder()
        .scheme(if secure { "https" } else { "http" })
        .authority(authority?)
        .path_and_query(target)
        .build()
        .ok()?;
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Some(request)
}

/// The lines of a head, up to the empty one.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split(|b| *b == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .take_while(|line| !line.is_empty())
}

/// Whether HTTP/2 has such a field (RFC 9113, section 8.2.2).
fn passes(name: &HeaderName, value: &[u8]) -> bool {
    if *name == header::TE {
        return value.eq_ignore_ascii_case(b"trailers");
    }
    !matches!(
        *name,
        header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE
    ) && !matches!(
        name.as_str(),
        "keep-alive" | "proxy-connection" | "http2-settings"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_loses_what_belongs_to_http1() {
        let head = b"POST /a%2Fb?x=%20 HTTP/1.1\r\nHost: a.example:81\r\nTE: trailers\r\n\
            connection: te\r\ntransfer-encoding: chunked\r\nCookie: a=1\r\ncookie: b=2\r\nx-latin: caf\xe9\r\n\r\n";
        let request = request(head, true).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(
            request.uri().to_string(),
            "https://a.example:81/a%2Fb?x=%20"
        );
        let fields: Vec<_> = request
            .headers()
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_bytes()))
            .collect();
        let expected: [(&str, &[u8]); 4] = [
            ("te", b"trailers"),
            ("cookie", b"a=1"),
            ("cookie", b"b=2"),
            ("x-latin", b"caf\xe9"),
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn the_servers_own_questions_and_odd_heads() {
        let star = request(b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", false).unwrap();
        assert_eq!(star.uri().path(), "*");
        for bad in [
            &b""[..],
            b"GET\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost a\r\n\r\n",
        ] {
            assert!(request(bad, false).is_none());
        }
    }
}
