//! The head of a response: the same strictness as towards clients, since a body cut at the wrong byte is the next
//! client's answer.

use httparse::{ParserConfig, Response, Status};

use crate::class::is_text_byte;
use crate::fields::{ConnectionOptions, Fields, Slots};
use crate::framing::{Framing, FramingError};
use crate::lines::{LineError, Section, section};
use crate::{FIELDS_MAX, Limits, Progress, Version};

/// What was asked, as far as it decides whether the answer has a body (RFC 9112, section 6.3). CONNECT never is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Question {
    /// HEAD: no answer has a body.
    Head,
    /// Anything else.
    Other,
}

/// The body that follows a response's head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ResponseBody {
    /// In chunks.
    Chunked,
    /// `Content-Length` bytes.
    Length(u64),
    /// None, whatever the fields say: 1xx, 204, 304, the answer to HEAD.
    None,
    /// Until the upstream closes.
    UntilClose,
}

/// A response's head, borrowed from the bytes it came in.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'h, 'b> {
    /// 100 to 999.
    pub status: u16,
    /// The reason, possibly empty; no control byte but the tab.
    pub reason: &'b [u8],
    /// HTTP/1.0 or 1.1.
    pub version: Version,
    /// The fields, framing and connection fields included.
    pub fields: Fields<'h, 'b>,
    /// What follows the head.
    pub body: ResponseBody,
    /// What `Content-Length` says, also where no body follows (HEAD, 304).
    pub content_length: Option<u64>,
    /// Whether the connection may be used again after this answer.
    pub keep_alive: bool,
}

impl ResponseHead<'_, '_> {
    /// Whether another head follows on this connection before the answer: 1xx, but not 101.
    #[inline]
    pub fn is_interim(&self) -> bool {
        matches!(self.status, 100 | 102..=199)
    }
}

/// Why a response's head is refused: the upstream's fault, 502 for the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ResponseError {
    /// A line feed without carriage return.
    #[error("bare line feed")]
    BareLf,
    /// A `Connection` field that is no list of tokens.
    #[error("malformed Connection")]
    Connection,
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
    /// An interim response that announces a body: where the answer begins would be a guess.
    #[error("interim response with a body")]
    InterimBody,
    /// A control byte in the reason.
    #[error("malformed reason")]
    Reason,
    /// No status of three digits from 100 on.
    #[error("malformed status")]
    Status,
    /// Over [`Limits::fields_max`].
    #[error("too many fields")]
    TooManyFields,
    /// Not `HTTP/1.0` or `HTTP/1.1`.
    #[error("malformed or unsupported version")]
    Version,
}

impl From<LineError> for ResponseError {
    fn from(error: LineError) -> Self {
        match error {
            LineError::BareLf => Self::BareLf,
            LineError::TooLong => Self::HeadTooLong,
            LineError::TooMany => Self::TooManyFields,
        }
    }
}

/// Reads a response's head at the beginning of `bytes`; call it again with more after [`Progress::Partial`].
///
/// # Errors
///
/// As soon as the bytes cannot become an unambiguous head any more, or a limit is passed; the same error however the
/// bytes were split.
pub fn parse_response<'h, 'b>(
    bytes: &'b [u8],
    slots: &'h mut Slots<'b>,
    limits: &Limits,
    question: Question,
) -> Result<Progress<ResponseHead<'h, 'b>>, ResponseError> {
    let Some(line) = status_line(bytes, limits.head_max)? else {
        return if bytes.len() >= limits.head_max {
            Err(ResponseError::HeadTooLong)
        } else {
            Ok(Progress::Partial)
        };
    };
    let fields_max = limits.fields_max.min(FIELDS_MAX);
    let (end, lines) = match section(bytes, line.end, limits.head_max, fields_max)? {
        Section::Complete { end, fields } => (end, fields),
        Section::Partial => return Ok(Progress::Partial),
    };
    let head = bytes.get(..end).unwrap_or_default();
    let fields = tokenise(head, lines, slots)?;
    let mut framing = Framing::default();
    let mut options = ConnectionOptions::default();
    for (name, value) in fields.iter() {
        match name.len() {
            10 if name.eq_ignore_ascii_case(b"connection") => {
                let well_formed = options.add(value);
                if !well_formed {
                    return Err(ResponseError::Connection);
                }
            }
            14 | 17 => framing.add(name, value)?,
            _ => {}
        }
    }
    let is_old = line.version == Version::H10;
    framing.check(is_old)?;
    let announces = framing.chunked || framing.length.is_some_and(|l| l > 0);
    let is_interim = (100..200).contains(&line.status);
    if is_interim && announces {
        return Err(ResponseError::InterimBody);
    }
    let bodiless = is_interim || matches!(line.status, 204 | 304) || question == Question::Head;
    let body = match framing {
        _ if bodiless => ResponseBody::None,
        Framing { chunked: true, .. } => ResponseBody::Chunked,
        Framing {
            length: Some(length),
            ..
        } => ResponseBody::Length(length),
        _ => ResponseBody::UntilClose,
    };
    // A 204 that announces a body may be followed by one: nobody else gets those bytes as an answer.
    let suspect = line.status == 204 && announces;
    let keep_alive = !options.close
        && (!is_old || options.keep_alive)
        && body != ResponseBody::UntilClose
        && !suspect;
    let head = ResponseHead {
        status: line.status,
        reason: line.reason,
        version: line.version,
        fields,
        body,
        content_length: framing.length,
        keep_alive,
    };
    Ok(Progress::Complete(head, end))
}

struct StatusLine<'b> {
    version: Version,
    status: u16,
    reason: &'b [u8],
    /// Index behind its line feed.
    end: usize,
}

/// `HTTP/1.x SP 3DIGIT [ SP reason ] CRLF`, checked from the left. The blank before an empty reason may be missing, as
/// with many servers; nothing is ambiguous about that.
fn status_line(bytes: &[u8], head_max: usize) -> Result<Option<StatusLine<'_>>, ResponseError> {
    let pattern = b"HTTP/1.x 000";
    for (at, wanted) in pattern.iter().enumerate() {
        let Some(byte) = bytes.get(at) else {
            return Ok(None);
        };
        let (fits, error) = match at {
            7 => (matches!(byte, b'0' | b'1'), ResponseError::Version),
            9 => (matches!(byte, b'1'..=b'9'), ResponseError::Status),
            10 | 11 => (byte.is_ascii_digit(), ResponseError::Status),
            8 => (byte == wanted, ResponseError::Status),
            _ => (byte == wanted, ResponseError::Version),
        };
        if !fits {
            return Err(error);
        }
    }
    let version = match bytes.get(7) {
        Some(b'0') => Version::H10,
        _ => Version::H11,
    };
    let digits = bytes.get(9..12).unwrap_or_default();
    let status = digits
        .iter()
        .fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    let rest = bytes
        .get(pattern.len()..bytes.len().min(head_max))
        .unwrap_or_default();
    let (skip, reason) = match rest {
        [] => return Ok(None),
        [b' ', reason @ ..] => (1, reason),
        [b'\r', ..] => (0, rest),
        _ => return Err(ResponseError::Status),
    };
    let Some(len) = reason.iter().position(|b| !is_text_byte(*b)) else {
        return Ok(None);
    };
    match reason.get(len..) {
        Some([b'\r', b'\n', ..]) => {}
        Some([b'\r']) => return Ok(None),
        Some([b'\n', ..]) => return Err(ResponseError::BareLf),
        _ => return Err(ResponseError::Reason),
    }
    Ok(Some(StatusLine {
        version,
        status,
        reason: reason.get(..len).unwrap_or_default(),
        end: pattern.len() + skip + len + 2,
    }))
}

/// httparse over a whole head. It must see the same end and the same number of lines as we do.
fn tokenise<'h, 'b>(
    head: &'b [u8],
    lines: usize,
    slots: &'h mut Slots<'b>,
) -> Result<Fields<'h, 'b>, ResponseError> {
    let mut response = Response::new(&mut []);
    let parsed = ParserConfig::default()
        .parse_response_with_uninit_headers(&mut response, head, &mut slots.0)
        .map_err(|error| match error {
            httparse::Error::HeaderName | httparse::Error::NewLine | httparse::Error::Token => {
                ResponseError::FieldName
            }
            httparse::Error::HeaderValue => ResponseError::FieldValue,
            httparse::Error::TooManyHeaders => ResponseError::TooManyFields,
            httparse::Error::Status => ResponseError::Status,
            httparse::Error::Version => ResponseError::Version,
        })?;
    if parsed != Status::Complete(head.len()) || response.headers.len() != lines {
        return Err(ResponseError::FieldName);
    }
    Ok(Fields(response.headers))
}
