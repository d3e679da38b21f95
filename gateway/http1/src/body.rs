//! A body, taken from the bytes behind a head: handed on as slices, its framing verified.

use crate::chunked::Chunked;
use crate::{RequestBody, ResponseBody, Trailers};

/// Reads one body. Keeps nothing of it but where it is (and a trailer section that came in pieces).
#[derive(Debug)]
pub struct BodyReader {
    state: State,
}

#[derive(Debug)]
enum State {
    Chunked(Chunked),
    Ended,
    Failed(BodyError),
    Length(u64),
    UntilClose,
}

/// What [`BodyReader::read`] made of its input.
#[derive(Debug, Eq, PartialEq)]
pub struct Step<'b> {
    /// Bytes of the input that are done with, those of `what` included. Present the rest again.
    pub consumed: usize,
    /// What they were.
    pub what: What<'b>,
}

/// A part of a body.
#[derive(Debug, Eq, PartialEq)]
pub enum What<'b> {
    /// Bytes of the body, never empty.
    Data(&'b [u8]),
    /// The body is complete; what follows belongs to the next message.
    End,
    /// Nothing more in this input; all of it was consumed.
    NeedMore,
    /// Trailer fields, freed of those that may not be trailers; [`What::End`] follows.
    Trailers(Trailers),
}

/// Why a body cannot be relayed any further. The connection it came on is of no use any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// No line end behind the bytes of a chunk.
    #[error("chunk longer than its size")]
    ChunkEnd,
    /// A chunk extension that is not well-formed.
    #[error("malformed chunk extension")]
    ChunkExtension,
    /// Chunk extensions out of proportion.
    #[error("chunk extensions too long")]
    ChunkExtensionTooLong,
    /// A chunk size that is no hexadecimal number, or a line that does not end in CR LF.
    #[error("malformed chunk size")]
    ChunkSize,
    /// A chunk size beyond any body.
    #[error("chunk size too large")]
    ChunkSizeTooLarge,
    /// A malformed trailer section.
    #[error("malformed trailers")]
    Trailers,
    /// A trailer section over 16 KiB or 64 fields.
    #[error("trailers too long")]
    TrailersTooLong,
    /// The peer closed in the middle.
    #[error("body cut short")]
    Truncated,
}

impl BodyReader {
    /// In chunks.
    pub fn chunked() -> Self {
        Self {
            state: State::Chunked(Chunked::default()),
        }
    }

    /// Exactly that many bytes.
    pub fn length(length: u64) -> Self {
        Self {
            state: match length {
                0 => State::Ended,
                length => State::Length(length),
            },
        }
    }

    /// No body.
    pub fn none() -> Self {
        Self {
            state: State::Ended,
        }
    }

    /// Everything until the peer closes.
    pub fn until_close() -> Self {
        Self {
            state: State::UntilClose,
        }
    }

    /// Takes the next part from `input`, the bytes behind the last one.
    ///
    /// # Errors
    ///
    /// If the framing is broken, and again at every further call.
    #[inline]
    pub fn read<'b>(&mut self, input: &'b [u8]) -> Result<Step<'b>, BodyError> {
        let need_more = Step {
            consumed: 0,
            what: What::NeedMore,
        };
        match &mut self.state {
            State::Chunked(chunked) => match chunked.read(input) {
                Ok(step) => {
                    if step.what == What::End {
                        self.state = State::Ended;
                    }
                    Ok(step)
                }
                Err(error) => {
                    self.state = State::Failed(error);
                    Err(error)
                }
            },
            State::Ended => Ok(Step {
                consumed: 0,
                what: What::End,
            }),
            State::Failed(error) => Err(*error),
            State::Length(rest) => {
                let room = usize::try_from(*rest).unwrap_or(usize::MAX);
                let data = input.get(..room).unwrap_or(input);
                if data.is_empty() {
                    return Ok(need_more);
                }
                self.advance(data.len() as u64);
                Ok(Step {
                    consumed: data.len(),
                    what: What::Data(data),
                })
            }
            State::UntilClose if input.is_empty() => Ok(need_more),
            State::UntilClose => Ok(Step {
                consumed: input.len(),
                what: What::Data(input),
            }),
        }
    }

    /// The peer closed its sending side.
    ///
    /// # Errors
    ///
    /// [`BodyError::Truncated`] unless closing is how this body ends, or it had ended before.
    pub fn ended_by_close(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::UntilClose | State::Ended => {
                self.state = State::Ended;
                Ok(())
            }
            State::Failed(error) => Err(error),
            State::Chunked(_) | State::Length(_) => {
                self.state = State::Failed(BodyError::Truncated);
                Err(BodyError::Truncated)
            }
        }
    }

    /// Whether all of the body has been read: the next read says [`What::End`] without any input.
    #[inline]
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Bytes still to come, of a body of known length.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(rest) => Some(rest),
            State::Ended => Some(0),
            _ => None,
        }
    }

    /// Counts bytes of a body of known length that were moved without passing here (splice).
    pub fn advance(&mut self, moved: u64) {
        if let State::Length(rest) = &mut self.state {
            *rest = rest.saturating_sub(moved);
            if *rest == 0 {
                self.state = State::Ended;
            }
        }
    }
}

impl From<RequestBody> for BodyReader {
    fn from(body: RequestBody) -> Self {
        match body {
            RequestBody::Chunked => Self::chunked(),
            RequestBody::Length(length) => Self::length(length),
            RequestBody::None => Self::none(),
        }
    }
}

impl From<ResponseBody> for BodyReader {
    fn from(body: ResponseBody) -> Self {
        match body {
            ResponseBody::Chunked => Self::chunked(),
            ResponseBody::Length(length) => Self::length(length),
            ResponseBody::None => Self::none(),
            ResponseBody::UntilClose => Self::until_close(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_length_ends_where_it_says() {
        let mut body = BodyReader::length(5);
        let step = body.read(b"abc").unwrap();
        assert_eq!((step.consumed, step.what), (3, What::Data(b"abc")));
        assert_eq!(body.read(b"").unwrap().what, What::NeedMore);
        assert_eq!(body.remaining(), Some(2));
        let step = body.read(b"deGET /").unwrap();
        assert_eq!((step.consumed, step.what), (2, What::Data(b"de")));
        assert!(body.is_ended());
        let step = body.read(b"GET /").unwrap();
        assert_eq!((step.consumed, step.what), (0, What::End));
        assert_eq!(body.ended_by_close(), Ok(()));
    }

    #[test]
    fn closing_ends_only_a_body_without_a_length() {
        let mut body = BodyReader::until_close();
        assert_eq!(body.read(b"abc").unwrap().what, What::Data(b"abc"));
        assert_eq!(body.ended_by_close(), Ok(()));
        assert_eq!(body.read(b"x").unwrap().what, What::End);
        for mut body in [BodyReader::length(1), BodyReader::chunked()] {
            assert_eq!(body.ended_by_close(), Err(BodyError::Truncated));
            assert_eq!(body.read(b"0\r\n\r\n"), Err(BodyError::Truncated));
        }
    }

    #[test]
    fn spliced_bytes_count() {
        let mut body = BodyReader::length(10);
        body.advance(9);
        assert_eq!(body.remaining(), Some(1));
        body.advance(1);
        assert!(body.is_ended());
    }
}
