//! A connection to an upstream that speaks HTTP/1.1.
//!
//! It has no task: while it is used the exchange polls it, while it is kept
//! nobody does, and whether it still lives is looked at when it is taken.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use edd_http1::{BodyReader, Limits, Progress, Question, ResponseBody, Slots, parse_response};
use edd_route::{Admission, UserId};
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::unconstrained;

use super::{Io, Reusable};
use crate::http::body::{self, Sink, Source};
use crate::http::side::{
    AnswerBody, AnswerView, Ask, Event, Field, Outlet, Piece, RequestBody, Room, Server, SideError,
};
use crate::http::splice::Bulk;
use crate::http::wire::Wire;
use crate::tcp::{OverTcp, reset};
use crate::telemetry::UpstreamGauge;

/// A connection, idle or in the middle of one exchange.
#[derive(Debug)]
pub(crate) struct H1<I: OverTcp> {
    wire: Wire<I>,
    /// Whom it leads to.
    pub(crate) peer: SocketAddr,
    /// What it depends on.
    admission: Admission,
    /// Counts it while it is in use, or while it is kept.
    pub(crate) counted: UpstreamGauge,
    /// Where the answer's body comes from; none while its head is due.
    source: Option<Source>,
    /// How the request's body goes out.
    sink: Sink,
    question: Question,
    may_switch: bool,
    /// Something of the answer has come.
    begun: bool,
    /// Whether it may be used again, as far as is known.
    keep_alive: bool,
    /// Heads of 1xx so far.
    informed: usize,
    /// Our side of another protocol has ended; the peer is told after what is kept.
    ending: bool,
    /// Bytes that had been written before this exchange.
    written_before: u64,
}

impl<I: OverTcp> H1<I> {
    /// Speaks HTTP on `io`.
    pub(crate) fn new(
        io: I,
        peer: SocketAddr,
        admission: Admission,
        counted: UpstreamGauge,
    ) -> Self {
        Self {
            wire: Wire::new(io),
            peer,
            admission,
            counted,
            source: Some(Source::Over),
            sink: Sink::Over,
            question: Question::Other,
            may_switch: false,
            begun: false,
            keep_alive: true,
            informed: 0,
            ending: false,
            written_before: 0,
        }
    }

    /// Whether it was made for exactly this admission.
    pub(crate) fn is_of(&self, admission: &Admission) -> bool {
        self.admission.is(admission)
    }
}

impl Reusable for H1<Io> {
    fn owner(&self) -> Option<UserId> {
        self.wire.io().owner()
    }

    /// Silence is a sign of life: anything else would be the answer to nothing.
    fn is_open(&mut self) -> bool {
        if self.admission.is_revoked() || self.wire.has_kept() {
            return false;
        }
        let mut byte = [0];
        // Both cost a system call only if something has come.
        if let Some(socket) = self.wire.io().plain() {
            let read = socket.try_read(&mut byte);
            return read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        }
        let mut buffer = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        let io = self.wire.io_mut();
        // A task whose budget is spent would be told that there is nothing, whatever there is.
        let mut read = unconstrained(poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut buffer)));
        Pin::new(&mut read).poll(&mut cx).is_pending()
    }
}

impl<I: AsyncRead + AsyncWrite + OverTcp + Unpin> Outlet for H1<I> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        self.wire.poll_room(cx).map_err(SideError::Broke)
    }

    fn put(&mut self, cx: &mut Context<'_>, piece: Piece<'_>) -> Result<Room, SideError> {
        if self.sink == Sink::Raw && matches!(piece, Piece::End) {
            self.ending = true;
        }
        self.sink
            .put(cx, &mut self.wire, piece)
            .map_err(SideError::Broke)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        ready!(self.wire.poll_flush(cx)).map_err(SideError::Broke)?;
        if self.ending {
            // A side that is already gone cannot be told; that is no fault.
            let _ = ready!(Pin::new(self.wire.io_mut()).poll_shutdown(cx));
            self.ending = false;
        }
        Poll::Ready(Ok(()))
    }

    fn switch(&mut self) {
        self.source = Some(Source::Raw);
        self.sink = Sink::Raw;
        self.keep_alive = false;
    }

    fn abort(&mut self, _gently: bool) {
        self.keep_alive = false;
        reset(self.wire.io().tcp());
    }

    fn bulk(&self) -> Option<Bulk<'_>> {
        let from = self.wire.io().plain().filter(|_| !self.wire.has_kept())?;
        let left = self.source.as_ref()?.remaining()?;
        Some(Bulk { from, left })
    }

    fn bulk_taken(&mut self, count: u64) {
        if let Some(source) = &mut self.source {
            source.advance(count);
        }
    }

    fn bulk_to(&self) -> Option<&TcpStream> {
        let ready = matches!(self.sink, Sink::Length(_)) && self.wire.is_flushed();
        self.wire.io().plain().filter(|_| ready)
    }

    fn bulk_put(&mut self, count: u64) {
        self.sink.advance(count);
    }
}

impl<I: AsyncRead + AsyncWrite + OverTcp + Unpin> Server for H1<I> {
    fn ask(&mut self, _cx: &mut Context<'_>, ask: &Ask) -> Result<(), SideError> {
        self.source = None;
        self.sink = match ask.body {
            RequestBody::None => Sink::Length(0),
            RequestBody::Length(length) => Sink::Length(length),
            RequestBody::Open => Sink::Chunked { trailers: true },
        };
        self.question = if ask.is_head {
            Question::Head
        } else {
            Question::Other
        };
        self.may_switch = ask.may_switch;
        self.begun = false;
        self.informed = 0;
        self.written_before = self.wire.written();
        self.wire.out().extend_from_slice(&ask.head);
        Ok(())
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut Context<'_>, Event<'_>) -> Room,
    ) -> Poll<Result<(), SideError>> {
        if let Some(source) = &mut self.source {
            let polled = source.poll_pieces(
                cx,
                &mut self.wire,
                &mut |cx: &mut Context<'_>, piece: Piece<'_>| take(cx, Event::Piece(piece)),
            );
            return polled;
        }
        loop {
            let input = ready!(self.wire.poll_input(cx)).map_err(SideError::Broke)?;
            let bytes = input.bytes();
            if bytes.is_empty() {
                return Poll::Ready(Err(body::cut_short()));
            }
            self.begun = true;
            if !input.is_worth_a_look() {
                self.wire.keep(input, 0, true);
                continue;
            }
            let taken = self.read(cx, bytes, &mut take)?;
            self.wire.keep(input, taken.consumed, taken.starved);
            if taken.handed_on {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn has_begun(&self) -> bool {
        self.begun
    }

    fn is_unsent(&self) -> bool {
        self.wire.written() == self.written_before
    }

    fn is_reusable(&self) -> bool {
        self.keep_alive
            && self.source.as_ref().is_some_and(Source::is_over)
            && self.sink == Sink::Over
            && self.wire.is_flushed()
            && !self.wire.has_kept()
    }
}

impl<I: OverTcp> H1<I> {
    /// Reads heads, and what follows the last of them.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        take: &mut impl FnMut(&mut Context<'_>, Event<'_>) -> Room,
    ) -> Result<body::Taken, SideError> {
        let mut taken = body::Taken {
            consumed: 0,
            starved: false,
            handed_on: false,
        };
        loop {
            let rest = bytes.get(taken.consumed..).unwrap_or_default();
            let mut slots = Slots::new();
            let (head, len) = match parse_response(rest, &mut slots, &LIMITS, self.question) {
                Ok(Progress::Complete(head, len)) => (head, len),
                Ok(Progress::Partial) => {
                    taken.starved = true;
                    return Ok(taken);
                }
                Err(_) => return Err(SideError::Malformed("the head of the answer")),
            };
            taken.consumed += len;
            taken.handed_on = true;
            let mut fields = SmallVec::<[Field<'_>; 32]>::new();
            fields.extend(head.fields.iter());
            let mut view = AnswerView {
                status: head.status,
                reason: head.reason,
                fields: &fields,
                body: AnswerBody::None(None),
            };
            if head.is_interim() {
                self.informed += 1;
                if self.informed > INFORMED_MAX {
                    return Err(SideError::Malformed("too many interim answers"));
                }
                if take(cx, Event::Informed(view)) == Room::Full {
                    return Ok(taken);
                }
                continue;
            }
            if head.status == 101 {
                if !self.may_switch {
                    return Err(SideError::Malformed(
                        "a switch of protocols that was not asked for",
                    ));
                }
                self.keep_alive = false;
                self.source = Some(Source::Raw);
                // What follows is not HTTP; the taker must be told so first.
                let _ = take(cx, Event::Answered(view));
                return Ok(taken);
            }
            let (reader, kind) = match head.body {
                ResponseBody::Chunked => (BodyReader::chunked(), AnswerBody::Open),
                ResponseBody::Length(length) => {
                    (BodyReader::length(length), AnswerBody::Length(length))
                }
                ResponseBody::None => (BodyReader::none(), AnswerBody::None(head.content_length)),
                ResponseBody::UntilClose => (BodyReader::until_close(), AnswerBody::Open),
            };
            self.keep_alive &= head.keep_alive;
            view.body = kind;
            let mut source = Source::Framed(reader);
            if take(cx, Event::Answered(view)) == Room::More {
                let rest = bytes.get(taken.consumed..).unwrap_or_default();
                let more = source.read(cx, rest, &mut |cx: &mut Context<'_>, piece: Piece<'_>| {
                    take(cx, Event::Piece(piece))
                });
                // The head was handed on; the error is told by the next call.
                match more {
                    Ok(more) => {
                        taken.consumed += more.consumed;
                        taken.starved = more.starved;
                    }
                    Err(error) => {
                        self.source = Some(source);
                        return Err(error);
                    }
                }
            }
            self.source = Some(source);
            return Ok(taken);
        }
    }
}

impl<I: OverTcp> Drop for H1<I> {
    fn drop(&mut self) {
        let heard = self.source.as_ref().is_some_and(Source::is_over);
        if !(heard && self.sink == Sink::Over) {
            // In the middle: the peer must not take what it got for the whole, and need not be sent the rest.
            reset(self.wire.io().tcp());
        }
    }
}

const LIMITS: Limits = Limits {
    target_max: 0,
    head_max: 128 * 1024,
    fields_max: edd_http1::FIELDS_MAX,
};

/// More would be no information.
pub(super) const INFORMED_MAX: usize = 32;
