//! One request, to its upstream and back; or the gateway's own answer.
//!
//! Generic over the client's side, so that every protocol of a client comes
//! this way. [`attempt`] finds a connection, [`run`] moves the bytes between
//! the two sides, [`failure`] says what is told when that does not work.

use std::future::poll_fn;

use tokio::time::Instant;
use tracing::debug;

use super::alarm::Alarm;
use super::answer::{Answer, Form};
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::head::Version;
use super::plan::{Forward, Plan, Turn};
use super::side::{AnswerBody, AnswerHead, Client, Field, Piece, RequestBody, Server, SideError};
use super::wire;
use crate::listener::Stage;
use crate::upstream::{Choice, Failed};

mod attempt;
mod failure;
mod run;

use attempt::Connection;
pub(crate) use failure::Failure;
use run::{End, Run};

/// How an exchange leaves its client's connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Finished {
    /// As far as this exchange is concerned it may go on; the last of it was written then.
    Open(Instant),
    /// Nothing more may follow on it: something is unfinished, or it was said so.
    Last,
}

/// Does what was planned: answers, or asks the upstream and passes its answer on.
///
/// Whatever happens is recorded when this ends. Cancellation safe: dropping the
/// future gives the exchange up and closes the upstream's connection.
pub(crate) async fn serve<C: Client>(
    client: &mut C,
    turn: Turn,
    down: &Downstream,
    alarm: &mut Alarm,
) -> Finished {
    let Turn {
        mut exchange,
        form,
        plan,
    } = turn;
    let forward = match plan {
        Plan::Answer(answer) => {
            return Box::pin(own(client, &answer, form, &mut exchange, down, alarm)).await;
        }
        Plan::Forward(forward) => forward,
    };
    let done = pass_on(client, &forward, &mut exchange, down, alarm).await;
    let failure = match done {
        Ok(finished) => {
            wire::give_back(forward.ask.head);
            return finished;
        }
        Err(failure) => failure,
    };
    debug!(request_id = %exchange.request_id, error = %failure, "not forwarded");
    exchange.note(failure.note());
    match failure.answer() {
        Some(answer) => Box::pin(own(client, &answer, form, &mut exchange, down, alarm)).await,
        None => {
            client.abort(false);
            Finished::Last
        }
    }
}

/// Asks upstreams until one answers, as often as the contract allows.
async fn pass_on<C: Client>(
    client: &mut C,
    forward: &Forward,
    exchange: &mut Exchange,
    down: &Downstream,
    alarm: &mut Alarm,
) -> Result<Finished, Failure> {
    let worker = &down.worker;
    let repeatable = forward.is_repeatable;
    let upstreams = &worker.pool.upstreams;
    let (fleet, peer) = (&worker.shared.fleet, down.facts.peer);
    let mut attempts = upstreams.attempts(&forward.upstream.to, fleet, peer, exchange.begun);
    let mut first = true;
    loop {
        let mut choice = attempts.next(repeatable)?;
        let now = exchange.begun;
        let upstream = &forward.upstream;
        let connection = match attempt::kept(&choice, upstream, down, now) {
            Some(kept) => Ok((kept, true)),
            // Boxed: a connection that waits needs no room for it, and most requests none either.
            None => Box::pin(attempt::connection(client, &choice, upstream, down)).await,
        };
        let (connection, reused) = match connection {
            Ok(connection) => connection,
            Err(Failure::Connect(error)) => {
                choice.failed(error.failed());
                if attempts.again(error.failed(), repeatable) {
                    continue;
                }
                return Err(error.into());
            }
            Err(failure) => return Err(failure),
        };
        let mut talk = Talk {
            forward,
            exchange,
            down,
            choice: &mut choice,
            reused,
            // A new connection took its time, which is not the answer's.
            now: if reused && first { now } else { Instant::now() },
        };
        first = false;
        let told = match connection {
            Connection::H1(mut server) => {
                talk.exchange.upstream = Some(server.peer);
                let told = talk.with(client, &mut *server, alarm).await;
                if let Ok(End::Complete { at, .. }) = told
                    && server.is_reusable()
                {
                    server.counted.set_idle();
                    worker.pool.h1.put(choice.key(), server, at);
                }
                told
            }
            Connection::H2(mut stream) => {
                talk.exchange.upstream = Some(stream.peer());
                talk.with(client, &mut *stream, alarm).await
            }
        };
        match told {
            Ok(end) => {
                let End::Complete { reusable, at } = end else {
                    return Ok(Finished::Last);
                };
                exchange.ended(at);
                return Ok(match reusable {
                    true => Finished::Open(at),
                    false => Finished::Last,
                });
            }
            Err((_, Some(failed))) if attempts.again(failed, repeatable) => {}
            Err((failure, failed)) => {
                if failed == Some(Failed::Unsent) {
                    // Once says nothing of a target; a request that it never takes does.
                    choice.failed(Failed::Broke);
                }
                return Err(failure);
            }
        }
    }
}

/// One attempt on a connection.
struct Talk<'t, 'f> {
    forward: &'t Forward,
    exchange: &'t mut Exchange,
    down: &'t Downstream,
    choice: &'t mut Choice<'f>,
    /// Whether the connection was there before.
    reused: bool,
    /// When the request came, or this attempt began.
    now: Instant,
}

impl Talk<'_, '_> {
    /// Asks `server` and passes its answer on; else why not, and what that
    /// means for another try, if one may follow.
    async fn with<C: Client, S: Server>(
        &mut self,
        client: &mut C,
        server: &mut S,
        alarm: &mut Alarm,
    ) -> Result<End, (Failure, Option<Failed>)> {
        let mut run = Run::new(
            self.forward,
            self.exchange,
            self.down,
            self.choice,
            self.now,
        );
        let end = poll_fn(|cx| run.poll(cx, client, server, alarm)).await;
        match end {
            End::Complete { .. } | End::Cut => Ok(end),
            End::Failed(Failure::Broke(error)) => {
                if self.forward.upstream.admission.is_revoked() {
                    return Err((Failure::Revoked, None));
                }
                if self.down.worker.ending.stage() == Stage::Cut {
                    return Err((Failure::Drained, None));
                }
                let failed = judge(&error, server, self.forward, self.reused);
                self.choice.failed(failed);
                // Garbage is an answer of a kind: asking again would not be the first time.
                let heard = server.has_begun() || matches!(error, SideError::Malformed(_));
                Err((Failure::Broke(error), (!heard).then_some(failed)))
            }
            End::Failed(failure) => {
                if matches!(failure, Failure::TimedOut) {
                    self.choice.failed(Failed::TimedOut);
                }
                Err((failure, None))
            }
        }
    }
}

/// What a connection that broke before its answer means for another try.
fn judge<S: Server>(error: &SideError, server: &S, forward: &Forward, reused: bool) -> Failed {
    let bodiless = matches!(forward.ask.body, RequestBody::None | RequestBody::Length(0));
    match error {
        SideError::Broke(_) if server.has_begun() => Failed::Broke,
        SideError::Broke(_) if server.is_unsent() && bodiless => match reused {
            true => Failed::Unsent,
            false => Failed::Connect,
        },
        SideError::Broke(_) if reused => Failed::Stale,
        SideError::Unprocessed if bodiless => Failed::Unsent,
        SideError::Unprocessed => Failed::Stale,
        SideError::Broke(_)
        | SideError::Malformed(_)
        | SideError::Reset(_)
        | SideError::Unaskable => Failed::Broke,
    }
}

/// Answers without an upstream.
async fn own<C: Client>(
    client: &mut C,
    answer: &Answer,
    form: Form,
    exchange: &mut Exchange,
    down: &Downstream,
    alarm: &mut Alarm,
) -> Finished {
    exchange.status = answer.status;
    let text = answer.body(form, exchange.request_id.as_str());
    let digits = text.len().to_string();
    let seconds = answer.retry_after_secs.map(|secs| secs.to_string());
    let message = match form {
        Form::Grpc => answer.grpc_message(),
        Form::Json | Form::Text => String::new(),
    };
    let mut fields: smallvec::SmallVec<[Field<'_>; 5]> =
        smallvec::smallvec![(&b"content-type"[..], form.content_type().as_bytes())];
    let mut status = answer.status;
    if form == Form::Grpc {
        // Its clients look at nothing else.
        status = 200;
        fields.push((b"grpc-status", answer.grpc_status().as_bytes()));
        fields.push((b"grpc-message", message.as_bytes()));
    }
    if form != Form::Grpc || exchange.version != Version::H2 {
        fields.push((b"content-length", digits.as_bytes()));
    }
    if let Some(location) = &answer.location {
        fields.push((b"location", location.as_bytes()));
    }
    if let Some(seconds) = &seconds {
        fields.push((b"retry-after", seconds.as_bytes()));
    }
    let length = text.len() as u64;
    let body = match exchange.is_head {
        true => AnswerBody::None(Some(length)),
        false => AnswerBody::Length(length),
    };
    exchange.look_for_grpc_status(fields.iter().copied());
    client.answer(&AnswerHead {
        status,
        reason: b"",
        fields: &fields,
        body,
        request_id: exchange.request_id.as_str(),
        switched_to: None,
        // Nobody reads the rest of the body any more.
        close: answer.close || client.owes_body() || down.worker.ending.stage() != Stage::Serving,
    });
    let limit = down.worker.shared.config.timeouts.stream_idle;
    let due = Instant::now() + limit;
    let mut put = false;
    let written = poll_fn(|cx| {
        if !std::mem::replace(&mut put, true) {
            let data = match exchange.is_head || text.is_empty() {
                true => Ok(super::side::Room::More),
                false => client.put(cx, Piece::Data(text.as_bytes())),
            };
            let _ = data.and_then(|_| client.put(cx, Piece::End));
        }
        let over = down.worker.ending.stage() == Stage::Cut || alarm.poll_due(cx, due).is_ready();
        match client.poll_flush(cx) {
            std::task::Poll::Ready(written) => std::task::Poll::Ready(written.is_ok()),
            std::task::Poll::Pending if over => std::task::Poll::Ready(false),
            std::task::Poll::Pending => std::task::Poll::Pending,
        }
    })
    .await;
    if !written {
        client.abort(false);
        return Finished::Last;
    }
    if !exchange.is_head {
        exchange.bytes_out += length;
    }
    Finished::Open(Instant::now())
}
