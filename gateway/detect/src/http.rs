//! HTTP by its first line.
//!
//! A registered method and a blank are proof enough. Any other word might be a
//! method too, but also the command of a text protocol (`get key` of memcached,
//! `EHLO host` of SMTP): there the end of the line decides.

use crate::Verdict;

/// What a client with prior knowledge of HTTP/2 sends first (RFC 9113, section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Judges the beginning of what may be HTTP.
pub(crate) fn detect(bytes: &[u8]) -> Verdict {
    if bytes.starts_with(PREFACE) {
        return Verdict::Http2Preface;
    }
    if PREFACE.starts_with(bytes) {
        return Verdict::NeedMore;
    }
    // Servers should skip one empty line before the request line (RFC 9112, section 2.2).
    let line = match bytes {
        b"\r" | b"\r\n" => return Verdict::NeedMore,
        [b'\r', b'\n', rest @ ..] => rest,
        _ => bytes,
    };
    let end = line.iter().position(|&b| !is_token(b));
    let (method, rest) = line.split_at(end.unwrap_or(line.len()));
    match rest {
        _ if method.len() > METHOD_MAX => Verdict::Unknown,
        [] => Verdict::NeedMore,
        [b' ', ..] if METHODS.contains(&method) => Verdict::Http1,
        [b' ', rest @ ..] if !method.is_empty() => detect_version(rest),
        _ => Verdict::Unknown,
    }
}

/// Reads on to the end of the line, which must be an HTTP/1 version.
fn detect_version(rest: &[u8]) -> Verdict {
    let Some(end) = rest.iter().position(|&b| b < b' ' || b == 0x7f) else {
        return Verdict::NeedMore;
    };
    let (line, tail) = rest.split_at(end);
    match tail {
        [b'\r'] => Verdict::NeedMore,
        [b'\n', ..] | [b'\r', b'\n', ..] if is_versioned(line) => Verdict::Http1,
        _ => Verdict::Unknown,
    }
}

fn is_versioned(line: &[u8]) -> bool {
    let version = line.rsplit(|&b| b == b' ').next().unwrap_or_default();
    matches!(version, [b'H', b'T', b'T', b'P', b'/', b'1', b'.', digit] if digit.is_ascii_digit())
}

/// `tchar` of RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Longer words are no method: the longest registered one has 17 bytes.
const METHOD_MAX: usize = 32;

/// The IANA registry of methods, and `PURGE`, which caches know.
const METHODS: [&[u8]; 40] = [
    b"GET",
    b"POST",
    b"HEAD",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"CONNECT",
    b"TRACE",
    b"ACL",
    b"BASELINE-CONTROL",
    b"BIND",
    b"CHECKIN",
    b"CHECKOUT",
    b"COPY",
    b"LABEL",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MKREDIRECTREF",
    b"MKWORKSPACE",
    b"MOVE",
    b"ORDERPATCH",
    b"PROPFIND",
    b"PROPPATCH",
    b"PURGE",
    b"QUERY",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"UNBIND",
    b"UNCHECKOUT",
    b"UNLINK",
    b"UNLOCK",
    b"UPDATE",
    b"UPDATEREDIRECTREF",
    b"VERSION-CONTROL",
];
