//! Applies the header policy to hyper's header maps.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::http::head::{HostField, Version};
use crate::http::policy::{self, Chain, Forwarding};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The `Host` field of a head.
pub(super) fn host_field(headers: &HeaderMap) -> HostField<'_> {
    let mut all = headers.get_all(header::HOST).iter();
    match (all.next(), all.next()) {
        (None, _) => HostField::None,
        (Some(one), None) => HostField::One(one.as_bytes()),
        (Some(_), Some(_)) => HostField::Many,
    }
}

/// What the head says about hops before this one; read only from trusted peers.
pub(super) fn chain(headers: &HeaderMap) -> Chain {
    let one = |name| text(headers.get(name)).map(str::to_owned);
    Chain {
        forwarded_for: joined(headers, &X_FORWARDED_FOR),
        proto: one(&X_FORWARDED_PROTO),
        host: one(&X_FORWARDED_HOST),
        forwarded: joined(headers, &header::FORWARDED),
    }
}

fn text(value: Option<&HeaderValue>) -> Option<&str> {
    value.and_then(|v| v.to_str().ok())
}

fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    let mut all = values.next()?.to_owned();
    for value in values {
        all.push_str(", ");
        all.push_str(value);
    }
    Some(all)
}

/// The protocol switch that the client asks for, if it may be offered to an upstream.
///
/// Only over HTTP/1.1, and only if `Connection` names it (RFC 9110, section 7.8).
pub(super) fn upgrade_asked(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let named = |value: &HeaderValue| {
        let names = |text| policy::tokens(text).any(|t| t.eq_ignore_ascii_case("upgrade"));
        value.to_str().is_ok_and(names)
    };
    let value = headers.get(header::UPGRADE)?;
    let one = headers.get_all(header::UPGRADE).iter().nth(1).is_none();
    let asked = version == Version::H11 && headers.get_all(header::CONNECTION).iter().any(named);
    let may_pass = value.to_str().is_ok_and(policy::upgrade_may_pass);
    (asked && one && may_pass).then(|| value.clone())
}

/// What a request's head becomes on its way to the upstream.
#[derive(Debug)]
pub(super) struct Rewrite<'r> {
    pub(super) version: Version,
    pub(super) authority: &'r str,
    pub(super) request_id: &'r str,
    pub(super) forwarding: Forwarding,
    pub(super) upgrade: Option<HeaderValue>,
}

impl Rewrite<'_> {
    /// Rewrites `headers` in place. Framing fields are the caller's.
    pub(super) fn apply(self, headers: &mut HeaderMap) -> Result<(), header::InvalidHeaderValue> {
        // HTTP/2 trailers are asked for by `TE: trailers`; an upstream may then send some.
        let trailers = self.version == Version::H2
            && headers
                .get(header::TE)
                .is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
        remove_named(headers);
        retain(headers, policy::request_field_passes);
        if self.version == Version::H2 {
            join_cookies(headers);
        }
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        headers.insert(header::HOST, HeaderValue::from_str(self.authority)?);
        let Forwarding {
            forwarded_for,
            proto,
            host,
            forwarded,
        } = self.forwarding;
        headers.insert(X_FORWARDED_FOR, HeaderValue::try_from(forwarded_for)?);
        headers.insert(X_FORWARDED_PROTO, HeaderValue::try_from(proto)?);
        headers.insert(X_FORWARDED_HOST, HeaderValue::try_from(host)?);
        if let Some(forwarded) = forwarded {
            headers.insert(header::FORWARDED, HeaderValue::try_from(forwarded)?);
        }
        headers.insert(X_REQUEST_ID, HeaderValue::from_str(self.request_id)?);
        if let Some(protocol) = self.upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, protocol);
        }
        Ok(())
    }
}

/// Takes from an upstream's answer what is not for the client, and signs it.
///
/// `switched` is a 101, whose `Upgrade` the client must see.
pub(super) fn rewrite_response(headers: &mut HeaderMap, request_id: &str, switched: bool) {
    let protocol = switched.then(|| headers.get(header::UPGRADE).cloned());
    remove_named(headers);
    retain(headers, policy::response_field_passes);
    if let Some(Some(protocol)) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(X_REQUEST_ID, id);
    }
}

/// Removes the fields that `Connection` names.
fn remove_named(headers: &mut HeaderMap) {
    if !headers.contains_key(header::CONNECTION) {
        return;
    }
    let mut named: SmallVec<[HeaderName; 4]> = SmallVec::new();
    for value in headers.get_all(header::CONNECTION) {
        let tokens = policy::tokens(value.to_str().unwrap_or_default());
        named.extend(tokens.filter_map(|t| HeaderName::from_bytes(t.as_bytes()).ok()));
    }
    for name in named {
        headers.remove(name);
    }
}

fn retain(headers: &mut HeaderMap, passes: fn(&str) -> bool) {
    let gone: SmallVec<[HeaderName; 8]> = headers
        .keys()
        .filter(|name| !passes(name.as_str()))
        .cloned()
        .collect();
    for name in gone {
        headers.remove(name);
    }
}

/// One `Cookie` of the crumbs that HTTP/2 may send (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn rewrite(version: Version, fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = map(fields);
        let rewrite = Rewrite {
            version,
            authority: "a.example",
            request_id: "id",
            forwarding: Chain::default().extend("192.0.2.1".parse().unwrap(), true, "a.example"),
            upgrade: upgrade_asked(version, &headers),
        };
        rewrite.apply(&mut headers).unwrap();
        headers
    }

    fn all<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h str> {
        headers
            .get_all(name)
            .iter()
            .map(|v| v.to_str().unwrap())
            .collect()
    }

    #[test]
    fn a_client_cannot_speak_for_itself_or_for_the_connection() {
        let seen = rewrite(
            Version::H11,
            &[
                ("host", "old.example"),
                ("x-forwarded-for", "6.6.6.6"),
                ("x-forwarded-port", "1"),
                ("forwarded", "for=6.6.6.6"),
                ("x-request-id", "mine"),
                ("connection", "keep-alive, X-Secret, host, x-forwarded-for"),
                ("x-secret", "1"),
                ("te", "trailers"),
                ("proxy-authorization", "Basic Zm9v"),
                ("expect", "100-continue"),
                ("upgrade", "websocket"),
                ("traceparent", "00-1-2-01"),
            ],
        );
        assert_eq!(all(&seen, "host"), ["a.example"]);
        assert_eq!(all(&seen, "x-forwarded-for"), ["192.0.2.1"]);
        assert_eq!(all(&seen, "x-forwarded-proto"), ["https"]);
        assert_eq!(all(&seen, "x-request-id"), ["id"]);
        assert_eq!(all(&seen, "traceparent"), ["00-1-2-01"]);
        for gone in [
            "x-forwarded-port",
            "forwarded",
            "connection",
            "x-secret",
            "te",
            "proxy-authorization",
            "expect",
            "upgrade",
        ] {
            assert!(all(&seen, gone).is_empty(), "{gone}");
        }
    }

    #[test]
    fn cookie_crumbs_are_joined_and_trailers_asked_for_only_from_http2() {
        let fields = [("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")];
        let h2 = rewrite(Version::H2, &fields);
        assert_eq!(all(&h2, "cookie"), ["a=1; b=2"]);
        assert_eq!(all(&h2, "te"), ["trailers"]);
        let h1 = rewrite(Version::H11, &fields);
        assert_eq!(all(&h1, "cookie"), ["a=1", "b=2"]);
        assert!(all(&h1, "te").is_empty());
    }

    #[test]
    fn an_upgrade_passes_only_where_connection_names_it() {
        let asked = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ];
        let seen = rewrite(Version::H11, &asked);
        assert_eq!(all(&seen, "connection"), ["upgrade"]);
        assert_eq!(all(&seen, "upgrade"), ["websocket"]);
        for (version, fields) in [
            (Version::H10, asked),
            (Version::H2, asked),
            (
                Version::H11,
                [("connection", "close"), ("upgrade", "websocket")],
            ),
            (
                Version::H11,
                [("connection", "upgrade"), ("upgrade", "h2c")],
            ),
            (Version::H11, [("connection", "upgrade"), ("upgrade", "")]),
        ] {
            assert_eq!(upgrade_asked(version, &map(&fields)), None, "{fields:?}");
        }
    }

    #[test]
    fn answers_keep_their_cookies_and_lose_what_is_between_two_hops() {
        let mut headers = map(&[
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("upgrade", "h2"),
            ("x-request-id", "theirs"),
        ]);
        rewrite_response(&mut headers, "ours", false);
        assert_eq!(all(&headers, "set-cookie"), ["a=1", "b=2"]);
        assert_eq!(all(&headers, "x-request-id"), ["ours"]);
        assert_eq!(headers.len(), 3);
    }
}
