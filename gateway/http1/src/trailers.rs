//! Trailer fields: collected, checked, and freed of what may not come after the body (RFC 9110, section 6.5.1).

use httparse::{EMPTY_HEADER, Status, parse_headers};

use crate::write::{WriteError, check_field};

/// Bytes of a trailer section.
pub(crate) const TRAILERS_MAX: usize = 16 * 1024;
/// Fields of a trailer section.
pub(crate) const TRAILER_FIELDS_MAX: usize = 64;

/// The trailer fields of a body, in the order and case they came. Owned, since they are rare and small.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Trailers {
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Trailers {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field; one that may not be a trailer is silently left out.
    ///
    /// # Errors
    ///
    /// If the name is no token, or the value has a control byte.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> Result<(), WriteError> {
        check_field(name, value)?;
        if !is_forbidden_trailer(name) {
            self.fields.push((name.to_vec(), value.to_vec()));
        }
        Ok(())
    }

    /// Name and value of each.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.fields
            .iter()
            .map(|(n, v)| (n.as_slice(), v.as_slice()))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Reads a whole section, its blank line included. None if malformed.
    pub(crate) fn parse(section: &[u8]) -> Option<Self> {
        let mut slots = [EMPTY_HEADER; TRAILER_FIELDS_MAX];
        let Ok(Status::Complete((end, fields))) = parse_headers(section, &mut slots) else {
            return None;
        };
        if end != section.len() {
            return None;
        }
        let mut trailers = Self::default();
        for field in fields {
            trailers.push(field.name.as_bytes(), field.value).ok()?;
        }
        Some(trailers)
    }
}

/// Whether a field may not be sent as a trailer: framing, routing, request modifiers, authentication, and what says how
/// to read the body that has already passed.
pub fn is_forbidden_trailer(name: &[u8]) -> bool {
    const FORBIDDEN: [&[u8]; 46] = [
        b"accept-encoding",
        b"age",
        b"authorization",
        b"cache-control",
        b"client-cert",
        b"client-cert-chain",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"date",
        b"expect",
        b"expires",
        b"forwarded",
        b"host",
        b"http2-settings",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"keep-alive",
        b"location",
        b"max-forwards",
        b"pragma",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"range",
        b"retry-after",
        b"set-cookie",
        b"te",
        b"traceparent",
        b"tracestate",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"vary",
        b"via",
        b"warning",
        b"www-authenticate",
        b"x-http-method-override",
        b"x-real-ip",
        b"x-request-id",
    ];
    // A name with `_` is the same name for CGI-style upstreams.
    let same = |known: &[u8], name: &[u8]| {
        known.len() == name.len()
            && known
                .iter()
                .zip(name)
                .all(|(k, n)| n.eq_ignore_ascii_case(k) || (*k == b'-' && *n == b'_'))
    };
    const FORWARDED: &[u8] = b"x-forwarded-";
    let start = name.get(..FORWARDED.len()).unwrap_or_default();
    same(FORWARDED, start) || FORBIDDEN.iter().any(|known| same(known, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_frames_routes_or_authenticates_is_no_trailer() {
        for name in [
            "Content-Length",
            "transfer-encoding",
            "HOST",
            "Authorization",
            "X-Forwarded-For",
            "x_forwarded_for",
            "X-Forwarded-Anything",
            "Client-Cert",
            "Set-Cookie",
        ] {
            assert!(is_forbidden_trailer(name.as_bytes()), "{name}");
        }
        for name in [
            "grpc-status",
            "grpc-message",
            "etag",
            "server-timing",
            "x-md5",
        ] {
            assert!(!is_forbidden_trailer(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_section_is_read_and_cleaned() {
        let trailers = Trailers::parse(b"X-Sum:  1 \r\nContent-Length: 5\r\n\r\n").unwrap();
        assert_eq!(
            trailers.iter().collect::<Vec<_>>(),
            [(&b"X-Sum"[..], &b"1"[..])]
        );
        for bad in [
            &b"a b: c\r\n\r\n"[..],
            b"a : b\r\n\r\n",
            b" a: b\r\n\r\n",
            b"a: b\r\n c\r\n\r\n",
            b"a: \0\r\n\r\n",
            b"a: b\rc\r\n\r\n",
            b"no colon\r\n\r\n",
            b"a: b\r\n\r\nc",
        ] {
            assert_eq!(Trailers::parse(bad), None, "{bad:?}");
        }
    }
}
