//! One attempt: both directions of an exchange, polled by one future.
//!
//! The request's body goes up while the answer comes down, each as fast as its
//! taker allows. What a side waits for is what its deadline is: the client for
//! its body, the upstream for its first byte, both for anything that moves once
//! the answer has begun.

use std::task::{Context, Poll};
use std::time::Duration;

use edd_route::Revoked;
use tokio::time::Instant;

use super::failure::Failure;
use crate::http::alarm::Alarm;
use crate::http::downstream::Downstream;
use crate::http::exchange::Exchange;
use crate::http::fields;
use crate::http::plan::Forward;
use crate::http::side::{
    AnswerBody, AnswerHead, AnswerView, Client, Event, Outlet, Piece, RequestBody, Room, Server,
    SideError,
};
use crate::http::splice::{Moved, Splice, State};
use crate::listener::Stage;
use crate::upstream::Choice;

/// How an attempt ends.
#[derive(Debug)]
pub(super) enum End {
    /// The answer is complete and with the client.
    Complete {
        /// Whether the request is complete too.
        reusable: bool,
        /// When the last of it was written.
        at: Instant,
    },
    /// The answer has begun and is cut; so is the client's connection or stream.
    Cut,
    /// There is no answer.
    Failed(Failure),
}

/// The state of an attempt.
pub(super) struct Run<'r, 'f> {
    forward: &'r Forward,
    exchange: &'r mut Exchange,
    down: &'r Downstream,
    /// Whom it goes to; told of the answer.
    choice: &'r mut Choice<'f>,
    begun: Instant,
    asked: bool,
    up: Up,
    /// Whether it is the client that keeps the request's body waiting.
    up_awaits_client: bool,
    /// The client still waits for a 100.
    expects_continue: bool,
    answered: bool,
    switched: bool,
    /// The upstream's last piece has come.
    heard_all: bool,
    /// Something of the answer is kept, because the client does not read as fast as it comes.
    unread: bool,
    /// When something last moved, either way.
    moved_at: Instant,
    /// Since when the client's side is half-closed.
    half_since: Option<Instant>,
    /// Registered only for what lives long.
    revoked: Option<Revoked>,
    splice_up: Splice,
    splice_down: Splice,
}

/// How far the request's body is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Up {
    /// Pieces are to come.
    Open,
    /// All of it was put.
    Over,
    /// The upstream takes no more; what it says is still heard.
    Refused,
}

/// What ended a poll before its time.
type Stop = Result<(), End>;

impl<'r, 'f> Run<'r, 'f> {
    pub(super) fn new(
        forward: &'r Forward,
        exchange: &'r mut Exchange,
        down: &'r Downstream,
        choice: &'r mut Choice<'f>,
        now: Instant,
    ) -> Self {
        Self {
            forward,
            exchange,
            down,
            choice,
            begun: now,
            asked: false,
            up: Up::Open,
            up_awaits_client: false,
            expects_continue: forward.expects_continue,
            answered: false,
            switched: false,
            heard_all: false,
            unread: false,
            moved_at: now,
            half_since: None,
            revoked: None,
            splice_up: Splice::default(),
            splice_down: Splice::default(),
        }
    }

    /// Moves what can be moved; ready at the end of the attempt.
    pub(super) fn poll<C: Client, S: Server>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        server: &mut S,
        alarm: &mut Alarm,
    ) -> Poll<End> {
        match self.step(cx, client, server, alarm) {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        }
    }

    fn step<C: Client, S: Server>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        server: &mut S,
        alarm: &mut Alarm,
    ) -> Stop {
        self.check(cx, client)?;
        let moved = self.go_up(cx, client, server)? | self.go_down(cx, client, server)?;
        if moved {
            self.moved_at = Instant::now();
        }
        self.watch_client(cx, client)?;
        self.wait(cx, client, server, alarm)
    }

    /// Whether the exchange may go on at all.
    fn check<C: Client>(&mut self, cx: &mut Context<'_>, client: &mut C) -> Stop {
        let is_over = match &mut self.revoked {
            Some(revoked) => std::pin::Pin::new(revoked).poll(cx).is_ready(),
            None => self.forward.upstream.admission.is_revoked(),
        };
        if is_over {
            return Err(self.cut(client, Failure::Revoked, "revoked", false));
        }
        if self.down.worker.ending.stage() == Stage::Cut {
            return Err(self.cut(client, Failure::Drained, "drained", false));
        }
        Ok(())
    }

    /// Request to upstream. True: something moved.
    fn go_up<C: Client, S: Server>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        server: &mut S,
    ) -> Result<bool, End> {
        let mut moved = false;
        if !self.asked {
            self.asked = true;
            server.ask(cx, &self.forward.ask).map_err(|error| {
                End::Failed(match error {
                    SideError::Unaskable => Failure::Unaskable,
                    error => Failure::Broke(error),
                })
            })?;
            if matches!(
                self.forward.ask.body,
                RequestBody::None | RequestBody::Length(0)
            ) {
                self.up = Up::Over;
                let _ = server.put(cx, Piece::End);
            }
        }
        self.up_awaits_client = false;
        while self.up == Up::Open {
            match server.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.up = Up::Refused;
                    break;
                }
                Poll::Pending => return Ok(moved),
            }
            if let Some((bytes, state)) = spliced(&mut self.splice_up, cx, client, server) {
                self.exchange.bytes_in += bytes.read;
                moved |= bytes != Moved::default();
                match state {
                    State::Done | State::Unable => continue,
                    State::Starved => {
                        self.up_awaits_client = true;
                        break;
                    }
                    State::Blocked => return Ok(moved),
                    State::Gone => {
                        self.up = Up::Refused;
                        break;
                    }
                    State::Broke(error) => {
                        let failure = Failure::ClientBroke(SideError::Broke(error));
                        return Err(self.cut(client, failure, "client broke off", false));
                    }
                }
            }
            let (mut over, mut refused, mut count) = (false, false, 0);
            let polled = client.poll_body(cx, |cx, piece| {
                match piece {
                    Piece::Data(data) => count += data.len() as u64,
                    Piece::End => over = true,
                    Piece::Trailers(_) => {}
                }
                server.put(cx, piece).unwrap_or_else(|_| {
                    refused = true;
                    Room::Full
                })
            });
            self.exchange.bytes_in += count;
            match polled {
                Poll::Ready(Ok(())) => {
                    moved = true;
                    self.expects_continue = false;
                }
                Poll::Ready(Err(error)) => {
                    return Err(self.cut(
                        client,
                        Failure::ClientBroke(error),
                        "client broke off",
                        false,
                    ));
                }
                Poll::Pending => {
                    self.up_awaits_client = true;
                    break;
                }
            }
            if refused {
                self.up = Up::Refused;
            } else if over {
                self.up = Up::Over;
            }
        }
        if self.up != Up::Refused
            && let Poll::Ready(Err(error)) = server.poll_flush(cx)
        {
            // It may have answered before it closed.
            self.up = Up::Refused;
            if server.is_unsent() {
                return Err(End::Failed(Failure::Broke(error)));
            }
        }
        Ok(moved)
    }

    /// Answer to client. True: something moved.
    fn go_down<C: Client, S: Server>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        server: &mut S,
    ) -> Result<bool, End> {
        let mut moved = false;
        while !self.heard_all {
            match client.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Err(self.left(client)),
                Poll::Pending => return Ok(moved),
            }
            if let Some((bytes, state)) = spliced(&mut self.splice_down, cx, server, client) {
                self.exchange.bytes_out += bytes.written;
                moved |= bytes != Moved::default();
                match state {
                    State::Done | State::Unable => continue,
                    State::Starved => break,
                    State::Blocked => return Ok(moved),
                    State::Gone => return Err(self.left(client)),
                    State::Broke(error) => {
                        let failure = Failure::Broke(SideError::Broke(error));
                        return Err(self.cut(client, failure, "upstream broke off", true));
                    }
                }
            }
            let mut switch = false;
            let mut gone = false;
            let (exchange, down) = (&mut *self.exchange, self.down);
            let choice = &mut *self.choice;
            let (answered, heard_all) = (&mut self.answered, &mut self.heard_all);
            let expects_continue = &mut self.expects_continue;
            let polled = server.poll_event(cx, |cx, event| match event {
                Event::Informed(view) => {
                    if view.status == 100 {
                        *expects_continue = false;
                    }
                    client.inform(view.status, &fields::passing(view.fields, false));
                    Room::More
                }
                Event::Answered(view) => {
                    *answered = true;
                    choice.answered(view.status);
                    exchange.look_for_grpc_status(view.fields.iter().copied());
                    switch = answer(client, &view, exchange, down);
                    if switch { Room::Full } else { Room::More }
                }
                Event::Piece(piece) => {
                    match piece {
                        Piece::Data(data) => exchange.bytes_out += data.len() as u64,
                        Piece::End => *heard_all = true,
                        Piece::Trailers(trailers) => {
                            exchange.look_for_grpc_status(trailers.iter());
                        }
                    }
                    client.put(cx, piece).unwrap_or_else(|_| {
                        gone = true;
                        Room::Full
                    })
                }
            });
            if gone {
                return Err(self.left(client));
            }
            match polled {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(error)) if self.answered => {
                    return Err(self.cut(
                        client,
                        Failure::Broke(error),
                        "upstream broke off",
                        true,
                    ));
                }
                Poll::Ready(Err(error)) => return Err(End::Failed(Failure::Broke(error))),
                Poll::Pending => break,
            }
            if switch {
                client.switch();
                server.switch();
                self.switched = true;
                self.half_since = None;
                self.up = Up::Open;
                // The other direction has something to do again.
                cx.waker().wake_by_ref();
            }
        }
        match client.poll_flush(cx) {
            Poll::Ready(Ok(())) => moved |= std::mem::take(&mut self.unread),
            Poll::Ready(Err(_)) => return Err(self.left(client)),
            Poll::Pending => {
                self.unread = true;
                return Ok(moved);
            }
        }
        if self.heard_all && self.up != Up::Open {
            return Err(End::Complete {
                reusable: self.up == Up::Over,
                at: Instant::now(),
            });
        }
        Ok(moved)
    }

    /// Looks whether the client is still there while nothing is expected of it.
    fn watch_client<C: Client>(&mut self, cx: &mut Context<'_>, client: &mut C) -> Stop {
        if self.up != Up::Open && client.poll_gone(cx).is_ready() {
            return Err(self.left(client));
        }
        if self.half_since.is_none() && !self.switched && client.is_half_closed() {
            self.half_since = Some(Instant::now());
        }
        Ok(())
    }

    /// Waits for what is due next.
    fn wait<C: Client, S: Server>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        server: &mut S,
        alarm: &mut Alarm,
    ) -> Stop {
        loop {
            let (due, what) = self.due();
            if alarm.poll_due(cx, due).is_pending() {
                return Ok(());
            }
            match what {
                Due::Continue => {
                    // The upstream is silent, and nothing says that it does not want the body.
                    self.expects_continue = false;
                    client.inform(100, &[]);
                    let _ = client.poll_flush(cx);
                }
                Due::Register => {
                    self.revoked = Some(self.forward.upstream.admission.revoked());
                    self.check(cx, client)?;
                }
                Due::HalfClosed => return Err(self.left(client)),
                Due::Body if self.answered => {
                    return Err(self.cut(
                        client,
                        Failure::ClientStalled,
                        "the request's body stalled",
                        false,
                    ));
                }
                Due::Body => return Err(End::Failed(Failure::ClientStalled)),
                Due::Answer => return Err(End::Failed(Failure::TimedOut)),
                Due::Upload => {
                    return Err(End::Complete {
                        reusable: false,
                        at: self.moved_at,
                    });
                }
                Due::Silence => {
                    let note = match server.poll_ready(cx).is_pending()
                        || client.poll_ready(cx).is_ready()
                    {
                        true => "upstream silent",
                        false => "client does not read",
                    };
                    return Err(self.cut(client, Failure::TimedOut, note, false));
                }
            }
        }
    }

    /// What is due next, and when.
    fn due(&self) -> (Instant, Due) {
        let timeouts = &self.down.worker.shared.config.timeouts;
        let idle_timeout = self.forward.upstream.idle_timeout;
        let silence_max = idle_timeout.unwrap_or(timeouts.stream_idle);
        let mut next = if !self.answered {
            if self.up == Up::Open && self.up_awaits_client {
                (self.moved_at + timeouts.body, Due::Body)
            } else {
                let limit = self.forward.upstream.timeout.unwrap_or(timeouts.upstream);
                (self.moved_at + limit, Due::Answer)
            }
        } else if self.heard_all && !self.switched {
            if self.up == Up::Open && !self.unread {
                (self.moved_at + timeouts.body.min(UPLOAD_REST), Due::Upload)
            } else {
                (self.moved_at + silence_max, Due::Silence)
            }
        } else {
            (self.moved_at + silence_max, Due::Silence)
        };
        let mut sooner = |at: Instant, what: Due| {
            if at < next.0 {
                next = (at, what);
            }
        };
        if self.expects_continue && !self.answered {
            sooner(self.begun + CONTINUE_AFTER, Due::Continue);
        }
        if self.revoked.is_none() && !self.forward.upstream.admission.is_empty() {
            sooner(self.begun + REGISTER_AFTER, Due::Register);
        }
        if let Some(since) = self.half_since {
            sooner(since.max(self.moved_at) + HALF_CLOSED_WAIT, Due::HalfClosed);
        }
        next
    }

    /// The client is gone, whatever was owed to it.
    fn left<C: Client>(&mut self, client: &mut C) -> End {
        self.cut(client, Failure::ClientLeft, "client left", false)
    }

    /// Ends the attempt: a failure as long as nothing was answered, else a cut.
    fn cut<C: Client>(
        &mut self,
        client: &mut C,
        failure: Failure,
        note: &'static str,
        gently: bool,
    ) -> End {
        if !self.answered {
            return End::Failed(failure);
        }
        self.exchange.note(note);
        client.abort(gently);
        End::Cut
    }
}

/// Moves bytes from socket to socket, where that is possible and worth it.
fn spliced<F: Outlet, T: Outlet>(
    splice: &mut Splice,
    cx: &mut Context<'_>,
    from: &mut F,
    to: &mut T,
) -> Option<(Moved, State)> {
    let left = from.bulk()?.left;
    if !splice.wants(left) {
        return None;
    }
    // Nothing may be overtaken.
    if to.poll_flush(cx).is_pending() {
        return None;
    }
    let bulk = from.bulk()?;
    let (moved, state) = splice.poll(cx, bulk, to.bulk_to()?);
    from.bulk_taken(moved.read);
    to.bulk_put(moved.written);
    Some((moved, state))
}

/// Writes the head of the answer; true after a switch.
fn answer<C: Client>(
    client: &mut C,
    view: &AnswerView<'_>,
    exchange: &mut Exchange,
    down: &Downstream,
) -> bool {
    exchange.status = view.status;
    let switched = view.status == 101;
    let sized = match view.body {
        AnswerBody::Length(_) => true,
        AnswerBody::None(length) => length.is_some() && view.status != 204 && !switched,
        AnswerBody::Open => false,
    };
    let passing = fields::passing(view.fields, sized);
    client.answer(&AnswerHead {
        status: view.status,
        reason: view.reason,
        fields: &passing,
        body: view.body,
        request_id: exchange.request_id.as_str(),
        switched_to: match switched {
            true => Some(fields::first(view.fields, b"upgrade").unwrap_or_default()),
            false => None,
        },
        close: down.worker.ending.stage() != Stage::Serving,
    });
    switched
}

/// What is due.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Due {
    /// The upstream's answer.
    Answer,
    /// The next piece of the request's body.
    Body,
    /// Our own 100.
    Continue,
    /// The answer to a client that has ended its side.
    HalfClosed,
    /// The registration of what lives long.
    Register,
    /// Anything at all.
    Silence,
    /// The rest of a request that is already answered.
    Upload,
}

/// A client that waits for a 100 gets ours if the upstream says nothing for so long (RFC 9110, section 10.1.1).
const CONTINUE_AFTER: Duration = Duration::from_secs(1);

/// Ordinary requests are shorter; they only look at the facts.
const REGISTER_AFTER: Duration = Duration::from_millis(100);

/// A client that has ended its side may wait for an answer, or be gone: nothing tells them apart.
const HALF_CLOSED_WAIT: Duration = Duration::from_secs(5);

/// How long an upload may pause once it is answered.
const UPLOAD_REST: Duration = Duration::from_secs(2);

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
