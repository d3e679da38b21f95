//! One direction of a stream each: pieces to DATA frames, and DATA frames to pieces.
//!
//! The same for the client's side and for upstreams that speak HTTP/2. A stream
//! hands the h2 crate only what the windows already allow, so that what has left
//! here is on its way; the rest, at most one piece, is kept. How much all streams
//! of a connection may hand over before the socket has taken it is the
//! connection's [`Quota`].

use std::cell::{Cell, RefCell};
use std::io;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use super::fields::{self, Fields};
use super::{Lent, blocks};
use crate::http::side::{Piece, Room, SideError};

/// What the streams of one connection may hand over until its task has drained the socket.
#[derive(Debug)]
pub(crate) struct Quota {
    left: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
    lent: Lent,
}

impl Quota {
    /// All of it. `lent` are the handles on what is handed over.
    pub(crate) fn new(lent: Lent) -> Self {
        Self {
            left: Cell::new(QUOTA),
            waiting: RefCell::default(),
            lent,
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.left.get() > 0 {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn spend(&self, piece: &Bytes) {
        self.left.set(self.left.get().saturating_sub(piece.len()));
        self.lent.leave(piece);
    }

    /// The socket has taken everything.
    pub(crate) fn refill(&self) {
        if self.left.replace(QUOTA) == QUOTA {
            return;
        }
        for waker in self.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}

/// How a body ends.
#[derive(Debug)]
enum End {
    Data,
    Trailers(HeaderMap),
    /// It has ended.
    Sent,
}

/// The sending half of a stream, its head sent.
#[derive(Debug)]
pub(crate) struct Sending {
    stream: SendStream<Bytes>,
    /// Not yet allowed by the windows, or kept to be sent with the end.
    held: Bytes,
    end: Option<End>,
}

impl Sending {
    pub(crate) fn new(stream: SendStream<Bytes>) -> Self {
        Self {
            stream,
            held: Bytes::new(),
            end: None,
        }
    }

    /// A stream that ended with its head.
    pub(crate) fn ended(stream: SendStream<Bytes>) -> Self {
        Self {
            stream,
            held: Bytes::new(),
            end: Some(End::Sent),
        }
    }

    /// Whether the last frame is on its way.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.end, Some(End::Sent))
    }

    /// Ready when another piece may be put: the last one is on its way, and the socket is not behind.
    pub(crate) fn poll_ready(
        &mut self,
        cx: &mut Context<'_>,
        quota: &Quota,
    ) -> Poll<Result<(), SideError>> {
        if self.end.is_some() {
            return Poll::Ready(Ok(()));
        }
        ready!(quota.poll(cx));
        self.poll_send_held(cx, quota)
    }

    /// Takes a piece; the last one put is kept until more comes or until it is flushed.
    pub(crate) fn put(
        &mut self,
        cx: &mut Context<'_>,
        quota: &Quota,
        piece: Piece<'_>,
    ) -> Result<Room, SideError> {
        if self.end.is_some() {
            return Ok(Room::Full);
        }
        match piece {
            Piece::Data(bytes) => {
                // What is held goes first; if it cannot, the new piece waits behind it.
                match self.poll_send_held(cx, quota) {
                    Poll::Ready(sent) => {
                        sent?;
                        self.held = blocks::copy(bytes);
                    }
                    Poll::Pending => {
                        self.held = blocks::concat(&self.held, bytes);
                        return Ok(Room::Full);
                    }
                }
                // Whatever is said in the same breath may be the end, which then needs no frame of its own.
                let roomy = quota.left.get() > self.held.len();
                return Ok(if roomy { Room::More } else { Room::Full });
            }
            Piece::Trailers(trailers) => {
                let trailers: Fields<'_> = trailers.iter().collect();
                self.end = Some(End::Trailers(fields::map(&trailers, &[])));
            }
            Piece::End => self.end = Some(End::Data),
        }
        // If it cannot all be sent now, the flush will.
        if let Poll::Ready(sent) = self.poll_flush(cx, quota) {
            sent?;
        }
        Ok(Room::Full)
    }

    /// Ready when everything that was put is on its way.
    pub(crate) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        quota: &Quota,
    ) -> Poll<Result<(), SideError>> {
        ready!(self.poll_send_held(cx, quota))?;
        match self.end.replace(End::Sent) {
            None => self.end = None,
            Some(End::Data) => {
                self.stream
                    .send_data(Bytes::new(), true)
                    .map_err(side_error)?;
            }
            Some(End::Trailers(trailers)) => {
                self.stream.send_trailers(trailers).map_err(side_error)?;
            }
            Some(End::Sent) => {}
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what is held as far as the windows allow; what does not fit is lost.
    pub(crate) fn give_up(&mut self, quota: &Quota) {
        let _ = self.poll_send_held(&mut Context::from_waker(Waker::noop()), quota);
        self.held.clear();
    }

    /// Ready with the cause when the peer has reset the stream, or is gone.
    pub(crate) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<SideError> {
        self.stream.poll_reset(cx).map(|reason| match reason {
            Ok(reason) => SideError::Reset(reason.into()),
            Err(error) => side_error(error),
        })
    }

    /// Resets the stream, unless it has ended already.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.held.clear();
        self.end = Some(End::Sent);
        self.stream.send_reset(reason);
    }

    /// Sends what is held, with the end if that is known.
    fn poll_send_held(
        &mut self,
        cx: &mut Context<'_>,
        quota: &Quota,
    ) -> Poll<Result<(), SideError>> {
        while self.held.has_remaining() {
            let room = ready!(self.poll_capacity(cx, self.held.len()))?;
            let piece = self.held.split_to(room.min(self.held.len()));
            quota.spend(&piece);
            let last = self.held.is_empty() && matches!(self.end, Some(End::Data));
            self.stream.send_data(piece, last).map_err(side_error)?;
            if last {
                self.end = Some(End::Sent);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// How much the windows allow now, at least one byte.
    fn poll_capacity(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, SideError>> {
        self.stream.reserve_capacity(wanted);
        let room = self.stream.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        match ready!(self.stream.poll_capacity(cx)) {
            Some(room) => Poll::Ready(room.map_err(side_error)),
            // No longer open: say why, if that is known.
            None => Poll::Ready(Err(match self.poll_reset(cx) {
                Poll::Ready(error) => error,
                Poll::Pending => SideError::Broke(io::ErrorKind::BrokenPipe.into()),
            })),
        }
    }
}

/// The receiving half of a stream, its head read.
#[derive(Debug)]
pub(crate) struct Receiving {
    stream: RecvStream,
    ended: bool,
}

impl Receiving {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            ended: false,
        }
    }

    /// Whether the end was handed on.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether there is no body, or nothing left of it.
    pub(crate) fn is_empty(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// Hands on pieces until `take` has no room or nothing is at hand.
    pub(crate) fn poll_pieces(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut Context<'_>, Piece<'_>) -> Room,
    ) -> Poll<Result<(), SideError>> {
        let mut any = false;
        while !self.ended {
            let room = match self.stream.poll_data(cx) {
                Poll::Pending if any => break,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(data))) => {
                    // The window opens only as fast as the other side takes it.
                    self.stream
                        .flow_control()
                        .release_capacity(data.len())
                        .map_err(side_error)?;
                    if data.is_empty() {
                        continue;
                    }
                    take(cx, Piece::Data(&data))
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(side_error(error))),
                Poll::Ready(None) => {
                    let trailers = match self.stream.poll_trailers(cx) {
                        Poll::Pending if any => break,
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(trailers) => trailers.map_err(side_error)?,
                    };
                    self.ended = true;
                    if let Some(trailers) = trailers {
                        let trailers = fields::trailers(&trailers);
                        let _ = take(cx, Piece::Trailers(&trailers));
                    }
                    take(cx, Piece::End)
                }
            };
            any = true;
            if room == Room::Full {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What an error of the h2 crate means for an exchange.
pub(crate) fn side_error(error: h2::Error) -> SideError {
    if error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)) {
        return SideError::Unprocessed;
    }
    match error.reason() {
        Some(reason) if error.is_remote() => SideError::Reset(reason.into()),
        Some(_) => SideError::Malformed("a message that contradicts itself"),
        None => SideError::Broke(match error.into_io() {
            Some(error) => error,
            None => io::ErrorKind::BrokenPipe.into(),
        }),
    }
}

/// Enough for the socket to be busy while the streams are asked for more.
const QUOTA: usize = 256 << 10;
