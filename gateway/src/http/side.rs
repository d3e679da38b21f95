//! The two peers of an exchange, as the code between them sees them.
//!
//! A request is parsed and answered by its [`Client`], asked of and heard from
//! its [`Server`]. Bodies cross as pieces that are valid only inside the call
//! that hands them on: whoever takes one writes it out or keeps the rest, so
//! there are no boxed bodies, no channels, and no copy where the socket has
//! room. Heads cross as views over slices of fields. Nothing here knows HTTP/1
//! from HTTP/2.

use std::task::{Context, Poll};

use edd_http1::Trailers;
use tokio::net::TcpStream;

use super::head::{HostField, Version};
use super::splice::Bulk;

/// Name and value of a field, bytes as they came.
pub(crate) type Field<'v> = (&'v [u8], &'v [u8]);

/// How a request's body is delimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RequestBody {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// Until it says that it ends: chunks, or frames without a length. Trailers may follow.
    Open,
}

/// How an answer's body is delimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AnswerBody {
    /// There is none; a length may be told all the same (HEAD, 304).
    None(Option<u64>),
    /// So many bytes.
    Length(u64),
    /// Until it says that it ends, or until the upstream closes. Trailers may follow.
    Open,
}

/// The head of a request, as the client's protocol has understood it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestView<'v> {
    /// Protocol version.
    pub(crate) version: Version,
    /// The method, as sent. An extended CONNECT (RFC 8441) is told as `GET` with `upgrade`.
    pub(crate) method: &'v str,
    /// Authority of an absolute-form target, or `:authority`.
    pub(crate) authority: Option<&'v str>,
    /// The `Host` field.
    pub(crate) host: HostField<'v>,
    /// Raw path; `*` for `OPTIONS *`.
    pub(crate) path: &'v str,
    /// Raw query without its question mark.
    pub(crate) query: Option<&'v str>,
    /// All fields in their order, pseudo fields left out.
    pub(crate) fields: &'v [Field<'v>],
    /// Its body.
    pub(crate) body: RequestBody,
    /// `Expect: 100-continue`, from a client that may expect it.
    pub(crate) expects_continue: bool,
    /// The protocol switch asked for.
    pub(crate) upgrade: Option<&'v str>,
    /// `TE: trailers`.
    pub(crate) takes_trailers: bool,
}

/// What a server is asked: the head as HTTP/1.1 writes it, and what its side must know of it.
///
/// An HTTP/2 side reads the head again; it is well formed by construction.
#[derive(Debug)]
pub(crate) struct Ask {
    /// Request line, fields and empty line, framing fields included.
    pub(crate) head: Vec<u8>,
    /// The body that follows.
    pub(crate) body: RequestBody,
    /// Whether the answer has no body whatever it says.
    pub(crate) is_head: bool,
    /// Whether a 101 is an answer.
    pub(crate) may_switch: bool,
    /// Whether the client used https.
    #[allow(dead_code, reason = "the scheme of HTTP/2")]
    pub(crate) secure: bool,
}

/// The head of an answer as it comes from the upstream; of a 1xx too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnswerView<'v> {
    /// Status code.
    pub(crate) status: u16,
    /// Reason phrase; empty over HTTP/2.
    pub(crate) reason: &'v [u8],
    /// All fields in their order.
    pub(crate) fields: &'v [Field<'v>],
    /// Its body.
    pub(crate) body: AnswerBody,
}

/// The head of an answer as the client gets it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnswerHead<'v> {
    /// Status code.
    pub(crate) status: u16,
    /// Reason phrase; may be empty.
    pub(crate) reason: &'v [u8],
    /// The fields that pass: no hop-by-hop fields and no `X-Request-ID`, which the side writes itself.
    /// `Content-Length` is among them where the upstream told it.
    pub(crate) fields: &'v [Field<'v>],
    /// Its body.
    pub(crate) body: AnswerBody,
    /// `X-Request-ID`.
    pub(crate) request_id: &'v str,
    /// The `Upgrade` value of a 101: what follows are bytes of that protocol.
    pub(crate) switched_to: Option<&'v [u8]>,
    /// Whether an HTTP/1 connection must end with it.
    pub(crate) close: bool,
}

/// A piece of a body, valid only inside the call that hands it on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece<'p> {
    /// Bytes, at least one.
    Data(&'p [u8]),
    /// The fields after the last byte; [`Piece::End`] follows.
    Trailers(&'p Trailers),
    /// Complete. After a switch: this direction is half-closed.
    End,
}

/// What comes from a server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'p> {
    /// A 1xx other than 101.
    Informed(AnswerView<'p>),
    /// The answer's head. A 101 only where it was asked for; then call [`Outlet::switch`].
    Answered(AnswerView<'p>),
    /// A piece of the answer's body.
    Piece(Piece<'p>),
}

/// Whether the taker of a piece wants another one in the same call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub(crate) enum Room {
    /// Not now. What was read with it is kept until the next call.
    Full,
    /// Yes, if there is more at hand.
    More,
}

/// Why a side cannot go on.
#[allow(dead_code, reason = "some are HTTP/2's")]
#[derive(Debug, thiserror::Error)]
pub(crate) enum SideError {
    /// It closed or broke off in the middle. The first byte of an answer may not have come yet.
    #[error("broke off")]
    Broke(#[source] std::io::Error),
    /// It does not speak the protocol.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// HTTP/2: the stream was reset with this code.
    #[error("reset by the peer ({0})")]
    Reset(u32),
    /// Its protocol has no form for the request. Nothing was sent.
    #[error("cannot be asked this")]
    Unaskable,
    /// It never took the request, which may go to another connection (GOAWAY, REFUSED_STREAM).
    #[error("did not take the request")]
    Unprocessed,
}

/// Where pieces of a body go out: both sides of an exchange are one.
pub(crate) trait Outlet {
    /// Writes what is left; ready when there is room for another piece.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>>;

    /// Takes a piece: writes what the socket takes at once, keeps the rest.
    ///
    /// Small pieces may be kept for [`Outlet::poll_flush`]. Never refuses for want of room: the
    /// caller asks [`Outlet::poll_ready`] first, and stops when told [`Room::Full`].
    fn put(&mut self, cx: &mut Context<'_>, piece: Piece<'_>) -> Result<Room, SideError>;

    /// Writes all that is kept.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>>;

    /// From now on both directions carry the bytes of another protocol, as
    /// [`Piece::Data`] until [`Piece::End`], which ends one direction only.
    fn switch(&mut self);

    /// The exchange ends before its end: the peer must not take what it got for the whole.
    ///
    /// `gently`: what was written before may still arrive (an upstream broke off); else at once.
    fn abort(&mut self, gently: bool);

    /// What is to come from here, where it may be taken from the socket itself.
    fn bulk(&self) -> Option<Bulk<'_>> {
        None
    }

    /// So much was taken from the socket.
    fn bulk_taken(&mut self, _count: u64) {}

    /// The socket, where bytes may be put into it past this side: all that was put is written.
    fn bulk_to(&self) -> Option<&TcpStream> {
        None
    }

    /// So much was put into the socket.
    fn bulk_put(&mut self, _count: u64) {}
}

/// The client of an exchange. Its head is already read.
pub(crate) trait Client: Outlet {
    /// Hands on pieces of the request's body until `take` has no room or nothing is at hand.
    ///
    /// Ready when at least one piece was handed on; not to be called after [`Piece::End`].
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnMut(&mut Context<'_>, Piece<'_>) -> Room,
    ) -> Poll<Result<(), SideError>>;

    /// Ready when the client has left; for when no body is waited for. Reads ahead within bounds.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<SideError>;

    /// Whether what is still to come of the request would stand before the next one on its connection.
    fn owes_body(&self) -> bool;

    /// Whether the client has ended its side of the connection; it may still read.
    fn is_half_closed(&self) -> bool;

    /// Passes a 1xx on, where the client can take it. 100 also by the gateway's own will.
    fn inform(&mut self, status: u16, fields: &[Field<'_>]);

    /// Writes the head of the answer. Pieces follow by [`Outlet::put`], [`Piece::End`] always.
    ///
    /// Pieces put for a body that is [`AnswerBody::None`] are only the end.
    fn answer(&mut self, head: &AnswerHead<'_>);
}

/// The upstream of an exchange: one connection, or one stream of a shared one.
pub(crate) trait Server: Outlet {
    /// Sends the head. Body pieces follow by [`Outlet::put`], [`Piece::End`] too if there is none.
    fn ask(&mut self, cx: &mut Context<'_>, ask: &Ask) -> Result<(), SideError>;

    /// Hands on what comes until `take` has no room or nothing is at hand.
    ///
    /// Ready when at least one event was handed on; not to be called after [`Piece::End`].
    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnMut(&mut Context<'_>, Event<'_>) -> Room,
    ) -> Poll<Result<(), SideError>>;

    /// Whether anything of the answer has come, an interim one included.
    fn has_begun(&self) -> bool;

    /// Whether nothing of the request has left.
    fn is_unsent(&self) -> bool;

    /// Whether another request may follow on the connection, now.
    fn is_reusable(&self) -> bool;
}
