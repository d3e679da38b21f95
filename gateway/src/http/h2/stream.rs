//! One stream of a client's connection, as the client of an exchange.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{self, HeaderName};
use http::{Response, StatusCode};
use tokio::time::timeout;

use super::flow::{Quota, Receiving, Sending, side_error};
use super::{Lent, fields};
use crate::http::forward::Failure;
use crate::http::side::{AnswerBody, AnswerHead, Client, Field, Outlet, Piece, Room, SideError};

/// What the streams of a connection share with its task.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) quota: Quota,
    /// Streams answered to their end since the task last asked.
    answered: Cell<u32>,
    /// Whether an answer has been begun before.
    has_answered: Cell<bool>,
}

impl Link {
    pub(super) fn new(lent: Lent) -> Self {
        Self {
            quota: Quota::new(lent),
            answered: Cell::default(),
            has_answered: Cell::default(),
        }
    }

    /// Streams answered to their end since the last call.
    pub(super) fn take_answered(&self) -> u32 {
        self.answered.take()
    }
}

/// A stream with its request's head read.
#[derive(Debug)]
pub(super) struct Stream {
    link: Rc<Link>,
    receiving: Receiving,
    /// Gone after a reset.
    respond: Option<SendResponse<Bytes>>,
    /// There from the answer's head on.
    sending: Option<Sending>,
    /// The upstream broke off: to be reset once what came is with the client.
    broken: bool,
    /// It was opened by an extended CONNECT (RFC 8441).
    tunnel: bool,
}

impl Stream {
    pub(super) fn new(
        link: &Rc<Link>,
        body: RecvStream,
        respond: SendResponse<Bytes>,
        tunnel: bool,
    ) -> Self {
        Self {
            link: Rc::clone(link),
            receiving: Receiving::new(body),
            respond: Some(respond),
            sending: None,
            broken: false,
            tunnel,
        }
    }

    /// Waits for the end of a body that was said to be empty, for so long.
    ///
    /// To an HTTP/1 upstream the head alone would be a whole request, which DATA may still belie
    /// (RFC 9113, section 8.1.1).
    pub(super) async fn hear_end(&mut self, limit: Duration) -> Result<(), Failure> {
        let end = poll_fn(|cx| {
            while !self.receiving.has_ended() {
                let mut belied = false;
                ready!(self.receiving.poll_pieces(cx, |_, piece| {
                    belied |= matches!(piece, Piece::Data(_));
                    Room::More
                }))?;
                if belied {
                    return Poll::Ready(Err(SideError::Malformed("more than was announced")));
                }
            }
            Poll::Ready(Ok(()))
        });
        match timeout(limit, end).await {
            Ok(ended) => ended.map_err(Failure::ClientBroke),
            Err(_) => Err(Failure::ClientStalled),
        }
    }

    /// Lets the client read what it was told before the stream is reset.
    ///
    /// Clients that find an answer and a reset in one read tend to throw the answer away. So a broken
    /// answer is reset after a moment, and an upload that nobody wants any more is thrown away for a while.
    pub(super) async fn settle(&mut self) {
        if self.broken {
            tokio::time::sleep(READING).await;
            if let Some(mut respond) = self.respond.take() {
                respond.send_reset(Reason::INTERNAL_ERROR);
            }
        } else if self.sending.as_ref().is_some_and(Sending::has_ended)
            && !self.receiving.has_ended()
            && !self.receiving.is_empty()
        {
            let discard = poll_fn(|cx| {
                while !self.receiving.has_ended() {
                    if ready!(self.receiving.poll_pieces(cx, |_, _| Room::More)).is_err() {
                        break;
                    }
                }
                Poll::Ready(())
            });
            let _ = timeout(UNWANTED, discard).await;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.sending.as_ref().is_some_and(Sending::has_ended) && !self.broken {
            self.link.answered.set(self.link.answered.get() + 1);
        }
    }
}

impl Outlet for Stream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        match &mut self.sending {
            Some(sending) => sending.poll_ready(cx, &self.link.quota),
            // The head always has room.
            None if self.respond.is_some() => Poll::Ready(Ok(())),
            None => Poll::Ready(Err(gone())),
        }
    }

    fn put(&mut self, cx: &mut Context<'_>, piece: Piece<'_>) -> Result<Room, SideError> {
        match &mut self.sending {
            Some(sending) => sending.put(cx, &self.link.quota, piece),
            None => Err(gone()),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        match &mut self.sending {
            Some(sending) => sending.poll_flush(cx, &self.link.quota),
            None => Poll::Ready(Ok(())),
        }
    }

    fn switch(&mut self) {
        // Frames carry any bytes, and each direction has an end of its own.
    }

    fn abort(&mut self, gently: bool) {
        if gently {
            if let Some(sending) = &mut self.sending {
                sending.give_up(&self.link.quota);
            }
            self.broken = true;
        } else if let Some(mut respond) = self.respond.take() {
            respond.send_reset(Reason::CANCEL);
        }
    }
}

impl Client for Stream {
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnMut(&mut Context<'_>, Piece<'_>) -> Room,
    ) -> Poll<Result<(), SideError>> {
        self.receiving.poll_pieces(cx, take)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<SideError> {
        if let Some(sending) = &mut self.sending {
            return sending.poll_reset(cx);
        }
        let Some(respond) = &mut self.respond else {
            return Poll::Ready(gone());
        };
        Poll::Ready(match ready!(respond.poll_reset(cx)) {
            Ok(reason) => SideError::Reset(reason.into()),
            Err(error) => side_error(error),
        })
    }

    /// A stream's body stands before nothing.
    fn owes_body(&self) -> bool {
        false
    }

    /// A stream's half-close is the end of the body, and says nothing of the client.
    fn is_half_closed(&self) -> bool {
        false
    }

    fn inform(&mut self, status: u16, fields: &[Field<'_>]) {
        let (Some(respond), None, Ok(status)) = (
            &mut self.respond,
            &self.sending,
            StatusCode::from_u16(status),
        ) else {
            return;
        };
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields::map(fields, &[]);
        // A client that has left learns nothing more.
        let _ = respond.send_informational(response);
    }

    fn answer(&mut self, head: &AnswerHead<'_>) {
        let Some(respond) = &mut self.respond else {
            return;
        };
        let tunnelled = head.switched_to.is_some();
        let status = match head.status {
            _ if tunnelled => 200,
            // To a client that asked for a tunnel any success would say that it is open.
            200..300 if self.tunnel => 502,
            status => status,
        };
        let mut response = Response::new(());
        // The 101 of a tunnel (RFC 8441) is a 200. Upstreams may invent statuses; three digits they have.
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        let mut map = fields::map(head.fields, &[(X_REQUEST_ID, head.request_id.as_bytes())]);
        if let Some(id) = map.get_mut(X_REQUEST_ID) {
            // Never the same twice: not worth a place in the compression's table, but for the name's sake.
            id.set_sensitive(self.link.has_answered.replace(true));
        }
        if tunnelled {
            map.remove(header::SEC_WEBSOCKET_ACCEPT);
        }
        *response.headers_mut() = map;
        let ends = matches!(head.body, AnswerBody::None(_) | AnswerBody::Length(0)) && !tunnelled;
        // If it fails, the stream is gone, and whoever puts a piece is told.
        if let Ok(stream) = respond.send_response(response, ends) {
            self.sending = Some(match ends {
                true => Sending::ended(stream),
                false => Sending::new(stream),
            });
        }
    }
}

/// The stream was reset, or its answer could not be sent.
fn gone() -> SideError {
    SideError::Broke(io::ErrorKind::NotConnected.into())
}

/// Local clients need microseconds, others would need their whole round trip.
const READING: Duration = Duration::from_millis(5);

/// How long a client may take to notice that its upload is answered.
const UNWANTED: Duration = Duration::from_secs(1);

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
