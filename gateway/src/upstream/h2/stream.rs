//! One stream of a shared connection, as the server of an exchange.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;
use h2::client::{ResponseFuture, SendRequest};
use http::header;
use http::response::Parts;

use super::head;
use super::shared::Connected;
use crate::http::h2::fields;
use crate::http::h2::flow::{Receiving, Sending, side_error};
use crate::http::side::{
    AnswerBody, AnswerView, Ask, Event, Outlet, Piece, RequestBody, Room, Server, SideError,
};
use crate::upstream::h1::INFORMED_MAX;

/// A place on a connection, counted while it is held.
#[derive(Debug)]
pub(crate) struct UpstreamStream {
    connection: Rc<Connected>,
    sender: SendRequest<Bytes>,
    /// Both there once the request is sent.
    sending: Option<Sending>,
    hearing: Hearing,
    is_head: bool,
    has_begun: bool,
    /// Interim answers so far.
    informed: usize,
}

/// What is heard of the answer.
#[derive(Debug)]
enum Hearing {
    Nothing,
    Head(ResponseFuture),
    Body(Receiving),
}

impl UpstreamStream {
    pub(super) fn new(connection: &Rc<Connected>, sender: SendRequest<Bytes>) -> Self {
        connection.enter();
        Self {
            connection: Rc::clone(connection),
            sender,
            sending: None,
            hearing: Hearing::Nothing,
            is_head: false,
            has_begun: false,
            informed: 0,
        }
    }

    /// Whom it leads to.
    pub(crate) fn peer(&self) -> std::net::SocketAddr {
        self.connection.peer
    }

    fn sending(&mut self) -> Result<(&mut Sending, &Connected), SideError> {
        match &mut self.sending {
            Some(sending) => Ok((sending, &self.connection)),
            None => Err(SideError::Malformed("nothing was asked")),
        }
    }
}

impl Drop for UpstreamStream {
    fn drop(&mut self) {
        let over = match &self.hearing {
            Hearing::Body(body) => body.has_ended() || body.is_empty(),
            Hearing::Head(_) => false,
            Hearing::Nothing => true,
        };
        if let Some(sending) = &mut self.sending
            && !(over && sending.has_ended())
        {
            // Who has answered need not read the rest; who has not need not go on.
            sending.reset(if over {
                Reason::NO_ERROR
            } else {
                Reason::CANCEL
            });
        }
        self.connection.leave();
    }
}

impl Outlet for UpstreamStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        let (sending, connection) = self.sending()?;
        sending.poll_ready(cx, &connection.quota)
    }

    fn put(&mut self, cx: &mut Context<'_>, piece: Piece<'_>) -> Result<Room, SideError> {
        let (sending, connection) = self.sending()?;
        sending.put(cx, &connection.quota, piece)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        let (sending, connection) = self.sending()?;
        sending.poll_flush(cx, &connection.quota)
    }

    fn switch(&mut self) {
        // Nothing but a 101 leads here, and HTTP/2 has none.
    }

    fn abort(&mut self, _gently: bool) {
        if let Some(sending) = &mut self.sending {
            sending.reset(Reason::CANCEL);
        }
    }
}

impl Server for UpstreamStream {
    fn ask(&mut self, _: &mut Context<'_>, ask: &Ask) -> Result<(), SideError> {
        let Some(request) = head::request(&ask.head, ask.secure) else {
            return Err(SideError::Unaskable);
        };
        self.is_head = ask.is_head;
        let ends = matches!(ask.body, RequestBody::None | RequestBody::Length(0));
        match self.sender.send_request(request, ends) {
            Ok((response, stream)) => {
                self.hearing = Hearing::Head(response);
                self.sending = Some(match ends {
                    true => Sending::ended(stream),
                    false => Sending::new(stream),
                });
                Ok(())
            }
            Err(error) => {
                // Nothing of it has left, whatever the reason is.
                self.connection.close();
                tracing::debug!(%error, "a connection takes no more requests");
                Err(SideError::Unprocessed)
            }
        }
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut Context<'_>, Event<'_>) -> Room,
    ) -> Poll<Result<(), SideError>> {
        let mut any = false;
        loop {
            match &mut self.hearing {
                Hearing::Nothing => {
                    return Poll::Ready(Err(SideError::Malformed("nothing was asked")));
                }
                Hearing::Body(body) => {
                    let polled = body.poll_pieces(cx, |cx, piece| take(cx, Event::Piece(piece)));
                    return match polled {
                        Poll::Pending if any => Poll::Ready(Ok(())),
                        other => other,
                    };
                }
                Hearing::Head(answer) => {
                    let room = match poll_head(answer, cx) {
                        Poll::Pending if any => return Poll::Ready(Ok(())),
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(side_error(error))),
                        Poll::Ready(Ok(Heard::Interim(head))) => {
                            self.informed += 1;
                            if self.informed > INFORMED_MAX || head.status.as_u16() == 101 {
                                return Poll::Ready(Err(SideError::Malformed(
                                    "interim answers that may not be",
                                )));
                            }
                            let fields = fields::of(&head.headers);
                            let view = view(&head, &fields, AnswerBody::None(None));
                            take(cx, Event::Informed(view))
                        }
                        Poll::Ready(Ok(Heard::Final(head, body))) => {
                            let fields = fields::of(&head.headers);
                            let body = Receiving::new(body);
                            let kind = body_kind(&head, self.is_head, body.is_empty());
                            self.hearing = Hearing::Body(body);
                            take(cx, Event::Answered(view(&head, &fields, kind)))
                        }
                    };
                    self.has_begun = true;
                    any = true;
                    if room == Room::Full {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    fn has_begun(&self) -> bool {
        self.has_begun
    }

    fn is_unsent(&self) -> bool {
        self.sending.is_none()
    }

    /// The connection is not this exchange's to keep.
    fn is_reusable(&self) -> bool {
        false
    }
}

enum Heard {
    Interim(Parts),
    Final(Parts, h2::RecvStream),
}

fn poll_head(answer: &mut ResponseFuture, cx: &mut Context<'_>) -> Poll<Result<Heard, h2::Error>> {
    if let Some(interim) = ready!(answer.poll_informational(cx)) {
        return Poll::Ready(interim.map(|head| Heard::Interim(head.into_parts().0)));
    }
    let (head, body) = ready!(std::pin::Pin::new(answer).poll(cx))?.into_parts();
    Poll::Ready(Ok(Heard::Final(head, body)))
}

fn view<'v>(
    head: &Parts,
    fields: &'v [crate::http::side::Field<'v>],
    body: AnswerBody,
) -> AnswerView<'v> {
    AnswerView {
        status: head.status.as_u16(),
        reason: b"",
        fields,
        body,
    }
}

fn body_kind(head: &Parts, is_head: bool, ended: bool) -> AnswerBody {
    // The h2 crate has seen to it that there is one at most, and that it is true.
    let length = head.headers.get(header::CONTENT_LENGTH);
    let length = length
        .and_then(|l| l.to_str().ok())
        .and_then(|l| l.parse().ok());
    match length {
        _ if is_head || matches!(head.status.as_u16(), 204 | 304) => AnswerBody::None(length),
        // Said or not, that is its length, and HTTP/1 has to be told.
        _ if ended => AnswerBody::Length(0),
        Some(length) => AnswerBody::Length(length),
        None => AnswerBody::Open,
    }
}
