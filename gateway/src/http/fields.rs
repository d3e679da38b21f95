//! What kind of field a name is, decided once for each and without allocation.
//!
//! The same judgement as [`policy`](super::policy), over raw bytes in any case.

use edd_http1::tokens;
use smallvec::SmallVec;

use super::side::Field;

/// What a field is to the gateway.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Names fields that end here.
    Connection,
    /// Framing, written anew.
    ContentLength,
    /// Over HTTP/2 it comes in crumbs.
    Cookie,
    /// Passed on only where it is understood.
    Expect,
    /// Written anew.
    Host,
    /// Ends here.
    Hop,
    /// Passes.
    Other,
    /// Ours to say, both ways.
    RequestId,
    /// Says who the client is: a client's own is dropped, an upstream's passes.
    Reserved,
    /// Passes, unless it is no trace that could go on.
    Trace,
    /// Passes with its trace.
    TraceState,
}

impl Kind {
    /// The kind of a field.
    pub(crate) fn of(name: &[u8]) -> Self {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        // An underscore counts as a hyphen: CGI-style upstreams cannot tell them apart.
        let alike = |known: &[u8]| {
            name.iter()
                .zip(known)
                .all(|(a, b)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-'))
        };
        match name.len() {
            2 if is(b"te") => Self::Hop,
            4 if is(b"host") => Self::Host,
            6 if is(b"cookie") => Self::Cookie,
            6 if is(b"expect") => Self::Expect,
            7 if is(b"upgrade") => Self::Hop,
            9 if is(b"forwarded") || alike(b"x-real-ip") => Self::Reserved,
            10 if is(b"connection") => Self::Connection,
            10 if is(b"keep-alive") => Self::Hop,
            10 if is(b"tracestate") => Self::TraceState,
            11 if is(b"traceparent") => Self::Trace,
            11 if alike(b"client-cert") => Self::Reserved,
            12 if alike(b"x-request-id") => Self::RequestId,
            14 if is(b"content-length") => Self::ContentLength,
            14 if is(b"http2-settings") => Self::Hop,
            16 if is(b"proxy-connection") => Self::Hop,
            17 if is(b"transfer-encoding") => Self::Hop,
            17 if alike(b"client-cert-chain") => Self::Reserved,
            18 if is(b"proxy-authenticate") => Self::Hop,
            19 if is(b"proxy-authorization") => Self::Hop,
            12.. if alike(b"x-forwarded-") => Self::Reserved,
            _ => Self::Other,
        }
    }
}

/// The fields that `Connection` names, which end here too (RFC 9110, section 7.6.1).
#[derive(Debug, Default)]
pub(crate) struct Named<'v>(SmallVec<[&'v [u8]; 4]>);

impl<'v> Named<'v> {
    /// Reads all `Connection` fields.
    pub(crate) fn of(fields: &[Field<'v>]) -> Self {
        let connection = |(name, value): &Field<'v>| {
            (name.len() == 10 && Kind::of(name) == Kind::Connection).then_some(*value)
        };
        let options = fields.iter().filter_map(connection).flat_map(tokens);
        let usual: [&[u8]; 3] = [b"keep-alive", b"close", b"upgrade"];
        Self(
            options
                .filter(|o| !usual.iter().any(|u| o.eq_ignore_ascii_case(u)))
                .collect(),
        )
    }

    /// Whether the field is named.
    pub(crate) fn has(&self, name: &[u8]) -> bool {
        self.0.iter().any(|named| named.eq_ignore_ascii_case(name))
    }
}

/// The fields of an answer that pass to the client.
pub(crate) type Passing<'v> = SmallVec<[Field<'v>; 32]>;

/// Takes from an upstream's head what is not for the client. `Content-Length` stays if `sized`, once.
pub(crate) fn passing<'v>(fields: &[Field<'v>], sized: bool) -> Passing<'v> {
    let named = Named::of(fields);
    // Whoever read the head has seen to it that several say the same.
    let mut unsaid = sized;
    let passes = |(name, _): &&Field<'v>| match Kind::of(name) {
        Kind::Connection | Kind::Hop | Kind::RequestId => false,
        Kind::ContentLength => std::mem::take(&mut unsaid),
        _ => !named.has(name),
    };
    let mut passing = Passing::new();
    passing.extend(fields.iter().filter(passes).copied());
    passing
}

/// The values of all fields of that name.
pub(crate) fn all<'f, 'v>(
    fields: &'f [Field<'v>],
    name: &'f [u8],
) -> impl Iterator<Item = &'v [u8]> + use<'f, 'v> {
    let named = move |field: &&Field<'v>| field.0.eq_ignore_ascii_case(name);
    fields.iter().filter(named).map(|(_, value)| *value)
}

/// The value of the first field of that name.
pub(crate) fn first<'v>(fields: &[Field<'v>], name: &[u8]) -> Option<&'v [u8]> {
    let found = fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
    found.map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// S2, S15, S19: and what looks like one of these to a CGI-style upstream.
    #[test]
    fn what_belongs_to_one_hop_and_what_only_the_gateway_says_does_not_pass() {
        for (name, up, down) in [
            ("accept", true, true),
            ("authorization", true, true),
            ("client-cert", false, true),
            ("client_cert", false, true),
            ("client-cert-chain", false, true),
            ("client_cert_chain", false, true),
            ("client-certificate", true, true),
            ("connection", false, false),
            ("cookie", true, true),
            ("expect", false, true),
            ("forwarded", false, true),
            ("http2-settings", false, false),
            ("keep-alive", false, false),
            ("proxy-authenticate", false, false),
            ("proxy-authorization", false, false),
            ("proxy-connection", false, false),
            ("te", false, false),
            ("traceparent", true, true),
            ("tracestate", true, true),
            ("trailer", true, true),
            ("transfer-encoding", false, false),
            ("upgrade", false, false),
            ("x-forwarded", true, true),
            ("x-forwarded-for", false, true),
            ("x_forwarded-port", false, true),
            ("x-real", true, true),
            ("x-real-ip", false, true),
            ("x_real_ip", false, true),
            ("x-request-id", false, false),
        ] {
            let kind = Kind::of(name.as_bytes());
            let passes = matches!(
                kind,
                Kind::Cookie | Kind::Other | Kind::Trace | Kind::TraceState
            );
            assert_eq!(passes, up, "{name}");
            assert_eq!(kind, Kind::of(name.to_uppercase().as_bytes()));
            let field: Field<'_> = (name.as_bytes(), b"1");
            assert_eq!(!passing(&[field], true).is_empty(), down, "{name}");
        }
    }

    #[test]
    fn answers_keep_their_cookies_and_lose_what_is_between_two_hops() {
        let fields: Vec<Field<'_>> = vec![
            (b"Set-Cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"Connection", b"close, X-Hop"),
            (b"x-hop", b"1"),
            (b"Keep-Alive", b"timeout=5"),
            (b"X-Request-Id", b"theirs"),
            (b"Content-Length", b"5"),
            (b"content-length", b"5"),
        ];
        let left = passing(&fields, true);
        assert_eq!(left.as_slice(), [fields[0], fields[1], fields[6]]);
        assert_eq!(passing(&fields, false).len(), 2);
    }
}
