//! The head of a request as its upstream gets it.
//!
//! Written in one pass into one buffer: the client's fields in their order and
//! case, without what ends here, then what the gateway says about the client.

use std::borrow::Cow;

use edd_http1::write::{self, WriteError};

use super::fields::{Kind, Named};
use super::head::Version;
use super::policy;
use super::side::{RequestBody, RequestView};
use super::trace::Trace;

/// What the head says instead of what the client said.
#[derive(Debug)]
pub(crate) struct Rewrite<'r> {
    /// `Host`.
    pub(crate) authority: &'r str,
    /// Path and query, where a prefix was stripped.
    pub(crate) target: Option<&'r str>,
    /// `X-Request-ID`.
    pub(crate) request_id: &'r str,
    /// What is said about the client with every request: whole lines.
    pub(crate) told: &'r [u8],
    /// What else is said about it, in the order it is written.
    pub(crate) identity: &'r [(&'r str, Cow<'r, str>)],
    /// What becomes of `traceparent` and `tracestate`.
    pub(crate) trace: &'r Trace,
}

/// The switch of protocols that may be offered to the upstream.
///
/// Not with a body: where it ends and the other protocol begins would be the upstream's guess.
pub(crate) fn upgrade_offered<'v>(view: &RequestView<'v>) -> Option<&'v str> {
    let bodiless = matches!(view.body, RequestBody::None | RequestBody::Length(0));
    view.upgrade
        .filter(|protocol| bodiless && policy::upgrade_may_pass(protocol))
}

impl Rewrite<'_> {
    /// Appends the whole head of the request to `out`, framing included.
    ///
    /// # Errors
    /// If something in it would not be what it seems to be; `out` is then of no use.
    pub(crate) fn write(
        &self,
        view: &RequestView<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        match self.target {
            Some(target) => write::request_line(out, view.method.as_bytes(), target.as_bytes())?,
            None => {
                let query = view.query.map(str::as_bytes);
                write::request_line_parts(
                    out,
                    view.method.as_bytes(),
                    view.path.as_bytes(),
                    query,
                )?;
            }
        }
        self.fields(view, out)?;
        out.extend_from_slice(self.told);
        for (name, value) in self.identity {
            write::field(out, name.as_bytes(), value.as_bytes())?;
        }
        write::field(out, b"x-request-id", self.request_id.as_bytes())?;
        if let Trace::New(trace) = self.trace {
            write::field(out, b"traceparent", trace.as_bytes())?;
        }
        let upgrade = upgrade_offered(view);
        match (upgrade.is_some(), view.takes_trailers) {
            (true, true) => write::field(out, b"connection", b"upgrade, te")?,
            (true, false) => write::field(out, b"connection", b"upgrade")?,
            (false, true) => write::field(out, b"connection", b"te")?,
            (false, false) => {}
        }
        if view.takes_trailers {
            write::field(out, b"te", b"trailers")?;
        }
        if let Some(protocol) = upgrade {
            write::field(out, b"upgrade", protocol.as_bytes())?;
        }
        if view.body == RequestBody::Open {
            write::chunked(out);
        }
        write::end_of_head(out);
        Ok(())
    }

    /// The client's fields that pass, those of its own place written anew where they stood.
    fn fields(&self, view: &RequestView<'_>, out: &mut Vec<u8>) -> Result<(), WriteError> {
        let named = Named::of(view.fields);
        let host = |(name, _): &(&[u8], &[u8])| Kind::of(name) == Kind::Host;
        if !view.fields.iter().any(host) {
            write::field(out, b"host", self.authority.as_bytes())?;
        }
        let mut sized = false;
        let mut crumbs = view.version == Version::H2;
        for &(name, value) in view.fields {
            match Kind::of(name) {
                Kind::Connection | Kind::Hop | Kind::RequestId | Kind::Reserved => {}
                Kind::ContentLength => {
                    if let (RequestBody::Length(length), false) = (view.body, sized) {
                        sized = true;
                        length_field(out, name, length)?;
                    }
                }
                Kind::Cookie if view.version == Version::H2 => {
                    if std::mem::take(&mut crumbs) {
                        write::field(out, name, &cookie(view))?;
                    }
                }
                Kind::Expect => {
                    if view.expects_continue {
                        write::field(out, name, value)?;
                    }
                }
                Kind::Host => write::field(out, name, self.authority.as_bytes())?,
                Kind::Trace if matches!(self.trace, Trace::New(_)) => {}
                Kind::TraceState if *self.trace != Trace::Continued(true) => {}
                Kind::Cookie | Kind::Other | Kind::Trace | Kind::TraceState => {
                    if !named.has(name) {
                        write::field(out, name, value)?;
                    }
                }
            }
        }
        if let (RequestBody::Length(length), false) = (view.body, sized) {
            length_field(out, b"content-length", length)?;
        }
        Ok(())
    }
}

/// A `Content-Length` with the name as it came.
pub(crate) fn length_field(out: &mut Vec<u8>, name: &[u8], length: u64) -> Result<(), WriteError> {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = length;
    loop {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + (rest % 10) as u8;
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    write::field(out, name, digits.get(at..).unwrap_or_default())
}

/// One `Cookie` of the crumbs that HTTP/2 may send (RFC 9113, section 8.2.3).
fn cookie<'v>(view: &RequestView<'v>) -> Cow<'v, [u8]> {
    let mut crumbs = view
        .fields
        .iter()
        .filter(|(name, _)| Kind::of(name) == Kind::Cookie);
    let Some(&(_, first)) = crumbs.next() else {
        return Cow::Borrowed(b"");
    };
    let mut whole = Cow::Borrowed(first);
    for (_, crumb) in crumbs {
        let whole = whole.to_mut();
        whole.extend_from_slice(b"; ");
        whole.extend_from_slice(crumb);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::HostField;
    use crate::http::side::Field;

    fn view<'v>(version: Version, fields: &'v [Field<'v>]) -> RequestView<'v> {
        RequestView {
            version,
            method: "POST",
            authority: None,
            host: HostField::One(b"old.example"),
            path: "/a%2Fb//c",
            query: Some("x=%20&y"),
            fields,
            body: RequestBody::None,
            expects_continue: false,
            upgrade: None,
            takes_trailers: false,
        }
    }

    fn written(view: &RequestView<'_>, target: Option<&str>) -> String {
        let rewrite = Rewrite {
            authority: "a.example",
            target,
            request_id: "id",
            told: b"x-forwarded-for: 192.0.2.1\r\n",
            identity: &[("x-forwarded-host", Cow::Borrowed("a.example"))],
            trace: &Trace::Continued(true),
        };
        let mut out = Vec::new();
        rewrite.write(view, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_client_cannot_speak_for_itself_or_for_the_connection() {
        let fields: Vec<Field<'_>> = vec![
            (b"HOST", b"old.example"),
            (b"X-Forwarded-For", b"6.6.6.6"),
            (b"x-forwarded-port", b"1"),
            (b"Forwarded", b"for=6.6.6.6"),
            (b"X-Request-Id", b"mine"),
            (
                b"Connection",
                b"keep-alive, X-Secret, host, x-forwarded-for",
            ),
            (b"x-secret", b"1"),
            (b"te", b"gzip"),
            (b"Proxy-Authorization", b"Basic Zm9v"),
            (b"Expect", b"100-continue"),
            (b"Upgrade", b"websocket"),
            (b"TraceParent", b"00-1-2-01"),
            (b"aCCept", b"*/*"),
            (b"Cookie", b"a=1"),
            (b"Cookie", b"b=2"),
        ];
        assert_eq!(
            written(&view(Version::H11, &fields), None),
            "POST /a%2Fb//c?x=%20&y HTTP/1.1\r\nHOST: a.example\r\nTraceParent: 00-1-2-01\r\naCCept: */*\r\n\
             Cookie: a=1\r\nCookie: b=2\r\nx-forwarded-for: 192.0.2.1\r\n\
             x-forwarded-host: a.example\r\nx-request-id: id\r\n\r\n"
        );
    }

    #[test]
    fn framing_is_written_from_what_was_understood() {
        let fields: Vec<Field<'_>> = vec![(b"Content-Length", b"0005"), (b"Host", b"h")];
        let mut sized = view(Version::H11, &fields);
        sized.body = RequestBody::Length(5);
        let head = written(&sized, Some("/stripped?q"));
        assert!(
            head.starts_with(
                "POST /stripped?q HTTP/1.1\r\nContent-Length: 5\r\nHost: a.example\r\n"
            ),
            "{head}"
        );
        let fields: Vec<Field<'_>> = vec![(b"Transfer-Encoding", b"chunked")];
        let mut open = view(Version::H10, &fields);
        open.body = RequestBody::Open;
        open.takes_trailers = true;
        let head = written(&open, None);
        assert!(head.contains(" HTTP/1.1\r\nhost: a.example\r\n"), "{head}");
        assert!(
            head.ends_with("connection: te\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n"),
            "{head}"
        );
    }

    #[test]
    fn cookie_crumbs_of_http2_are_joined() {
        let fields: Vec<Field<'_>> = vec![(b"cookie", b"a=1"), (b"x", b"1"), (b"cookie", b"b=2")];
        let head = written(&view(Version::H2, &fields), None);
        assert!(
            head.contains("\r\ncookie: a=1; b=2\r\nx: 1\r\nx-forwarded"),
            "{head}"
        );
    }

    #[test]
    fn an_upgrade_passes_but_never_to_h2c() {
        let fields: Vec<Field<'_>> = vec![(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")];
        let mut asked = view(Version::H11, &fields);
        asked.upgrade = Some("websocket");
        assert!(
            written(&asked, None).ends_with("connection: upgrade\r\nupgrade: websocket\r\n\r\n")
        );
        asked.body = RequestBody::Length(1);
        assert!(!written(&asked, None).contains("pgrade"));
        asked.body = RequestBody::None;
        asked.upgrade = Some("h2c");
        assert!(!written(&asked, None).contains("pgrade"));
    }
}
