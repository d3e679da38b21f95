//! A request that came over HTTP/2, checked for everything that would mean something else in HTTP/1
//! (RFC 9113, sections 8.2 and 8.3; the attacks known as h2 desync).
//!
//! Pure: pseudo fields and an iterator of fields in, facts out. What passes can be
//! written by [`crate::write`] and is read back by [`crate::parse_request`] as the same request.

use crate::class::{is_authority, is_target_byte, is_text_byte, is_token};
use crate::framing::content_length;
use crate::{FIELDS_MAX, Limits, is_forbidden_trailer};

/// The pseudo fields of a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pseudo<'a> {
    /// `:method`.
    pub method: &'a [u8],
    /// `:scheme`.
    pub scheme: Option<&'a [u8]>,
    /// `:authority`.
    pub authority: Option<&'a [u8]>,
    /// `:path`, with its query.
    pub path: Option<&'a [u8]>,
    /// `:protocol` of an extended CONNECT (RFC 8441).
    pub protocol: Option<&'a [u8]>,
}

/// A request that may be written as HTTP/1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Translated<'a> {
    /// The method; `CONNECT` only with a protocol.
    pub method: &'a str,
    /// `:authority`, or the `Host` field where there is none.
    pub authority: &'a str,
    /// Path, raw; `*` for the whole server.
    pub path: &'a str,
    /// Query without its question mark, raw.
    pub query: Option<&'a str>,
    /// The protocol of an extended CONNECT.
    pub protocol: Option<&'a str>,
    /// What `content-length` says. Without one the body is written in chunks, or there is none.
    pub content_length: Option<u64>,
    /// Whether the client takes trailers (`te: trailers`).
    pub takes_trailers: bool,
    /// Whether the client waits for 100.
    pub expect_continue: bool,
    /// `cookie` fields, to be joined by `"; "` (RFC 9113, section 8.2.3).
    pub cookies: usize,
}

/// Why a request cannot become HTTP/1.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TranslateError {
    /// Userinfo, blanks, lists, or nothing.
    #[error("malformed :authority")]
    Authority,
    /// CONNECT without a protocol: this is no forward proxy.
    #[error("CONNECT is not supported")]
    Connect,
    /// A field that HTTP/2 does not have.
    #[error("connection-specific field")]
    ConnectionField,
    /// An expectation other than `100-continue`.
    #[error("unknown expectation")]
    Expectation,
    /// A name with a byte that is no token byte, or in upper case, or empty.
    #[error("malformed field name")]
    FieldName,
    /// A value with CR, LF, NUL or another control byte, or blanks around.
    #[error("malformed field value")]
    FieldValue,
    /// More bytes than a head may have.
    #[error("head too long")]
    HeadTooLong,
    /// `host` and `:authority` differ, or several `host`.
    #[error("Host and :authority differ")]
    Host,
    /// No number, or more than one.
    #[error("malformed content-length")]
    Length,
    /// No token.
    #[error("malformed :method")]
    Method,
    /// No `:authority` and no `host`.
    #[error("no :authority")]
    MissingAuthority,
    /// No `:path`, or one that is no path.
    #[error("malformed :path")]
    Path,
    /// Longer than a target may be.
    #[error(":path too long")]
    PathTooLong,
    /// `:protocol` with a method other than CONNECT, or no token.
    #[error("malformed :protocol")]
    Protocol,
    /// No `http` or `https`.
    #[error("malformed :scheme")]
    Scheme,
    /// `te` other than `trailers`.
    #[error("te other than trailers")]
    Te,
    /// Over [`Limits::fields_max`].
    #[error("too many fields")]
    TooManyFields,
    /// TRACE with a body.
    #[error("TRACE with a body")]
    TraceBody,
}

impl TranslateError {
    /// The status that the client gets.
    pub fn status(&self) -> u16 {
        match self {
            Self::PathTooLong => 414,
            Self::Expectation => 417,
            Self::HeadTooLong | Self::TooManyFields => 431,
            _ => 400,
        }
    }
}

/// Checks a request. `fields` are those that are no pseudo fields, `cookie` fields still apart.
///
/// # Errors
///
/// For everything that HTTP/1 would read in another way, and what RFC 9113 calls malformed.
pub fn request<'a>(
    pseudo: &Pseudo<'a>,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    limits: &Limits,
) -> Result<Translated<'a>, TranslateError> {
    let method = text(pseudo.method, is_token).ok_or(TranslateError::Method)?;
    let protocol = match pseudo.protocol {
        Some(protocol) => Some(text(protocol, is_token).ok_or(TranslateError::Protocol)?),
        None => None,
    };
    match (method, protocol) {
        ("CONNECT", None) => return Err(TranslateError::Connect),
        ("CONNECT", Some(_)) | (_, None) => {}
        (_, Some(_)) => return Err(TranslateError::Protocol),
    }
    if !matches!(pseudo.scheme, Some(b"http" | b"https")) {
        return Err(TranslateError::Scheme);
    }
    let (path, query) = path(method, pseudo.path, limits.target_max)?;
    let mut facts = Facts {
        weight: pseudo.method.len() + pseudo.path.map_or(0, <[u8]>::len),
        ..Facts::default()
    };
    for (name, value) in fields {
        facts.add(name, value, limits)?;
    }
    if method == "TRACE" && facts.content_length.is_some_and(|l| l > 0) {
        return Err(TranslateError::TraceBody);
    }
    Ok(Translated {
        method,
        authority: facts.authority(pseudo.authority)?,
        path,
        query,
        protocol,
        content_length: facts.content_length,
        takes_trailers: facts.takes_trailers,
        expect_continue: facts.expect_continue,
        cookies: facts.cookies,
    })
}

/// Whether a trailer field of HTTP/2 may be written behind an HTTP/1 body.
pub fn trailer_passes(name: &[u8], value: &[u8]) -> bool {
    is_lower_token(name) && is_value(value) && !is_forbidden_trailer(name)
}

fn text(bytes: &[u8], fits: impl Fn(&[u8]) -> bool) -> Option<&str> {
    fits(bytes)
        .then(|| std::str::from_utf8(bytes).ok())
        .flatten()
}

fn path<'a>(
    method: &str,
    path: Option<&'a [u8]>,
    target_max: usize,
) -> Result<(&'a str, Option<&'a str>), TranslateError> {
    let bytes = path.ok_or(TranslateError::Path)?;
    if bytes.len() > target_max {
        return Err(TranslateError::PathTooLong);
    }
    let fits = |bytes: &[u8]| {
        let begins = match bytes.first() {
            Some(b'/') => true,
            _ => bytes == b"*" && method == "OPTIONS",
        };
        begins && bytes.iter().all(|b| is_target_byte(*b))
    };
    let text = text(bytes, fits).ok_or(TranslateError::Path)?;
    Ok(match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    })
}

#[derive(Default)]
struct Facts<'a> {
    fields: usize,
    weight: usize,
    host: Option<&'a [u8]>,
    content_length: Option<u64>,
    takes_trailers: bool,
    expect_continue: bool,
    cookies: usize,
}

impl<'a> Facts<'a> {
    fn add(
        &mut self,
        name: &'a [u8],
        value: &'a [u8],
        limits: &Limits,
    ) -> Result<(), TranslateError> {
        if !is_lower_token(name) {
            return Err(TranslateError::FieldName);
        }
        if !is_value(value) {
            return Err(TranslateError::FieldValue);
        }
        let is_cookie = name == b"cookie";
        // Cookies are one field once they are joined.
        if !(is_cookie && self.cookies > 0) {
            self.fields += 1;
        }
        self.weight += name.len() + value.len() + 4;
        if self.fields > limits.fields_max.min(FIELDS_MAX) {
            return Err(TranslateError::TooManyFields);
        }
        if self.weight > limits.head_max {
            return Err(TranslateError::HeadTooLong);
        }
        match name {
            b"connection" | b"http2-settings" | b"keep-alive" | b"proxy-connection"
            | b"transfer-encoding" | b"transfer_encoding" | b"upgrade" => {
                return Err(TranslateError::ConnectionField);
            }
            b"content-length" => {
                if self.content_length.is_some() {
                    return Err(TranslateError::Length);
                }
                let length = content_length(value).map_err(|_| TranslateError::Length)?;
                self.content_length = Some(length);
            }
            b"content_length" => return Err(TranslateError::Length),
            b"cookie" => self.cookies += 1,
            b"expect" => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(TranslateError::Expectation);
                }
                self.expect_continue = true;
            }
            b"host" => {
                let before = self.host.replace(value);
                if before.is_some() {
                    return Err(TranslateError::Host);
                }
            }
            b"te" => {
                if !value.eq_ignore_ascii_case(b"trailers") {
                    return Err(TranslateError::Te);
                }
                self.takes_trailers = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn authority(&self, pseudo: Option<&'a [u8]>) -> Result<&'a str, TranslateError> {
        let authority = match (pseudo, self.host) {
            (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
                return Err(TranslateError::Host);
            }
            (Some(authority), _) => authority,
            (None, Some(host)) => host,
            (None, None) => return Err(TranslateError::MissingAuthority),
        };
        text(authority, is_authority).ok_or(TranslateError::Authority)
    }
}

/// HTTP/2 names have no upper case (RFC 9113, section 8.2.1).
fn is_lower_token(name: &[u8]) -> bool {
    is_token(name) && !name.iter().any(u8::is_ascii_uppercase)
}

/// No control byte but the tab, no blank around (RFC 9113, section 8.2.1).
fn is_value(value: &[u8]) -> bool {
    let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    !blank(value.first()) && !blank(value.last()) && value.iter().all(|b| is_text_byte(*b))
}
