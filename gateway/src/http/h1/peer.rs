//! A client that speaks HTTP/1: its side of one exchange after the other.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use edd_http1::write;
use edd_http1::{BodyReader, RequestHead};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::http::body::{Sink, Source, cut_short};
use crate::http::fields::Kind;
use crate::http::head::{HostField, Version};
use crate::http::rewrite::length_field;
use crate::http::side::{
    AnswerBody, AnswerHead, Client, Field, Outlet, Piece, RequestBody, RequestView, Room, SideError,
};
use crate::http::splice::Bulk;
use crate::http::wire::Wire;
use crate::tcp::OverTcp;

/// The client's end of a connection.
#[derive(Debug)]
pub(super) struct Peer<I> {
    pub(super) wire: Wire<I>,
    /// Where the request's body comes from.
    source: Source,
    /// How the answer's body goes out.
    sink: Sink,
    version: Version,
    /// Whether another request may follow, as far as is known.
    pub(super) keep_alive: bool,
    takes_trailers: bool,
    /// It waits for a 100 before it sends its body, and has none yet.
    waits_for_continue: bool,
    /// The final head is written.
    answered: bool,
    /// Only the end of the connection shows where the body ends.
    ends_by_close: bool,
    half_closed: bool,
    switched: bool,
    /// Our side of another protocol has ended; shown after what is kept.
    ending: bool,
    /// The answer is not to look complete.
    pub(super) cut: Option<Cut>,
}

/// How an answer is broken off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cut {
    /// What was written before may still arrive.
    Gently,
    /// At once.
    Hard,
}

impl<I> Peer<I> {
    pub(super) fn new(io: I) -> Self {
        Self {
            wire: Wire::new(io),
            source: Source::Over,
            sink: Sink::Over,
            version: Version::H11,
            keep_alive: true,
            takes_trailers: false,
            waits_for_continue: false,
            answered: false,
            ends_by_close: false,
            half_closed: false,
            switched: false,
            ending: false,
            cut: None,
        }
    }

    /// A request begins: its head was read.
    pub(super) fn begin(&mut self, head: &RequestHead<'_, '_>, view: &RequestView<'_>) {
        self.source = Source::Framed(match head.body {
            edd_http1::RequestBody::Chunked => BodyReader::chunked(),
            edd_http1::RequestBody::Length(length) => BodyReader::length(length),
            edd_http1::RequestBody::None => BodyReader::none(),
        });
        if matches!(view.body, RequestBody::None | RequestBody::Length(0)) {
            self.source = Source::Over;
        }
        self.version = view.version;
        self.keep_alive = head.keep_alive;
        self.takes_trailers = view.takes_trailers;
        self.waits_for_continue = view.expects_continue;
        self.answered = false;
        self.ends_by_close = false;
    }

    /// A head could not be read: it is answered, and nothing after it is read.
    pub(super) fn refuse(&mut self, version: Version) {
        self.source = Source::Over;
        self.version = version;
        self.keep_alive = false;
        self.answered = false;
    }

    /// Whether the next request may be read: this one is done with, both ways.
    pub(super) fn goes_on(&self) -> bool {
        self.keep_alive && self.cut.is_none() && self.source.is_over() && self.sink == Sink::Over
    }

    /// Whether an answer is under way or not flushed.
    pub(super) fn owes(&self) -> bool {
        self.sink != Sink::Over || !self.wire.is_flushed()
    }

    /// Whether the end of the connection is all that shows where the body ends.
    pub(super) fn ends_by_close(&self) -> bool {
        self.ends_by_close
    }

    /// Whether the connection has left HTTP.
    pub(super) fn has_switched(&self) -> bool {
        self.switched
    }

    /// The client has ended its side before a request.
    pub(super) fn half_close(&mut self) {
        self.half_closed = true;
    }
}

/// The view of a head. `fields` are those of `head`.
pub(super) fn view<'v>(head: &RequestHead<'_, 'v>, fields: &'v [Field<'v>]) -> RequestView<'v> {
    let te = |(name, value): &Field<'_>| {
        name.len() == 2
            && name.eq_ignore_ascii_case(b"te")
            && edd_http1::tokens(value).any(|t| t.eq_ignore_ascii_case(b"trailers"))
    };
    RequestView {
        version: match head.version {
            edd_http1::Version::H10 => Version::H10,
            edd_http1::Version::H11 => Version::H11,
        },
        method: head.method,
        authority: head.authority,
        host: head
            .host
            .map_or(HostField::None, |host| HostField::One(host.as_bytes())),
        path: head.path,
        query: head.query,
        fields,
        body: match head.body {
            edd_http1::RequestBody::Chunked => RequestBody::Open,
            edd_http1::RequestBody::Length(length) => RequestBody::Length(length),
            edd_http1::RequestBody::None => RequestBody::None,
        },
        expects_continue: head.expect_continue,
        upgrade: head.upgrade,
        takes_trailers: head.version == edd_http1::Version::H11 && fields.iter().any(te),
    }
}

impl<I: AsyncRead + AsyncWrite + OverTcp + Unpin> Outlet for Peer<I> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        self.wire.poll_room(cx).map_err(SideError::Broke)
    }

    fn put(&mut self, cx: &mut Context<'_>, piece: Piece<'_>) -> Result<Room, SideError> {
        if self.sink == Sink::Raw && matches!(piece, Piece::End) {
            // Of another protocol it is one direction that ends.
            self.ending = self.switched;
        }
        self.sink
            .put(cx, &mut self.wire, piece)
            .map_err(SideError::Broke)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        ready!(self.wire.poll_flush(cx)).map_err(SideError::Broke)?;
        if self.ending {
            let _ = ready!(Pin::new(self.wire.io_mut()).poll_shutdown(cx));
            self.ending = false;
        }
        Poll::Ready(Ok(()))
    }

    fn switch(&mut self) {
        self.switched = true;
        self.keep_alive = false;
        self.source = Source::Raw;
        self.sink = Sink::Raw;
    }

    fn abort(&mut self, gently: bool) {
        self.cut = Some(if gently { Cut::Gently } else { Cut::Hard });
    }

    fn bulk(&self) -> Option<Bulk<'_>> {
        let from = self.wire.io().plain().filter(|_| !self.wire.has_kept())?;
        let left = self.source.remaining()?;
        Some(Bulk { from, left })
    }

    fn bulk_taken(&mut self, count: u64) {
        self.source.advance(count);
    }

    fn bulk_to(&self) -> Option<&TcpStream> {
        let ready = matches!(self.sink, Sink::Length(_)) && self.wire.is_flushed();
        self.wire.io().plain().filter(|_| ready)
    }

    fn bulk_put(&mut self, count: u64) {
        self.sink.advance(count);
    }
}

impl<I: AsyncRead + AsyncWrite + OverTcp + Unpin> Client for Peer<I> {
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut Context<'_>, Piece<'_>) -> Room,
    ) -> Poll<Result<(), SideError>> {
        if self.half_closed && !self.wire.has_kept() {
            return Poll::Ready(if self.switched {
                self.source.ended(cx, &mut take)
            } else {
                Err(cut_short())
            });
        }
        let polled = ready!(self.source.poll_pieces(cx, &mut self.wire, &mut take));
        self.waits_for_continue = false;
        Poll::Ready(polled)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<SideError> {
        // One look ahead is enough: what has come is the next request.
        if self.half_closed || self.wire.has_kept() {
            return Poll::Pending;
        }
        match ready!(self.wire.poll_ahead(cx)) {
            Ok(true) => Poll::Pending,
            Ok(false) => {
                self.half_closed = true;
                Poll::Pending
            }
            Err(error) => Poll::Ready(SideError::Broke(error)),
        }
    }

    fn owes_body(&self) -> bool {
        !self.source.is_over()
    }

    fn is_half_closed(&self) -> bool {
        self.half_closed
    }

    fn inform(&mut self, status: u16, fields: &[Field<'_>]) {
        if self.version == Version::H10 || self.answered {
            return;
        }
        if status == 100 && !std::mem::take(&mut self.waits_for_continue) {
            return;
        }
        let out = self.wire.out();
        let before = out.len();
        let mut head = || {
            write::status_line(
                out,
                edd_http1::Version::H11,
                status,
                reason(status).as_bytes(),
            )?;
            for (name, value) in fields {
                write::field(out, name, value)?;
            }
            write::end_of_head(out);
            Ok::<_, write::WriteError>(())
        };
        if head().is_err() {
            self.wire.out().truncate(before);
        }
    }

    fn answer(&mut self, head: &AnswerHead<'_>) {
        let is_old = self.version == Version::H10;
        self.answered = true;
        self.sink = match head.body {
            AnswerBody::None(_) => Sink::Length(0),
            AnswerBody::Length(length) => Sink::Length(length),
            AnswerBody::Open if is_old => Sink::Raw,
            AnswerBody::Open => Sink::Chunked {
                trailers: self.takes_trailers,
            },
        };
        self.ends_by_close = self.sink == Sink::Raw;
        // A body that was never asked for may come or not: what follows could be either.
        let unsure = std::mem::take(&mut self.waits_for_continue);
        self.keep_alive &= !(head.close || self.ends_by_close || unsure);
        let before = self.wire.out().len();
        if self.write_head(head).is_err() {
            // Nothing that came by a parser gets here.
            self.wire.out().truncate(before);
            self.cut = Some(Cut::Hard);
        }
    }
}

impl<I> Peer<I> {
    fn write_head(&mut self, head: &AnswerHead<'_>) -> Result<(), write::WriteError> {
        let is_old = self.version == Version::H10;
        let version = match is_old {
            true => edd_http1::Version::H10,
            false => edd_http1::Version::H11,
        };
        let keep_alive = self.keep_alive;
        let chunked = matches!(self.sink, Sink::Chunked { .. });
        let out = self.wire.out();
        let text = match head.reason {
            [] => reason(head.status).as_bytes(),
            text => text,
        };
        write::status_line(out, version, head.status, text)?;
        let sized = |(name, _): &Field<'_>| Kind::of(name) == Kind::ContentLength;
        if head.body == AnswerBody::Length(0) && !head.fields.iter().any(sized) {
            // Over HTTP/2 an answer may end without a word about its length.
            write::field(out, b"content-length", b"0")?;
        }
        for (name, value) in head.fields {
            match (head.body, name.len()) {
                (AnswerBody::Length(length) | AnswerBody::None(Some(length)), 14)
                    if Kind::of(name) == Kind::ContentLength =>
                {
                    length_field(out, name, length)?;
                }
                _ => write::field(out, name, value)?,
            }
        }
        write::field(out, b"x-request-id", head.request_id.as_bytes())?;
        if chunked {
            write::chunked(out);
        }
        match head.switched_to {
            Some(protocol) => {
                write::field(out, b"connection", b"upgrade")?;
                write::field(out, b"upgrade", protocol)?;
            }
            None if !keep_alive => write::field(out, b"connection", b"close")?,
            None if is_old => write::field(out, b"connection", b"keep-alive")?,
            None => {}
        }
        write::end_of_head(out);
        Ok(())
    }
}

/// The reason phrase where the upstream gave none, or is none.
fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default()
}
