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
use super::plan::{Forward, Plan, Turn};
use super::side::{AnswerBody, AnswerHead, Client, Field, Piece, Server};
use super::wire;
use crate::listener::Stage;

mod attempt;
mod failure;
mod run;

use failure::Failure;
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
            return own(client, &answer, form, &mut exchange, down, alarm).await;
        }
        Plan::Forward(forward) => forward,
    };
    let done = pass_on(client, *forward, &mut exchange, down, alarm).await;
    let failure = match done {
        Ok(finished) => return finished,
        Err(failure) => failure,
    };
    debug!(request_id = %exchange.request_id, error = %failure, "not forwarded");
    exchange.note(failure.note());
    match failure.answer() {
        Some(answer) => own(client, &answer, form, &mut exchange, down, alarm).await,
        None => {
            client.abort(false);
            Finished::Last
        }
    }
}

/// Asks upstreams until one answers, as often as the contract allows.
async fn pass_on<C: Client>(
    client: &mut C,
    forward: Forward,
    exchange: &mut Exchange,
    down: &Downstream,
    alarm: &mut Alarm,
) -> Result<Finished, Failure> {
    let worker = &down.worker;
    let mut retries = 0;
    loop {
        // The second time nothing is left to chance.
        let reuse = retries < RETRIES_MAX;
        let (mut server, reused) =
            attempt::connection(client, &forward.upstream, down, exchange.begun, reuse).await?;
        exchange.upstream = Some(server.peer);
        let now = match retries {
            0 => exchange.begun,
            _ => Instant::now(),
        };
        let mut run = Run::new(&forward, exchange, down, now);
        let end = poll_fn(|cx| run.poll(cx, client, &mut server, alarm)).await;
        match end {
            End::Complete { reusable, at } => {
                exchange.ended(at);
                wire::give_back(forward.ask.head);
                if server.is_reusable() {
                    server.counted = worker.shared.metrics.upstream_idle();
                    worker.pool.h1.put(forward.upstream.key, server, at);
                }
                return Ok(match reusable {
                    true => Finished::Open(at),
                    false => Finished::Last,
                });
            }
            End::Cut => return Ok(Finished::Last),
            End::Failed(Failure::Broke(error)) => {
                if forward.upstream.admission.is_revoked() {
                    return Err(Failure::Revoked);
                }
                if worker.ending.stage() == Stage::Cut {
                    return Err(Failure::Drained);
                }
                // Garbage is an answer of a kind: asking again would not be the first time.
                let died = matches!(error, super::side::SideError::Broke(_)) && !server.has_begun();
                let again = run_may_repeat(&forward, server.is_unsent());
                if !(reused && died && again) {
                    return Err(Failure::Broke(error));
                }
                retries += 1;
            }
            End::Failed(failure) => return Err(failure),
        }
    }
}

/// Whether nothing depends on how often the request arrives.
fn run_may_repeat(forward: &Forward, unsent: bool) -> bool {
    use super::side::RequestBody;
    let bodiless = matches!(forward.ask.body, RequestBody::None | RequestBody::Length(0));
    forward.is_repeatable || (unsent && bodiless)
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
    let mut fields: smallvec::SmallVec<[Field<'_>; 4]> = smallvec::smallvec![
        (&b"content-type"[..], form.content_type().as_bytes()),
        (&b"content-length"[..], digits.as_bytes()),
    ];
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
    client.answer(&AnswerHead {
        status: answer.status,
        reason: b"",
        fields: &fields,
        body,
        request_id: exchange.request_id.as_str(),
        switched_to: None,
        close: answer.close || down.worker.ending.stage() != Stage::Serving,
    });
    let limit = down.worker.shared.config.timeouts.stream_idle;
    let due = Instant::now() + limit;
    let mut put = false;
    let written = poll_fn(|cx| {
        if !std::mem::replace(&mut put, true) {
            let data = match exchange.is_head {
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

const RETRIES_MAX: u32 = 2;
