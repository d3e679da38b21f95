//! Waits for the next request, and reads its head.

use std::future::poll_fn;
use std::task::{Context, Poll};

use edd_http1::{Limits, Progress, RequestError, Slots, parse_request};
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Connection;
use super::peer::view;
use crate::http::answer::Answer;
use crate::http::downstream::Downstream;
use crate::http::head::Version;
use crate::http::plan::Turn;
use crate::http::side::Field;
use crate::listener::Stage;
use crate::tcp::OverTcp;

/// What comes next on a connection.
pub(super) enum Next {
    /// Nothing: it is idle for too long, the client has left, or the gateway drains.
    Over,
    /// A request.
    Turn(Turn),
}

/// What was made of the bytes at hand.
enum Read {
    Partial,
    Turn(Turn, usize),
}

impl<I> Connection<I>
where
    I: AsyncRead + AsyncWrite + OverTcp + Unpin,
{
    /// Waits for a request and plans it.
    ///
    /// A head has its time from its first byte, however slowly it comes; the first one, which has
    /// no answer before it, from now on. `polled` is called with each context.
    pub(super) async fn next(
        &mut self,
        down: &Downstream,
        since: Option<Instant>,
        polled: &mut impl FnMut(&Context<'_>),
    ) -> Next {
        let timeouts = &down.worker.shared.config.timeouts;
        let mut due = match since {
            Some(since) => since + timeouts.idle,
            None => Instant::now() + timeouts.header,
        };
        let mut partial = false;
        poll_fn(|cx| {
            polled(cx);
            loop {
                let input = match self.peer.wire.poll_input(cx) {
                    Poll::Ready(Ok(input)) if !input.bytes().is_empty() => input,
                    Poll::Ready(_) => {
                        self.peer.half_close();
                        return Poll::Ready(Next::Over);
                    }
                    Poll::Pending => break,
                };
                if !input.is_worth_a_look() {
                    self.peer.wire.keep(input, 0, true);
                    continue;
                }
                match self.read(down, input.bytes()) {
                    Read::Turn(turn, len) => {
                        self.peer.wire.keep(input, len, false);
                        return Poll::Ready(Next::Turn(turn));
                    }
                    Read::Partial => {
                        self.peer.wire.keep(input, 0, true);
                        if !std::mem::replace(&mut partial, true) && since.is_some() {
                            due = Instant::now() + timeouts.header;
                        }
                    }
                }
            }
            match down.worker.ending.stage() {
                Stage::Cut => return Poll::Ready(Next::Over),
                // What has come was read above.
                Stage::Idle if !partial => return Poll::Ready(Next::Over),
                Stage::Draining | Stage::Idle | Stage::Serving => {}
            }
            if self.alarm.poll_due(cx, due).is_pending() {
                return Poll::Pending;
            }
            if !partial {
                return Poll::Ready(Next::Over);
            }
            self.peer.refuse(Version::H11);
            Poll::Ready(Next::Turn(Turn::refused(
                down,
                Version::H11,
                Answer::request_timeout(),
            )))
        })
        .await
    }

    fn read(&mut self, down: &Downstream, bytes: &[u8]) -> Read {
        let mut slots = Slots::new();
        match parse_request(bytes, &mut slots, &LIMITS) {
            Ok(Progress::Complete(head, len)) => {
                let mut fields = SmallVec::<[Field<'_>; 32]>::new();
                fields.extend(head.fields.iter());
                let view = view(&head, &fields);
                self.peer.begin(&head, &view);
                Read::Turn(Turn::begin(down, &view), len)
            }
            Ok(Progress::Partial) => Read::Partial,
            Err(error) => {
                let version = Version::H11;
                self.peer.refuse(version);
                Read::Turn(Turn::refused(down, version, refusal(error)), bytes.len())
            }
        }
    }
}

/// The answer to a head that is not understood. The connection closes: what follows cannot be believed.
fn refusal(error: RequestError) -> Answer {
    Answer::malformed(error.status(), error)
}

const LIMITS: Limits = Limits {
    target_max: 16 * 1024,
    head_max: 64 * 1024,
    fields_max: 128,
};
