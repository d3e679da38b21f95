//! The chunked coding (RFC 9112, section 7.1), decoded in place.
//!
//! Stricter than the grammar: no blanks around size and extensions, sizes of at
//! most 16 digits, extensions bounded in proportion to the body.

use memchr::memchr;

use crate::body::{BodyError, Step, What};
use crate::class::{is_text_byte, is_token_byte};
use crate::framing::LENGTH_MAX;
use crate::trailers::{TRAILER_FIELDS_MAX, TRAILERS_MAX, Trailers};

/// Bytes of extensions of one chunk.
const EXTENSION_MAX: u16 = 1024;
/// Bytes of extensions of a body, beyond one for each byte of data.
const EXTENSIONS_FREE: u64 = 16 * 1024;
/// Digits of a size, leading zeros included.
const DIGITS_MAX: u8 = 16;

/// Where in the coding we are.
#[derive(Debug, Default)]
pub(crate) struct Chunked {
    at: At,
    /// Of the chunk: its size while that is read, then what is left of it.
    rest: u64,
    digits: u8,
    extension: u16,
    extensions: u64,
    data: u64,
    trailers: Vec<u8>,
    trailer_lines: usize,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum At {
    #[default]
    Size,
    /// Behind `;`: the first byte of a name.
    ExtensionName,
    /// In a name.
    ExtensionNameMore,
    /// Behind `=`.
    ExtensionValue,
    /// In a value that is a token.
    ExtensionToken,
    /// In a value in quotes.
    ExtensionQuoted,
    /// Behind a backslash in quotes.
    ExtensionEscaped,
    /// Behind the closing quote.
    ExtensionQuotedEnd,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of the trailer section.
    Trailers,
    /// Behind the CR of a blank line without trailers.
    FinalLf,
    /// In the trailer section.
    TrailersMore,
    Ended,
}

impl Chunked {
    /// As [`crate::BodyReader::read`].
    pub(crate) fn read<'b>(&mut self, input: &'b [u8]) -> Result<Step<'b>, BodyError> {
        let mut done = 0;
        loop {
            let rest = input.get(done..).unwrap_or_default();
            match self.at {
                At::Data => {
                    let room = usize::try_from(self.rest).unwrap_or(usize::MAX);
                    let data = rest.get(..room).unwrap_or(rest);
                    if data.is_empty() {
                        break;
                    }
                    self.rest -= data.len() as u64;
                    self.data = self.data.saturating_add(data.len() as u64);
                    if self.rest == 0 {
                        self.at = At::DataCr;
                    }
                    return Ok(Step {
                        consumed: done + data.len(),
                        what: What::Data(data),
                    });
                }
                At::TrailersMore => {
                    let (taken, trailers) = self.collect_trailers(rest)?;
                    done += taken;
                    if let Some(trailers) = trailers {
                        self.at = At::Ended;
                        return Ok(Step {
                            consumed: done,
                            what: What::Trailers(trailers),
                        });
                    }
                    if taken == 0 {
                        break;
                    }
                }
                At::Ended => {
                    return Ok(Step {
                        consumed: done,
                        what: What::End,
                    });
                }
                _ => {
                    let Some(byte) = rest.first() else {
                        break;
                    };
                    // The first byte of a trailer is read again with its line.
                    if self.framing(*byte)? {
                        done += 1;
                    }
                }
            }
        }
        Ok(Step {
            consumed: done,
            what: What::NeedMore,
        })
    }

    /// One byte of framing; false if it belongs to the state that follows.
    fn framing(&mut self, byte: u8) -> Result<bool, BodyError> {
        self.at = match (self.at, byte) {
            (At::Size, _) => match (hex(byte), byte) {
                (Some(digit), _) => {
                    self.digits += 1;
                    // Four bits fit: the value is at most 2^59 before the sixteenth digit.
                    let size = (self.rest << 4) | u64::from(digit);
                    if self.digits > DIGITS_MAX || size > LENGTH_MAX {
                        return Err(BodyError::ChunkSizeTooLarge);
                    }
                    self.rest = size;
                    At::Size
                }
                (None, b'\r') if self.digits > 0 => At::SizeLf,
                (None, b';') if self.digits > 0 => self.extend(At::ExtensionName)?,
                _ => return Err(BodyError::ChunkSize),
            },
            (At::SizeLf, b'\n') => {
                self.digits = 0;
                self.extension = 0;
                if self.rest == 0 {
                    At::Trailers
                } else {
                    At::Data
                }
            }
            (At::SizeLf, _) => return Err(BodyError::ChunkSize),
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size,
            (At::DataCr | At::DataLf, _) => return Err(BodyError::ChunkEnd),
            (At::Trailers, b'\r') => At::FinalLf,
            (At::Trailers, _) => {
                self.at = At::TrailersMore;
                return Ok(false);
            }
            (At::FinalLf, b'\n') => At::Ended,
            (At::FinalLf, _) => return Err(BodyError::Trailers),
            (at, byte) => {
                let next = extension(at, byte).ok_or(BodyError::ChunkExtension)?;
                if next == At::SizeLf {
                    next
                } else {
                    self.extend(next)?
                }
            }
        };
        Ok(true)
    }

    /// Counts a byte of an extension.
    fn extend(&mut self, next: At) -> Result<At, BodyError> {
        self.extension += 1;
        self.extensions += 1;
        let allowed = self.data.saturating_add(EXTENSIONS_FREE);
        if self.extension > EXTENSION_MAX || self.extensions > allowed {
            return Err(BodyError::ChunkExtensionTooLong);
        }
        Ok(next)
    }

    /// Takes lines of the trailer section; how many bytes, and the fields once the blank line is there.
    fn collect_trailers(&mut self, input: &[u8]) -> Result<(usize, Option<Trailers>), BodyError> {
        let feed = memchr(b'\n', input);
        let piece = match feed {
            Some(feed) => input.get(..=feed).unwrap_or(input),
            None => input,
        };
        if self.trailers.len() + piece.len() > TRAILERS_MAX {
            return Err(BodyError::TrailersTooLong);
        }
        self.trailers.extend_from_slice(piece);
        if feed.is_none() {
            return Ok((piece.len(), None));
        }
        if !self.trailers.ends_with(b"\r\n") {
            return Err(BodyError::Trailers);
        }
        if !self.trailers.ends_with(b"\n\r\n") {
            self.trailer_lines += 1;
            if self.trailer_lines > TRAILER_FIELDS_MAX {
                return Err(BodyError::TrailersTooLong);
            }
            return Ok((piece.len(), None));
        }
        let section = std::mem::take(&mut self.trailers);
        let trailers = Trailers::parse(&section).ok_or(BodyError::Trailers)?;
        Ok((piece.len(), Some(trailers)))
    }
}

/// Where a byte of an extension leads; none if it may not stand there.
///
/// `";" token [ "=" ( token / quoted-string ) ]`, any number of times.
fn extension(at: At, byte: u8) -> Option<At> {
    let ends = matches!(
        at,
        At::ExtensionNameMore | At::ExtensionToken | At::ExtensionQuotedEnd
    );
    match (at, byte) {
        (_, b'\r') if ends => Some(At::SizeLf),
        (_, b';') if ends => Some(At::ExtensionName),
        (At::ExtensionNameMore, b'=') => Some(At::ExtensionValue),
        (At::ExtensionName | At::ExtensionNameMore, byte) if is_token_byte(byte) => {
            Some(At::ExtensionNameMore)
        }
        (At::ExtensionValue, b'"') => Some(At::ExtensionQuoted),
        (At::ExtensionValue | At::ExtensionToken, byte) if is_token_byte(byte) => {
            Some(At::ExtensionToken)
        }
        (At::ExtensionQuoted, b'"') => Some(At::ExtensionQuotedEnd),
        (At::ExtensionQuoted, b'\\') => Some(At::ExtensionEscaped),
        (At::ExtensionQuoted | At::ExtensionEscaped, byte) if is_text_byte(byte) => {
            Some(At::ExtensionQuoted)
        }
        _ => None,
    }
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}
