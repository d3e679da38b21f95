//! Heads, chunks and trailers as bytes, appended to the caller's buffer.
//!
//! Everything here refuses what would let a value become a second line: the last
//! defence, whatever was checked before. A refused write leaves the buffer as it was.

use crate::class::{has_line_end, is_target_byte, is_text_byte, is_token};
use crate::{Trailers, Version};

/// A value that cannot be written without becoming something else.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WriteError {
    /// A method or a field name that is no token.
    #[error("not a token")]
    Name,
    /// A status that has not three digits.
    #[error("not a status")]
    Status,
    /// A target with a blank, a control byte or a fragment, or an empty one.
    #[error("not a request target")]
    Target,
    /// A value with CR, LF, NUL; a reason with any control byte.
    #[error("control byte in a value")]
    Value,
}

/// `METHOD target HTTP/1.1`.
///
/// # Errors
///
/// If the method is no token, or the target has a blank or control byte.
pub fn request_line(out: &mut Vec<u8>, method: &[u8], target: &[u8]) -> Result<(), WriteError> {
    request_line_parts(out, method, target, None)
}

/// As [`request_line`], the target given as path and query.
///
/// # Errors
///
/// If the method is no token, or the target has a blank or control byte.
pub fn request_line_parts(
    out: &mut Vec<u8>,
    method: &[u8],
    path: &[u8],
    query: Option<&[u8]>,
) -> Result<(), WriteError> {
    if !is_token(method) {
        return Err(WriteError::Name);
    }
    let fits = |part: &[u8]| part.iter().all(|b| is_target_byte(*b));
    if path.is_empty() || !fits(path) || !query.is_none_or(fits) {
        return Err(WriteError::Target);
    }
    out.extend_from_slice(method);
    out.push(b' ');
    out.extend_from_slice(path);
    if let Some(query) = query {
        out.push(b'?');
        out.extend_from_slice(query);
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    Ok(())
}

/// `HTTP/1.x STATUS reason`. A gateway that speaks 1.1 says 1.1, whatever the other side spoke (RFC 9110, section 2.5).
///
/// # Errors
///
/// If the status has not three digits, or the reason has a control byte.
pub fn status_line(
    out: &mut Vec<u8>,
    version: Version,
    status: u16,
    reason: &[u8],
) -> Result<(), WriteError> {
    if !(100..=999).contains(&status) {
        return Err(WriteError::Status);
    }
    if !reason.iter().all(|b| is_text_byte(*b)) {
        return Err(WriteError::Value);
    }
    out.extend_from_slice(match version {
        Version::H10 => b"HTTP/1.0 ",
        Version::H11 => b"HTTP/1.1 ",
    });
    decimal(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// `name: value`.
///
/// # Errors
///
/// If the name is no token, or the value has CR, LF or NUL.
#[inline]
pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), WriteError> {
    check_field(name, value)?;
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// `content-length: n`.
pub fn content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    decimal(out, length);
    out.extend_from_slice(b"\r\n");
}

/// `transfer-encoding: chunked`.
pub fn chunked(out: &mut Vec<u8>) {
    out.extend_from_slice(b"transfer-encoding: chunked\r\n");
}

/// The blank line.
pub fn end_of_head(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

/// Behind the bytes of a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";

/// The last chunk of a body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The line before the bytes of a chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChunkHead {
    bytes: [u8; 18],
    start: usize,
}

impl ChunkHead {
    /// The bytes to write.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

/// The line before a chunk of `size` bytes, `size` above zero: zero would end the body.
pub fn chunk_head(size: usize) -> ChunkHead {
    debug_assert!(size > 0, "an empty chunk ends the body");
    let mut bytes = [0; 18];
    let mut start = bytes.len();
    let mut put = |byte| {
        start -= 1;
        if let Some(slot) = bytes.get_mut(start) {
            *slot = byte;
        }
    };
    put(b'\n');
    put(b'\r');
    let mut rest = size;
    loop {
        let digit = (rest & 0xf) as u8;
        put(if digit < 10 {
            b'0' + digit
        } else {
            b'a' + digit - 10
        });
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    ChunkHead { bytes, start }
}

/// A whole chunk, for small ones that are copied anyway. Nothing for no bytes.
pub fn chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    out.extend_from_slice(chunk_head(data.len()).as_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(CHUNK_END);
}

/// The last chunk with its trailers.
///
/// # Errors
///
/// If a name is no token, or a value has CR, LF or NUL.
pub fn last_chunk(out: &mut Vec<u8>, trailers: &Trailers) -> Result<(), WriteError> {
    let before = out.len();
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.iter() {
        if let Err(error) = field(out, name, value) {
            out.truncate(before);
            return Err(error);
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

#[inline]
pub(crate) fn check_field(name: &[u8], value: &[u8]) -> Result<(), WriteError> {
    if !is_token(name) {
        return Err(WriteError::Name);
    }
    if has_line_end(value) {
        return Err(WriteError::Value);
    }
    Ok(())
}

fn decimal(out: &mut Vec<u8>, number: u64) {
    let mut bytes = [0; 20];
    let mut start = bytes.len();
    let mut rest = number;
    loop {
        start -= 1;
        if let Some(slot) = bytes.get_mut(start) {
            *slot = b'0' + (rest % 10) as u8;
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(bytes.get(start..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_written_as_the_grammar_has_them() {
        let mut out = Vec::new();
        request_line_parts(&mut out, b"GET", b"/a", Some(b"b=c")).unwrap();
        field(&mut out, b"Host", b"a.example").unwrap();
        content_length(&mut out, 1234567890);
        chunked(&mut out);
        end_of_head(&mut out);
        status_line(&mut out, Version::H11, 404, b"Not Found").unwrap();
        assert_eq!(
            out,
            b"GET /a?b=c HTTP/1.1\r\nHost: a.example\r\ncontent-length: 1234567890\r\n\
              transfer-encoding: chunked\r\n\r\nHTTP/1.1 404 Not Found\r\n"
        );
    }

    #[test]
    fn nothing_that_would_be_a_second_line_is_written() {
        let mut out = Vec::new();
        for value in ["a\rb", "a\nb", "a\0b", "a\r\nb: c"] {
            assert_eq!(
                field(&mut out, b"a", value.as_bytes()),
                Err(WriteError::Value)
            );
            assert_eq!(
                status_line(&mut out, Version::H11, 200, value.as_bytes()),
                Err(WriteError::Value)
            );
            assert_eq!(
                request_line(&mut out, b"GET", value.as_bytes()),
                Err(WriteError::Target)
            );
            assert_eq!(
                field(&mut out, value.as_bytes(), b"a"),
                Err(WriteError::Name)
            );
        }
        assert_eq!(field(&mut out, b"", b"a"), Err(WriteError::Name));
        assert_eq!(field(&mut out, b"a ", b"a"), Err(WriteError::Name));
        assert_eq!(
            request_line(&mut out, b"GET", b"/ x"),
            Err(WriteError::Target)
        );
        assert_eq!(request_line(&mut out, b"GET", b""), Err(WriteError::Target));
        assert_eq!(request_line(&mut out, b"G T", b"/"), Err(WriteError::Name));
        assert_eq!(
            status_line(&mut out, Version::H11, 99, b""),
            Err(WriteError::Status)
        );
        assert!(out.is_empty());
    }

    #[test]
    fn chunks_carry_their_size_in_hex() {
        for (size, line) in [
            (1, "1\r\n"),
            (15, "f\r\n"),
            (16, "10\r\n"),
            (65536, "10000\r\n"),
            (usize::MAX, "ffffffffffffffff\r\n"),
        ] {
            assert_eq!(chunk_head(size).as_bytes(), line.as_bytes());
        }
        let mut out = Vec::new();
        chunk(&mut out, b"");
        chunk(&mut out, b"abc");
        let mut trailers = Trailers::new();
        trailers.push(b"grpc-status", b"0").unwrap();
        last_chunk(&mut out, &trailers).unwrap();
        assert_eq!(out, b"3\r\nabc\r\n0\r\ngrpc-status: 0\r\n\r\n");
    }
}
