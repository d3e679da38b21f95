//! A batch in work: decoded, handed over however long the world is at fault, and
//! each event settled by its verdict.
//!
//! Where batches come from, and when it ends, is the session's business.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant, SystemTime},
};

use async_nats::jetstream::AckKind;
use futures_util::FutureExt as _;
use tokio::time::{Instant as Deadline, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    DELIVERIES_MAX, Handler, Unavailable, Verdict,
    acks::{acknowledge_by, grace, hold, keep, send_deadline, ticks},
    burial::Dead,
    session::Session,
};
use crate::{
    backoff::Backoff,
    bus::{AnySubscription, Message},
    event::{Decoded, Delivery, Position, decode},
    event_store::keep_letter,
    subject::Kind,
};

/// Pauses while the world is at fault.
pub(super) const UNAVAILABLE_FIRST: Duration = Duration::from_millis(100);
pub(super) const UNAVAILABLE_MAX: Duration = Duration::from_secs(5);

/// One copy of a dead letter in the archive.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// After so many in a row that took longer the rest of the batch, whose events wait, goes without.
const ARCHIVE_LATE_MAX: usize = 2;
/// Likewise after so much time for all that were copied.
const ARCHIVE_BATCH_MAX: Duration = Duration::from_secs(5);

/// The time to stop came while a batch was in work.
pub(super) struct Interrupted;

/// What a batch's copies of dead letters have cost.
#[derive(Default)]
struct Archiving {
    /// Not made in time, in a row.
    late: usize,
    spent: Duration,
}

impl Archiving {
    fn is_over(&self) -> bool {
        self.late >= ARCHIVE_LATE_MAX || self.spent >= ARCHIVE_BATCH_MAX
    }
}

/// A good event, waiting for its verdict.
struct InWork {
    message: Message,
    kind: Kind,
}

impl<H: Handler> Session<'_, H> {
    pub(super) async fn work(
        &mut self,
        batch: Vec<Message>,
        from: &mut AnySubscription,
        shutdown: &CancellationToken,
    ) -> Result<(), Interrupted> {
        let spec = &self.consumer.spec;
        let mut deliveries = Vec::with_capacity(batch.len());
        let mut in_work = Vec::with_capacity(batch.len());
        let mut dead = Vec::new();
        let mut handled = Vec::with_capacity(batch.len());
        let mut archiving = Archiving::default();
        let deadline = send_deadline();
        for message in batch {
            let (position, count, pending) = match message.info() {
                Ok(info) => (
                    Position {
                        stream: info.stream.to_owned(),
                        sequence: info.stream_sequence,
                        published_at: info.published,
                    },
                    info.delivered,
                    info.pending,
                ),
                Err(error) => {
                    warn!(subject = %message.subject, %error, "not a message of a stream");
                    continue;
                }
            };
            handled.push((position.sequence, count, pending));
            let decoded = decode(
                &message.subject,
                &message.payload,
                message.headers.as_ref(),
                &position,
            );
            let decoded = match &self.consumer.verifier {
                Some(verifier) => verifier.judge(
                    &message.subject,
                    &message.payload,
                    message.headers.as_ref(),
                    decoded,
                ),
                None => decoded,
            };
            match decoded {
                Decoded::Event(event) => {
                    in_work.push(InWork {
                        message,
                        kind: event.kind,
                    });
                    deliveries.push(Delivery {
                        event: *event,
                        position,
                        deliveries: count,
                    });
                }
                Decoded::Bad(kind, bad) => dead.push(Dead {
                    message,
                    kind,
                    event_id: String::new(),
                    position,
                    deliveries: count,
                    reason: bad.to_string(),
                }),
                Decoded::DeadLetter => {
                    self.consumer.letters_came.notify_one();
                    self.archive(&message, &mut archiving, shutdown).await;
                    self.consumer.metrics.event("dlq", "ignored");
                    self.acknowledge(&message, AckKind::Ack, deadline).await;
                }
                Decoded::Unknown => {
                    debug!(subject = %message.subject, "unknown subject ignored");
                    self.consumer.metrics.event("unknown", "unknown");
                    self.acknowledge(&message, AckKind::Ack, deadline).await;
                }
            }
        }
        if !deliveries.is_empty() {
            let judged = self
                .hand_over(&deliveries, &in_work, &dead, from, shutdown)
                .await;
            let Ok(verdicts) = judged else {
                let bad = dead.into_iter().map(|dead| dead.message);
                self.held
                    .extend(in_work.into_iter().map(|work| work.message).chain(bad));
                return Err(Interrupted);
            };
            self.settle(deliveries, in_work, verdicts, &mut dead).await;
        }
        // Those that did not decode came first.
        dead.sort_by_key(|dead| dead.position.sequence);
        self.bury(dead, from, shutdown).await?;
        if let Some((_, _, pending)) = handled.last() {
            self.consumer.metrics.pending(spec.stream.name, *pending);
        }
        for (sequence, deliveries, pending) in handled {
            self.catch_up.handled(sequence, deliveries, pending);
        }
        self.tell_if_caught_up();
        Ok(())
    }

    /// Gets verdicts, however long the world is at fault.
    async fn hand_over(
        &mut self,
        deliveries: &[Delivery],
        in_work: &[InWork],
        dead: &[Dead],
        from: &mut AnySubscription,
        shutdown: &CancellationToken,
    ) -> Result<Vec<Verdict>, Interrupted> {
        let started = Instant::now();
        let mut backoff = Backoff::new(UNAVAILABLE_FIRST, UNAVAILABLE_MAX);
        let messages: Vec<_> = in_work
            .iter()
            .map(|work| &work.message)
            .chain(dead.iter().map(|d| &d.message))
            .collect();
        let mut keep_alive = ticks(self.keep_alive);
        // One grace for all attempts.
        let grace = grace(shutdown);
        tokio::pin!(grace);
        let mut single = false;
        let mut verdicts = Vec::with_capacity(deliveries.len());
        while verdicts.len() < deliveries.len() {
            // All at once, or one by one after a panic.
            let rest = deliveries.get(verdicts.len()..).unwrap_or_default();
            let part = if single {
                rest.get(..1).unwrap_or(rest)
            } else {
                rest
            };
            self.consumer.breaker.ask();
            let outcome = {
                let handling = AssertUnwindSafe(self.handler.handle(part)).catch_unwind();
                tokio::pin!(handling);
                loop {
                    tokio::select! {
                        biased;
                        outcome = &mut handling => break outcome,
                        () = &mut grace => return Err(Interrupted),
                        _ = keep_alive.tick() => {
                            hold(&mut self.held, from);
                            keep(self.consumer, &messages, &self.held).await;
                        }
                    }
                }
            };
            match outcome {
                Ok(Err(Unavailable(_))) => self.consumer.breaker.open(),
                Ok(Ok(_)) | Err(_) => self.consumer.breaker.close(),
            }
            match outcome {
                Ok(Ok(mut given)) => {
                    given.truncate(part.len());
                    given.resize_with(part.len(), || {
                        Verdict::Retry("the handler gave no verdict".into())
                    });
                    verdicts.append(&mut given);
                }
                Ok(Err(Unavailable(reason))) => {
                    if shutdown.is_cancelled() {
                        return Err(Interrupted);
                    }
                    let pause = backoff.next();
                    warn!(
                        stream = self.consumer.spec.stream.name,
                        reason,
                        events = part.len(),
                        pause_ms = pause.as_millis(),
                        "consumption pauses"
                    );
                    let pause = sleep(pause);
                    tokio::pin!(pause);
                    loop {
                        tokio::select! {
                            () = shutdown.cancelled() => return Err(Interrupted),
                            () = &mut pause => break,
                            _ = keep_alive.tick() => {
                                hold(&mut self.held, from);
                                keep(self.consumer, &messages, &self.held).await;
                            }
                        }
                    }
                }
                Err(_panic) if part.len() == 1 => {
                    let event = part
                        .first()
                        .map(|delivery| delivery.event.event_id.as_str());
                    error!(event_id = event, "the handler panicked on this event");
                    verdicts.push(Verdict::Retry("the handler panicked".into()));
                }
                Err(_panic) => {
                    error!(
                        events = part.len(),
                        "the handler panicked; events go one by one"
                    );
                    single = true;
                }
            }
        }
        let took = started.elapsed();
        for delivery in deliveries {
            self.consumer
                .metrics
                .handled(delivery.event.kind.label(), took);
        }
        Ok(verdicts)
    }

    /// Acknowledges, delays, or marks for burial.
    async fn settle(
        &self,
        deliveries: Vec<Delivery>,
        in_work: Vec<InWork>,
        verdicts: Vec<Verdict>,
        dead: &mut Vec<Dead>,
    ) {
        let now = SystemTime::now();
        let deadline = send_deadline();
        for ((delivery, work), verdict) in deliveries.into_iter().zip(in_work).zip(verdicts) {
            let Delivery {
                event,
                position,
                deliveries,
            } = delivery;
            let subject = work.kind.label();
            let latency = now
                .duration_since(position.published_at)
                .unwrap_or_default();
            let result = match &verdict {
                Verdict::Applied => "applied",
                Verdict::Reject(_) => "rejected",
                Verdict::Retry(_) => "retried",
                Verdict::Stale => "stale",
            };
            if !matches!(verdict, Verdict::Reject(_)) {
                self.consumer.metrics.event(subject, result);
            }
            let latency_us = latency.as_micros();
            let (id, kind, entity) = (&event.event_id, work.kind.name(), &event.entity);
            match verdict {
                Verdict::Applied => {
                    info!(id, r#type = kind, %entity, latency_us, result, "event");
                    self.consumer.metrics.applied(subject, latency);
                    self.acknowledge(&work.message, AckKind::Ack, deadline)
                        .await;
                }
                Verdict::Stale => {
                    debug!(id, r#type = kind, %entity, latency_us, result, "event");
                    self.acknowledge(&work.message, AckKind::Ack, deadline)
                        .await;
                }
                Verdict::Retry(reason) if deliveries < DELIVERIES_MAX => {
                    let delay = self.retry_delay(deliveries);
                    warn!(id, r#type = kind, %entity, latency_us, result, reason, deliveries, "event");
                    let nak = AckKind::Nak(Some(delay));
                    self.acknowledge(&work.message, nak, deadline).await;
                }
                Verdict::Retry(reason) | Verdict::Reject(reason) => dead.push(Dead {
                    message: work.message,
                    kind: work.kind,
                    event_id: event.event_id,
                    position,
                    deliveries,
                    reason,
                }),
            }
        }
    }

    /// The pause before the delivery after the `deliveries`th.
    fn retry_delay(&self, deliveries: u64) -> Duration {
        let delays = &self.consumer.retry_delays;
        let index = usize::try_from(deliveries.saturating_sub(1)).unwrap_or(usize::MAX);
        delays
            .get(index)
            .or_else(|| delays.last())
            .copied()
            .unwrap_or_default()
    }

    async fn acknowledge(&self, message: &Message, kind: AckKind, deadline: Deadline) {
        acknowledge_by(self.consumer, message, kind, deadline).await;
    }

    /// A copy: that it cannot be made now keeps nothing from being handled, the
    /// stream has the letter for a week.
    async fn archive(
        &self,
        letter: &Message,
        archiving: &mut Archiving,
        shutdown: &CancellationToken,
    ) {
        let Some(database) = &self.consumer.archive else {
            return;
        };
        if archiving.is_over() || shutdown.is_cancelled() {
            warn!(subject = %letter.subject, "dead letter not archived: no time for it");
            return;
        }
        let began = Deadline::now();
        let kept = timeout(ARCHIVE_TIMEOUT, keep_letter(database, letter)).await;
        archiving.spent += began.elapsed();
        match kept {
            Ok(kept) => {
                archiving.late = 0;
                if let Err(error) = kept {
                    warn!(%error, "dead letter not archived");
                }
            }
            Err(_) => {
                archiving.late += 1;
                warn!(subject = %letter.subject, "dead letter not archived in time");
            }
        }
    }
}
