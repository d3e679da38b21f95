//! What `Content-Length` and `Transfer-Encoding` say (RFC 9112, section 6), and nothing that can be read in two ways.

use crate::class::{is_token, trim};
use crate::fields::tokens;

/// No body is longer: what fits a signed 64-bit number, so that nobody behind us overflows.
pub(crate) const LENGTH_MAX: u64 = i64::MAX as u64;

/// What the fields said so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Framing {
    pub(crate) length: Option<u64>,
    pub(crate) chunked: bool,
}

/// Why the framing is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FramingError {
    /// Both fields (RFC 9112, section 6.1).
    #[error("Content-Length beside Transfer-Encoding")]
    Both,
    /// A `Transfer-Encoding` that does not end with exactly one `chunked`, or that is no list of tokens.
    #[error("Transfer-Encoding does not end with a single chunked")]
    Coding,
    /// A transfer coding that is not understood here.
    #[error("unknown transfer coding")]
    CodingUnknown,
    /// More than one `Content-Length`, in several fields or in a list.
    #[error("more than one Content-Length")]
    LengthRepeated,
    /// No number, or one that is too large.
    #[error("Content-Length is not a length")]
    LengthMalformed,
    /// `Transfer-Encoding` in HTTP/1.0.
    #[error("Transfer-Encoding in HTTP/1.0")]
    OldVersion,
    /// More than one `Transfer-Encoding` field.
    #[error("more than one Transfer-Encoding")]
    Repeated,
    /// A field name that CGI-style upstreams take for one of the two.
    #[error("a field name that looks like a framing field")]
    Lookalike,
}

impl Framing {
    /// Takes a field in, if it is one of the two.
    #[inline]
    pub(crate) fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), FramingError> {
        match name.len() {
            14 if looks_like(name, b"content-length") => {
                if !name.eq_ignore_ascii_case(b"content-length") {
                    return Err(FramingError::Lookalike);
                }
                if self.length.is_some() {
                    return Err(FramingError::LengthRepeated);
                }
                self.length = Some(content_length(value)?);
            }
            17 if looks_like(name, b"transfer-encoding") => {
                if !name.eq_ignore_ascii_case(b"transfer-encoding") {
                    return Err(FramingError::Lookalike);
                }
                if self.chunked {
                    return Err(FramingError::Repeated);
                }
                transfer_encoding(value)?;
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// Judges the two together.
    pub(crate) fn check(&self, is_old: bool) -> Result<(), FramingError> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(FramingError::Both),
            (true, None) if is_old => Err(FramingError::OldVersion),
            _ => Ok(()),
        }
    }
}

/// The same name with `_` for `-`, whatever its case.
fn looks_like(name: &[u8], known: &[u8]) -> bool {
    name.len() == known.len()
        && name
            .iter()
            .zip(known)
            .all(|(a, b)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-'))
}

/// `1*DIGIT`, no sign, no blank, no list. Leading zeros mean nothing; more than 32 digits are nobody's number.
pub(crate) fn content_length(value: &[u8]) -> Result<u64, FramingError> {
    if value.contains(&b',') {
        return Err(FramingError::LengthRepeated);
    }
    if value.is_empty() || value.len() > 32 {
        return Err(FramingError::LengthMalformed);
    }
    let mut length: u64 = 0;
    for digit in value {
        if !digit.is_ascii_digit() {
            return Err(FramingError::LengthMalformed);
        }
        length = length
            .checked_mul(10)
            .and_then(|l| l.checked_add(u64::from(digit - b'0')))
            .filter(|l| *l <= LENGTH_MAX)
            .ok_or(FramingError::LengthMalformed)?;
    }
    Ok(length)
}

/// Only `chunked`, alone.
fn transfer_encoding(value: &[u8]) -> Result<(), FramingError> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    // Which answer: a coding nobody here knows is 501, anything that plays with `chunked` is 400.
    let members = || value.split(|b| *b == b',').map(trim);
    if members().any(|m| !is_token(m)) {
        return Err(FramingError::Coding);
    }
    let is_chunked = |m: &[u8]| m.eq_ignore_ascii_case(b"chunked");
    let mut chunked = 0_usize;
    let mut last_is_chunked = false;
    let mut last_is_known = false;
    for member in tokens(value) {
        if member.eq_ignore_ascii_case(b"identity") {
            return Err(FramingError::Coding);
        }
        last_is_chunked = is_chunked(member);
        last_is_known = is_compression(member);
        chunked += usize::from(last_is_chunked);
    }
    let misplaced = chunked > 1 || (chunked == 1 && !last_is_chunked) || last_is_known;
    if misplaced {
        return Err(FramingError::Coding);
    }
    Err(FramingError::CodingUnknown)
}

/// Registered codings without a delimiter of their own: as the last one of a request they leave its end open.
fn is_compression(member: &[u8]) -> bool {
    [
        &b"gzip"[..],
        b"x-gzip",
        b"deflate",
        b"compress",
        b"x-compress",
    ]
    .iter()
    .any(|known| member.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_digits_and_fits() {
        for (value, expected) in [
            ("0", Ok(0)),
            ("5", Ok(5)),
            ("0005", Ok(5)),
            ("9223372036854775807", Ok(LENGTH_MAX)),
            ("9223372036854775808", Err(FramingError::LengthMalformed)),
            ("18446744073709551617", Err(FramingError::LengthMalformed)),
            ("", Err(FramingError::LengthMalformed)),
            ("+5", Err(FramingError::LengthMalformed)),
            ("-5", Err(FramingError::LengthMalformed)),
            ("5 ", Err(FramingError::LengthMalformed)),
            ("0x5", Err(FramingError::LengthMalformed)),
            ("5.0", Err(FramingError::LengthMalformed)),
            ("5_0", Err(FramingError::LengthMalformed)),
            ("\u{0665}", Err(FramingError::LengthMalformed)),
            ("5, 5", Err(FramingError::LengthRepeated)),
            ("5,6", Err(FramingError::LengthRepeated)),
            (
                "000000000000000000000000000000005",
                Err(FramingError::LengthMalformed),
            ),
        ] {
            assert_eq!(content_length(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn only_a_single_chunked_is_a_transfer_coding() {
        use FramingError::{Coding, CodingUnknown};
        for (value, expected) in [
            ("chunked", Ok(())),
            ("Chunked", Ok(())),
            ("chunked, chunked", Err(Coding)),
            ("chunked,", Err(Coding)),
            (",chunked", Err(Coding)),
            ("", Err(Coding)),
            ("chunked, identity", Err(Coding)),
            ("identity", Err(Coding)),
            ("identity, chunked", Err(Coding)),
            ("chunked, gzip", Err(Coding)),
            ("gzip", Err(Coding)),
            ("\"chunked\"", Err(Coding)),
            ("chunked;a=b", Err(Coding)),
            ("chunked foo", Err(Coding)),
            ("\u{b}chunked", Err(Coding)),
            ("gzip, chunked", Err(CodingUnknown)),
            ("xchunked", Err(CodingUnknown)),
            ("chunk", Err(CodingUnknown)),
            ("trailers", Err(CodingUnknown)),
        ] {
            assert_eq!(transfer_encoding(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn names_that_only_look_like_framing_are_refused() {
        for name in ["Content_Length", "Transfer_Encoding", "content_length"] {
            let mut framing = Framing::default();
            assert_eq!(
                framing.add(name.as_bytes(), b"5"),
                Err(FramingError::Lookalike),
                "{name}"
            );
        }
    }
}
