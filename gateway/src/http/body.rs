//! Bodies as HTTP/1 carries them: read from a wire piece by piece, written to one with new framing.

use std::io;
use std::task::{Context, Poll, ready};

use edd_http1::{BodyReader, What, write};
use tokio::io::{AsyncRead, AsyncWrite};

use super::side::{Piece, Room, SideError};
use super::wire::Wire;

/// Where the body of a message comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// Bytes with a framing.
    Framed(BodyReader),
    /// Everything was handed on.
    Over,
    /// Another protocol's bytes, until the peer ends them.
    Raw,
}

/// What [`Source::read`] made of some bytes.
#[derive(Debug)]
pub(crate) struct Taken {
    /// How many are done with.
    pub(crate) consumed: usize,
    /// Whether the rest is of no use before there is more.
    pub(crate) starved: bool,
    /// Whether anything was handed on.
    pub(crate) handed_on: bool,
}

impl Source {
    /// Whether the end was handed on.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    /// How much is to come, where that is known.
    pub(crate) fn remaining(&self) -> Option<u64> {
        match self {
            Self::Framed(reader) => reader.remaining(),
            Self::Over | Self::Raw => None,
        }
    }

    /// So much was taken past this.
    pub(crate) fn advance(&mut self, count: u64) {
        if let Self::Framed(reader) = self {
            reader.advance(count);
        }
    }

    /// Hands on what is in `bytes`, until `take` has no room.
    pub(crate) fn read(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        take: &mut impl FnMut(&mut Context<'_>, Piece<'_>) -> Room,
    ) -> Result<Taken, SideError> {
        let mut taken = Taken {
            consumed: 0,
            starved: false,
            handed_on: false,
        };
        loop {
            let rest = bytes.get(taken.consumed..).unwrap_or_default();
            let reader = match self {
                Self::Framed(reader) => reader,
                Self::Over => return Ok(taken),
                Self::Raw if rest.is_empty() => return Ok(taken),
                Self::Raw => {
                    taken.consumed = bytes.len();
                    taken.handed_on = true;
                    let _ = take(cx, Piece::Data(rest));
                    return Ok(taken);
                }
            };
            let step = reader.read(rest).map_err(malformed)?;
            taken.consumed += step.consumed;
            let room = match step.what {
                What::Data(data) => take(cx, Piece::Data(data)),
                What::Trailers(trailers) => take(cx, Piece::Trailers(&trailers)),
                What::End => {
                    *self = Self::Over;
                    taken.handed_on = true;
                    let _ = take(cx, Piece::End);
                    return Ok(taken);
                }
                What::NeedMore => {
                    taken.starved = true;
                    return Ok(taken);
                }
            };
            taken.handed_on = true;
            if room == Room::Full {
                return Ok(taken);
            }
        }
    }

    /// The peer has ended its bytes: the end of the body, or its break.
    pub(crate) fn ended(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut impl FnMut(&mut Context<'_>, Piece<'_>) -> Room,
    ) -> Result<(), SideError> {
        if let Self::Framed(reader) = self {
            reader.ended_by_close().map_err(|_| cut_short())?;
        }
        *self = Self::Over;
        let _ = take(cx, Piece::End);
        Ok(())
    }

    /// Hands on what is at hand or comes now; ready when that was at least one piece.
    pub(crate) fn poll_pieces<I: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire<I>,
        take: &mut impl FnMut(&mut Context<'_>, Piece<'_>) -> Room,
    ) -> Poll<Result<(), SideError>> {
        // The end may already be known, and then nothing more may be read.
        if matches!(self, Self::Framed(_)) && self.read(cx, &[], take)?.handed_on {
            return Poll::Ready(Ok(()));
        }
        loop {
            let input = ready!(wire.poll_input(cx)).map_err(SideError::Broke)?;
            if input.bytes().is_empty() {
                return Poll::Ready(self.ended(cx, take));
            }
            match self.read(cx, input.bytes(), take) {
                Ok(taken) => {
                    wire.keep(input, taken.consumed, taken.starved);
                    if taken.handed_on {
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn malformed(error: edd_http1::BodyError) -> SideError {
    match error {
        edd_http1::BodyError::Truncated => cut_short(),
        _ => SideError::Malformed("the framing of the body"),
    }
}

/// The peer closed in the middle.
pub(crate) fn cut_short() -> SideError {
    SideError::Broke(io::ErrorKind::UnexpectedEof.into())
}

/// How the body of a message goes out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sink {
    /// In chunks, with trailers or without.
    Chunked {
        /// Whether the peer takes trailers.
        trailers: bool,
    },
    /// So many bytes are still owed.
    Length(u64),
    /// Everything was put.
    Over,
    /// As it is, until we end our side.
    Raw,
}

impl Sink {
    /// So much was put past this.
    pub(crate) fn advance(&mut self, count: u64) {
        if let Self::Length(owed) = self {
            *owed = owed.saturating_sub(count);
        }
    }

    /// Writes a piece. The end of [`Sink::Raw`] is the caller's to show.
    pub(crate) fn put<I: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire<I>,
        piece: Piece<'_>,
    ) -> io::Result<Room> {
        match (*self, piece) {
            (Self::Over, _) => return Ok(Room::Full),
            (Self::Chunked { .. }, Piece::Data(data)) => {
                let head = write::chunk_head(data.len());
                wire.out().extend_from_slice(head.as_bytes());
                wire.send(cx, data)?;
                wire.out().extend_from_slice(write::CHUNK_END);
            }
            (Self::Chunked { trailers }, Piece::Trailers(fields)) => {
                if trailers && write::last_chunk(wire.out(), fields).is_ok() {
                    *self = Self::Over;
                }
            }
            (Self::Chunked { .. }, Piece::End) => {
                wire.out().extend_from_slice(write::LAST_CHUNK);
                *self = Self::Over;
            }
            (Self::Length(owed), Piece::Data(data)) => {
                let left = owed.checked_sub(data.len() as u64);
                *self = Self::Length(left.ok_or(io::ErrorKind::InvalidData)?);
                wire.send(cx, data)?;
            }
            (Self::Length(owed), Piece::End) => {
                if owed > 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *self = Self::Over;
            }
            (Self::Raw, Piece::Data(data)) => wire.send(cx, data)?,
            (Self::Raw, Piece::End) => *self = Self::Over,
            (Self::Length(_) | Self::Raw, Piece::Trailers(_)) => {}
        }
        Ok(if wire.is_blocked() {
            Room::Full
        } else {
            Room::More
        })
    }
}
