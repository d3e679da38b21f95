//! The four forms of a request target (RFC 9112, section 3.2).

use memchr::memchr;

use crate::class::is_authority;
use crate::request::RequestError;

/// A target taken apart; nothing is decoded or normalised.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Target<'b> {
    /// Of the absolute form.
    pub(crate) authority: Option<&'b str>,
    /// Begins with `/`, or is `*`.
    pub(crate) path: &'b str,
    /// Behind the first `?`.
    pub(crate) query: Option<&'b str>,
}

/// Takes a target apart. Its bytes are already known to be printable.
pub(crate) fn parse<'b>(method: &str, target: &'b str) -> Result<Target<'b>, RequestError> {
    // The authority form is CONNECT's alone, and this is no forward proxy.
    if method == "CONNECT" {
        return Err(RequestError::Connect);
    }
    if target.starts_with('/') {
        let (path, query) = split(target);
        return Ok(Target {
            authority: None,
            path,
            query,
        });
    }
    if target == "*" {
        if method != "OPTIONS" {
            return Err(RequestError::TargetForm);
        }
        return Ok(Target {
            authority: None,
            path: "*",
            query: None,
        });
    }
    let rest = strip_scheme(target).ok_or(RequestError::TargetForm)?;
    let end = rest
        .bytes()
        .position(|b| matches!(b, b'/' | b'?'))
        .unwrap_or(rest.len());
    let (authority, rest) = rest.split_at_checked(end).unwrap_or((rest, ""));
    if !is_authority(authority.as_bytes()) {
        return Err(RequestError::TargetAuthority);
    }
    let (path, query) = split(rest);
    let path = match (path, query) {
        // RFC 9112, section 3.2.4: the last hop writes it as an asterisk.
        ("", None) if method == "OPTIONS" => "*",
        ("", _) => "/",
        (path, _) => path,
    };
    Ok(Target {
        authority: Some(authority),
        path,
        query,
    })
}

fn split(text: &str) -> (&str, Option<&str>) {
    match memchr(b'?', text.as_bytes()) {
        Some(at) => (text.get(..at).unwrap_or_default(), text.get(at + 1..)),
        None => (text, None),
    }
}

fn strip_scheme(target: &str) -> Option<&str> {
    ["http://", "https://"].iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_taken_apart() {
        for (method, target, authority, path, query) in [
            ("GET", "/", None, "/", None),
            ("GET", "/a%2Fb//c?x=/?y", None, "/a%2Fb//c", Some("x=/?y")),
            ("GET", "/?", None, "/", Some("")),
            ("GET", "//evil.example/x", None, "//evil.example/x", None),
            ("OPTIONS", "*", None, "*", None),
            ("GET", "http://a.example", Some("a.example"), "/", None),
            (
                "GET",
                "HTTP://a.example:81/x?y",
                Some("a.example:81"),
                "/x",
                Some("y"),
            ),
            (
                "GET",
                "https://a.example?y",
                Some("a.example"),
                "/",
                Some("y"),
            ),
            (
                "GET",
                "http://[2001:db8::1]:80/",
                Some("[2001:db8::1]:80"),
                "/",
                None,
            ),
            ("OPTIONS", "http://a.example", Some("a.example"), "*", None),
            ("OPTIONS", "http://a.example/", Some("a.example"), "/", None),
        ] {
            let expected = Target {
                authority,
                path,
                query,
            };
            assert_eq!(parse(method, target), Ok(expected), "{method} {target}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        use RequestError::{Connect, TargetAuthority, TargetForm};
        for (method, target, error) in [
            ("GET", "*", TargetForm),
            ("OPTIONS", "*x", TargetForm),
            ("GET", "a.example:443", TargetForm),
            ("GET", "a.example", TargetForm),
            ("GET", "?x", TargetForm),
            ("GET", "ftp://a.example/", TargetForm),
            ("GET", "http:/a.example/", TargetForm),
            ("GET", "http:a", TargetForm),
            ("GET", "http://", TargetAuthority),
            ("GET", "http:///x", TargetAuthority),
            ("GET", "http://u@a.example/", TargetAuthority),
            ("GET", "http://u:p@a.example/", TargetAuthority),
            ("GET", "http://a.example\\@b/", TargetAuthority),
            ("GET", "http://a,b/", TargetAuthority),
            ("CONNECT", "a.example:443", Connect),
            ("CONNECT", "/", Connect),
        ] {
            assert_eq!(parse(method, target), Err(error), "{method} {target}");
        }
    }
}
