//! The head of a request: strict start line, strict lines, tokens by httparse, then what they mean together.

use httparse::{ParserConfig, Request, Status};
use memchr::memchr;

use crate::class::{is_authority, is_target_byte, is_token, is_token_byte};
use crate::fields::{ConnectionOptions, Fields, Slots, tokens};
use crate::framing::{Framing, FramingError};
use crate::lines::{LineError, Section, section};
use crate::target::{self, Target};
use crate::{FIELDS_MAX, Limits, Progress, Version};

/// The body that follows a request's head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RequestBody {
    /// In chunks.
    Chunked,
    /// `Content-Length` bytes; zero if that is what it says.
    Length(u64),
    /// Neither field: no body.
    None,
}

/// A request's head, borrowed from the bytes it came in.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'h, 'b> {
    /// The method, as sent: it has a case.
    pub method: &'b str,
    /// The whole target, as sent.
    pub target: &'b str,
    /// HTTP/1.0 or 1.1.
    pub version: Version,
    /// The fields, framing and connection fields included.
    pub fields: Fields<'h, 'b>,
    /// What follows the head.
    pub body: RequestBody,
    /// Whether the client allows another request on this connection.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends its body.
    pub expect_continue: bool,
    /// The `Upgrade` value, if `Connection` names it, the version is 1.1 and there is one such field.
    pub upgrade: Option<&'b str>,
    /// Authority of an absolute-form target: wins over `Host` (RFC 9112, section 3.2.2).
    pub authority: Option<&'b str>,
    /// The only `Host`; always there in HTTP/1.1.
    pub host: Option<&'b str>,
    /// Path of the target in origin form, `*` for the whole server. Raw.
    pub path: &'b str,
    /// Query of the target, without its question mark. Raw.
    pub query: Option<&'b str>,
}

/// Why a request's head is refused. After any of these the connection closes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// A line feed without carriage return.
    #[error("bare line feed")]
    BareLf,
    /// A `Host` that cannot be one.
    #[error("malformed Host")]
    BadHost,
    /// This is no forward proxy.
    #[error("CONNECT is not supported")]
    Connect,
    /// A `Connection` field that is no list of tokens.
    #[error("malformed Connection")]
    Connection,
    /// An expectation other than a single `100-continue` (RFC 9110, section 10.1.1).
    #[error("unknown expectation")]
    Expectation,
    /// An `Expect` that is no list of expectations.
    #[error("malformed Expect")]
    ExpectMalformed,
    /// A malformed field name: blank before the colon, folded line, empty name, control byte.
    #[error("malformed field name")]
    FieldName,
    /// A control byte in a field value.
    #[error("malformed field value")]
    FieldValue,
    /// The body's framing.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// Over [`Limits::head_max`].
    #[error("head too long")]
    HeadTooLong,
    /// More than one `Host`.
    #[error("more than one Host field")]
    HostRepeated,
    /// More than one blank line before the request, or half of one.
    #[error("blank lines before the request line")]
    LeadingLines,
    /// No token where the method is expected.
    #[error("malformed method")]
    Method,
    /// A method that nobody implements.
    #[error("method too long")]
    MethodTooLong,
    /// HTTP/1.1 without `Host`.
    #[error("no Host field")]
    MissingHost,
    /// A target with a byte that may not be there: blank, tab, control byte, fragment.
    #[error("malformed request target")]
    Target,
    /// An absolute target whose authority is no host.
    #[error("malformed authority of the request target")]
    TargetAuthority,
    /// A target in none of the forms that the method may have.
    #[error("unsupported form of the request target")]
    TargetForm,
    /// Over [`Limits::target_max`].
    #[error("request target too long")]
    TargetTooLong,
    /// Over [`Limits::fields_max`].
    #[error("too many fields")]
    TooManyFields,
    /// TRACE with a body (RFC 9110, section 9.3.8).
    #[error("TRACE with a body")]
    TraceBody,
    /// A version other than 1.0 and 1.1.
    #[error("unsupported version")]
    Version,
    /// No version, or bytes behind it.
    #[error("malformed version")]
    VersionMalformed,
}

impl RequestError {
    /// The status that the client gets.
    pub fn status(&self) -> u16 {
        match self {
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::HeadTooLong | Self::TooManyFields => 431,
            Self::MethodTooLong | Self::Framing(FramingError::CodingUnknown) => 501,
            Self::Version => 505,
            _ => 400,
        }
    }
}

impl From<LineError> for RequestError {
    fn from(error: LineError) -> Self {
        match error {
            LineError::BareLf => Self::BareLf,
            LineError::TooLong => Self::HeadTooLong,
            LineError::TooMany => Self::TooManyFields,
        }
    }
}

/// Longer methods do not exist.
const METHOD_MAX: usize = 32;

/// Reads a request's head at the beginning of `bytes`.
///
/// Call it again with more bytes after [`Progress::Partial`]; nothing is kept between calls, and `bytes` need never
/// grow beyond [`Limits::head_max`]. One blank line before the request line is ignored (RFC 9112, section 2.2).
///
/// # Errors
///
/// As soon as the bytes cannot become an unambiguous head any more, or a limit is passed; the same error however the
/// bytes were split.
pub fn parse_request<'h, 'b>(
    bytes: &'b [u8],
    slots: &'h mut Slots<'b>,
    limits: &Limits,
) -> Result<Progress<RequestHead<'h, 'b>>, RequestError> {
    let Some(line) = request_line(bytes, limits)? else {
        return if bytes.len() >= limits.head_max {
            Err(RequestError::HeadTooLong)
        } else {
            Ok(Progress::Partial)
        };
    };
    let Target {
        authority,
        path,
        query,
    } = target::parse(line.method, line.target)?;
    let fields_max = limits.fields_max.min(FIELDS_MAX);
    let (end, lines) = match section(bytes, line.end, limits.head_max, fields_max)? {
        Section::Complete { end, fields } => (end, fields),
        Section::Partial => return Ok(Progress::Partial),
    };
    let head = bytes.get(line.start..end).unwrap_or_default();
    let fields = tokenise(head, lines, slots)?;
    let facts = Facts::read(fields, line.version)?;
    if line.method == "TRACE" && facts.body != RequestBody::None {
        return Err(RequestError::TraceBody);
    }
    let head = RequestHead {
        method: line.method,
        target: line.target,
        version: line.version,
        fields,
        body: facts.body,
        keep_alive: facts.keep_alive,
        expect_continue: facts.expect_continue,
        upgrade: facts.upgrade,
        authority,
        host: facts.host,
        path,
        query,
    };
    Ok(Progress::Complete(head, end))
}

/// The request line, checked byte by byte from the left, so that half a line is judged like a whole one.
struct RequestLine<'b> {
    method: &'b str,
    target: &'b str,
    version: Version,
    /// Where it begins.
    start: usize,
    /// Index behind its line feed.
    end: usize,
}

fn request_line<'b>(
    bytes: &'b [u8],
    limits: &Limits,
) -> Result<Option<RequestLine<'b>>, RequestError> {
    let start = match bytes {
        [b'\r', b'\n', b'\r' | b'\n', ..] => return Err(RequestError::LeadingLines),
        [b'\r', b'\n', ..] => 2,
        [b'\r'] => return Ok(None),
        [b'\r' | b'\n', ..] => return Err(RequestError::LeadingLines),
        _ => 0,
    };
    let line = bytes.get(start..).unwrap_or_default();

    let method_len = line
        .iter()
        .take(METHOD_MAX + 1)
        .position(|b| !is_token_byte(*b));
    let method_len = match method_len {
        Some(len) if len > 0 && line.get(len) == Some(&b' ') => len,
        Some(_) => return Err(RequestError::Method),
        None if line.len() > METHOD_MAX => return Err(RequestError::MethodTooLong),
        None => return Ok(None),
    };

    let rest = line.get(method_len + 1..).unwrap_or_default();
    let target_len = rest
        .iter()
        .take(limits.target_max + 1)
        .position(|b| !is_target_byte(*b));
    let target_len = match target_len {
        Some(len) if len > 0 && rest.get(len) == Some(&b' ') => len,
        Some(_) => return Err(RequestError::Target),
        None if rest.len() > limits.target_max => return Err(RequestError::TargetTooLong),
        None => return Ok(None),
    };

    let Some(version) = version(rest.get(target_len + 1..).unwrap_or_default())? else {
        return Ok(None);
    };
    let text = |bytes: Option<&'b [u8]>| bytes.and_then(|b| std::str::from_utf8(b).ok());
    Ok(Some(RequestLine {
        method: text(line.get(..method_len)).ok_or(RequestError::Method)?,
        target: text(rest.get(..target_len)).ok_or(RequestError::Target)?,
        version,
        start,
        end: start + method_len + 1 + target_len + 1 + VERSION_LINE,
    }))
}

/// Length of `HTTP/1.1` and its line end.
const VERSION_LINE: usize = 10;

fn version(rest: &[u8]) -> Result<Option<Version>, RequestError> {
    if let [
        b'H',
        b'T',
        b'T',
        b'P',
        b'/',
        b'1',
        b'.',
        b'1',
        b'\r',
        b'\n',
        ..,
    ] = rest
    {
        return Ok(Some(Version::H11));
    }
    let pattern = b"HTTP/0.0\r\n";
    let mut version = [b'0'; 2];
    let [major, minor] = &mut version;
    for (at, wanted) in pattern.iter().enumerate() {
        let Some(byte) = rest.get(at) else {
            return Ok(None);
        };
        let fits = match at {
            5 | 7 => byte.is_ascii_digit(),
            _ => byte == wanted,
        };
        if !fits {
            return Err(RequestError::VersionMalformed);
        }
        match at {
            5 => *major = *byte,
            7 => *minor = *byte,
            _ => {}
        }
        if at == 7 && (*major != b'1' || *minor > b'1') {
            return Err(RequestError::Version);
        }
    }
    Ok(Some(match version {
        [_, b'0'] => Version::H10,
        _ => Version::H11,
    }))
}

/// httparse over a whole head. It must see the same end and the same number of lines as we do.
fn tokenise<'h, 'b>(
    head: &'b [u8],
    lines: usize,
    slots: &'h mut Slots<'b>,
) -> Result<Fields<'h, 'b>, RequestError> {
    let mut request = Request::new(&mut []);
    let parsed = ParserConfig::default()
        .parse_request_with_uninit_headers(&mut request, head, &mut slots.0)
        .map_err(|error| match error {
            httparse::Error::HeaderName | httparse::Error::NewLine => RequestError::FieldName,
            httparse::Error::HeaderValue => RequestError::FieldValue,
            httparse::Error::TooManyHeaders => RequestError::TooManyFields,
            httparse::Error::Version => RequestError::VersionMalformed,
            httparse::Error::Status | httparse::Error::Token => RequestError::Target,
        })?;
    if parsed != Status::Complete(head.len()) || request.headers.len() != lines {
        return Err(RequestError::FieldName);
    }
    Ok(Fields(request.headers))
}

/// What the fields mean for the connection.
struct Facts<'b> {
    body: RequestBody,
    keep_alive: bool,
    expect_continue: bool,
    upgrade: Option<&'b str>,
    host: Option<&'b str>,
}

impl<'b> Facts<'b> {
    fn read(fields: Fields<'_, 'b>, version: Version) -> Result<Self, RequestError> {
        let mut framing = Framing::default();
        let mut options = ConnectionOptions::default();
        let mut host = None;
        let mut expects = false;
        let mut upgrade = None;
        let mut upgrades = 0_usize;
        for (name, value) in fields.iter() {
            match name.len() {
                4 if name.eq_ignore_ascii_case(b"host") => {
                    let before = host.replace(value);
                    if before.is_some() {
                        return Err(RequestError::HostRepeated);
                    }
                }
                6 if name.eq_ignore_ascii_case(b"expect") => {
                    expects = value.eq_ignore_ascii_case(b"100-continue");
                    if !expects {
                        return Err(expectation(value));
                    }
                }
                7 if name.eq_ignore_ascii_case(b"upgrade") => {
                    upgrades += 1;
                    upgrade = Some(value);
                }
                10 if name.eq_ignore_ascii_case(b"connection") => {
                    let well_formed = options.add(value);
                    if !well_formed {
                        return Err(RequestError::Connection);
                    }
                }
                14 | 17 => framing.add(name, value)?,
                _ => {}
            }
        }
        let is_old = version == Version::H10;
        framing.check(is_old)?;
        let body = match framing {
            Framing { chunked: true, .. } => RequestBody::Chunked,
            Framing {
                length: Some(length),
                ..
            } => RequestBody::Length(length),
            _ => RequestBody::None,
        };
        let host = match host {
            Some(value) if is_authority(value) => std::str::from_utf8(value).ok(),
            Some(_) => return Err(RequestError::BadHost),
            None if is_old => None,
            None => return Err(RequestError::MissingHost),
        };
        let has_body = !matches!(body, RequestBody::None | RequestBody::Length(0));
        let upgrade = upgrade
            .filter(|_| options.upgrade && upgrades == 1 && !is_old)
            .filter(|value| is_protocol_list(value))
            .and_then(|value| std::str::from_utf8(value).ok());
        Ok(Self {
            body,
            keep_alive: !options.close && (!is_old || options.keep_alive),
            expect_continue: expects && has_body && !is_old,
            upgrade,
            host,
        })
    }
}

/// Well-formed but unknown, or one that hides a known one.
fn expectation(value: &[u8]) -> RequestError {
    let is_expectation = |member: &[u8]| match memchr(b'=', member) {
        Some(at) => is_token(member.get(..at).unwrap_or_default()),
        None => is_token(member),
    };
    if tokens(value).all(is_expectation) {
        RequestError::Expectation
    } else {
        RequestError::ExpectMalformed
    }
}

/// `1#( protocol-name [ "/" protocol-version ] )` (RFC 9110, section 7.8).
fn is_protocol_list(value: &[u8]) -> bool {
    let is_protocol = |member: &[u8]| match memchr(b'/', member) {
        Some(at) => {
            is_token(member.get(..at).unwrap_or_default())
                && is_token(member.get(at + 1..).unwrap_or_default())
        }
        None => is_token(member),
    };
    let mut members = tokens(value).peekable();
    members.peek().is_some() && members.all(is_protocol)
}
