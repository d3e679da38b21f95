//! A request as HTTP/2 brings it, made into what the rest of the gateway reads.
//!
//! Checked by [`edd_http1::translate`] for everything that would mean something
//! else in HTTP/1, whatever the upstream speaks. A WebSocket's extended CONNECT
//! (RFC 8441) becomes the GET that an HTTP/1 upstream expects.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edd_http1::Limits;
use edd_http1::translate::{self, Pseudo, TranslateError};
use h2::ext::Protocol;
use http::header::{self, HeaderMap};
use http::request::Parts;

use super::fields::{self, Fields};
use crate::http::head::{HostField, Version};
use crate::http::side::{Field, RequestBody, RequestView};

/// A head with what had to be made for it.
#[derive(Debug)]
pub(super) struct Asked {
    parts: Parts,
    /// `Sec-WebSocket-Key`, which HTTP/2 does without and HTTP/1 demands.
    key: Option<String>,
}

/// Why a request is not taken further.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Refused {
    /// It would be ambiguous elsewhere.
    #[error(transparent)]
    Head(#[from] TranslateError),
    /// An extended CONNECT for something that no upstream understands.
    #[error("only websocket may be the :protocol of a CONNECT")]
    Protocol,
}

impl Refused {
    /// The status that the client gets.
    pub(super) fn status(self) -> u16 {
        match self {
            Self::Head(error) => error.status(),
            Self::Protocol => 501,
        }
    }
}

impl Asked {
    pub(super) fn new(parts: Parts) -> Self {
        let protocol = parts.extensions.get::<Protocol>();
        let key = protocol.map(|_| websocket_key());
        Self { parts, key }
    }

    /// All fields, cookies still in crumbs.
    pub(super) fn fields(&self) -> Fields<'_> {
        let mut fields = fields::of(&self.parts.headers);
        if let Some(key) = &self.key {
            fields.push((b"sec-websocket-key", key.as_bytes()));
        }
        fields
    }

    /// The head. `ends`: nothing follows it.
    pub(super) fn view<'v>(
        &'v self,
        fields: &'v [Field<'v>],
        ends: bool,
    ) -> Result<RequestView<'v>, Refused> {
        let Parts {
            method,
            uri,
            headers,
            extensions,
            ..
        } = &self.parts;
        let protocol = extensions.get::<Protocol>().map(Protocol::as_str);
        let authority = uri.authority().map(http::uri::Authority::as_str);
        // Without an authority the h2 crate has checked the scheme and forgotten it.
        let scheme = uri.scheme_str().unwrap_or("https");
        let path = uri.path_and_query().map(|path| path.as_str().as_bytes());
        let pseudo = Pseudo {
            method: method.as_str().as_bytes(),
            scheme: Some(scheme.as_bytes()),
            authority: authority.map(str::as_bytes),
            path,
            protocol: protocol.map(str::as_bytes),
        };
        let head = translate::request(&pseudo, fields.iter().copied(), &Limits::default())?;
        if let Some(protocol) = head.protocol
            && !protocol.eq_ignore_ascii_case(WEBSOCKET)
        {
            return Err(Refused::Protocol);
        }
        let tunnel = head.protocol.is_some();
        let body = match head.content_length {
            _ if ends || tunnel => RequestBody::None,
            Some(length) => RequestBody::Length(length),
            None => RequestBody::Open,
        };
        Ok(RequestView {
            version: Version::H2,
            method: if tunnel { "GET" } else { head.method },
            authority,
            host: host_field(headers),
            path: head.path,
            query: head.query,
            fields,
            body,
            expects_continue: head.expect_continue,
            upgrade: tunnel.then_some(WEBSOCKET),
            takes_trailers: head.takes_trailers,
        })
    }
}

fn host_field(headers: &HeaderMap) -> HostField<'_> {
    let mut all = headers.get_all(header::HOST).iter();
    match (all.next(), all.next()) {
        (None, _) => HostField::None,
        (Some(one), None) => HostField::One(one.as_bytes()),
        (Some(_), Some(_)) => HostField::Many,
    }
}

/// Sixteen random bytes in base64 (RFC 6455, section 4.1).
fn websocket_key() -> String {
    STANDARD.encode(rand::random::<[u8; 16]>())
}

const WEBSOCKET: &str = "websocket";

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn asked(uri: &str, fields: &[(&'static str, &str)]) -> Asked {
        let mut request = Request::builder().uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        Asked::new(request.body(()).unwrap().into_parts().0)
    }

    fn status(asked: &Asked) -> Result<(), u16> {
        let fields = asked.fields();
        asked
            .view(&fields, true)
            .map(|_| ())
            .map_err(Refused::status)
    }

    #[test]
    fn what_would_be_ambiguous_elsewhere_is_refused() {
        let uri = "https://a.example/";
        for (uri, fields, expected) in [
            (uri, &[][..], Ok(())),
            (uri, &[("host", "A.example")], Ok(())),
            (uri, &[("host", "b.example")], Err(400)),
            (uri, &[("te", "trailers")], Ok(())),
            (uri, &[("te", "gzip")], Err(400)),
            (uri, &[("transfer-encoding", "chunked")], Err(400)),
            (uri, &[("connection", "x")], Err(400)),
            (
                uri,
                &[("content-length", "1"), ("content-length", "1")],
                Err(400),
            ),
            ("/only/a/path", &[("host", "a.example")], Ok(())),
            ("/only/a/path", &[], Err(400)),
            ("https://u@a.example/", &[], Err(400)),
            ("*", &[("host", "a.example")], Err(400)),
        ] {
            assert_eq!(status(&asked(uri, fields)), expected, "{uri} {fields:?}");
        }
    }

    #[test]
    fn a_websocket_is_asked_for_as_http1_does() {
        let connect = |protocol: &'static str| {
            let request = Request::connect("https://a.example/ws")
                .extension(Protocol::from_static(protocol))
                .header("sec-websocket-version", "13");
            Asked::new(request.body(()).unwrap().into_parts().0)
        };
        let asked = connect("websocket");
        let fields = asked.fields();
        let view = asked.view(&fields, false).unwrap();
        assert_eq!((view.method, view.upgrade), ("GET", Some("websocket")));
        assert_eq!(view.body, RequestBody::None);
        let key = fields
            .iter()
            .find(|(name, _)| *name == b"sec-websocket-key");
        assert_eq!(STANDARD.decode(key.unwrap().1).unwrap().len(), 16);
        assert_eq!(status(&connect("connect-udp")), Err(501));
        let plain = Request::connect("a.example:443").body(()).unwrap();
        assert_eq!(status(&Asked::new(plain.into_parts().0)), Err(400));
    }
}
