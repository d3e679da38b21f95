//! Working through one binding: collect a batch, decode, hand over, settle.
//!
//! The session outlives a binding: what was delivered and not yet handled when
//! the connection was lost is still handled first.

use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    time::{Duration, Instant, SystemTime},
};

use async_nats::jetstream::{self, AckKind};
use futures_util::{FutureExt as _, TryStreamExt as _};
use tokio::time::{MissedTickBehavior, interval, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    ACK_WAIT, Consumer, DELIVERIES_MAX, Handler, Unavailable, Verdict,
    bind::Bound,
    pull::{Lost, Puller},
};
use crate::{
    backoff::{Backoff, jittered},
    connect::is_connected,
    dead_letter::DeadLetter,
    event::{Decoded, Delivery, Position, decode},
    subject::Kind,
};

/// What is in work is kept alive this often: three chances within the ack wait.
const KEEP_ALIVE: Duration = Duration::from_secs(ACK_WAIT.as_secs() / 3);
/// Pauses while the world is at fault.
const UNAVAILABLE_FIRST: Duration = Duration::from_millis(100);
const UNAVAILABLE_MAX: Duration = Duration::from_secs(5);
/// How long an acknowledgement may wait for the client's queue.
const ACK_SEND_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a batch may take after the shutdown began.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How often the gauges are read from the server.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(30);
const STATISTICS_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a binding ended.
pub(super) enum End {
    Lost(Lost),
    Shutdown,
}

/// The time to stop came while a batch was in work.
struct Interrupted;

pub(super) struct Session<'a, H> {
    consumer: &'a Consumer,
    handler: H,
    /// Delivered, not yet looked at.
    held: VecDeque<jetstream::Message>,
    progress: bool,
    /// Handled up to here, all was handled that was there at the first binding.
    catch_up_to: Option<u64>,
}

/// A good event, waiting for its verdict.
struct InWork {
    message: jetstream::Message,
    kind: Kind,
}

/// A bad or failed event, waiting to be a dead letter.
struct Dead {
    message: jetstream::Message,
    kind: Kind,
    event_id: String,
    position: Position,
    deliveries: u64,
    reason: String,
}

impl<'a, H: Handler> Session<'a, H> {
    pub(super) fn new(consumer: &'a Consumer, handler: H) -> Self {
        Self {
            consumer,
            handler,
            held: VecDeque::new(),
            progress: false,
            catch_up_to: None,
        }
    }

    /// Whether anything was handled since the last call.
    pub(super) fn took_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// Works until the binding is lost or the time to stop has come.
    pub(super) async fn run(&mut self, bound: Bound, shutdown: &CancellationToken) -> End {
        let Bound {
            mut puller,
            stream,
            mut consumer,
            pending,
            last_sequence,
        } = bound;
        let names = self.consumer.spec.stream.name;
        self.consumer.metrics.pending(names, pending);
        if pending == 0 && self.held.is_empty() {
            self.consumer.caught_up.send_replace(true);
        }
        // A stream that was made anew starts again at 1.
        let target = self
            .catch_up_to
            .map_or(last_sequence, |target| target.min(last_sequence));
        self.catch_up_to = Some(target);
        let mut statistics = interval(STATISTICS_INTERVAL);
        statistics.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let first = if let Some(message) = self.held.pop_front() {
                message
            } else {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return End::Shutdown,
                    next = puller.next() => match next {
                        Ok(message) => message,
                        Err(lost) => return End::Lost(lost),
                    },
                    _ = statistics.tick() => {
                        self.read_statistics(&stream, &mut consumer).await;
                        continue;
                    }
                }
            };
            let (batch, lost) = self.collect(first, &mut puller);
            if let Err(Interrupted) = self.work(batch, &mut puller, shutdown).await {
                return End::Shutdown;
            }
            self.progress = true;
            if let Some(lost) = lost {
                return End::Lost(lost);
            }
        }
    }

    /// Gives back what was delivered and not handled, for the next process.
    pub(super) async fn hand_back(&mut self) {
        let held = std::mem::take(&mut self.held);
        for message in &held {
            self.acknowledge(message, AckKind::Nak(None)).await;
        }
        // The client sends on its own; give it the chance before we are gone.
        let _ = timeout(ACK_SEND_TIMEOUT, self.consumer.js.client().flush()).await;
    }

    /// Whatever is there, without waiting for more.
    fn collect(
        &mut self,
        first: jetstream::Message,
        puller: &mut Puller,
    ) -> (Vec<jetstream::Message>, Option<Lost>) {
        let mut batch = vec![first];
        while batch.len() < self.consumer.spec.batch_max {
            if let Some(message) = self.held.pop_front() {
                batch.push(message);
                continue;
            }
            match puller.try_next() {
                Ok(Some(message)) => batch.push(message),
                Ok(None) => break,
                Err(lost) => return (batch, Some(lost)),
            }
        }
        (batch, None)
    }

    async fn work(
        &mut self,
        batch: Vec<jetstream::Message>,
        puller: &mut Puller,
        shutdown: &CancellationToken,
    ) -> Result<(), Interrupted> {
        let spec = &self.consumer.spec;
        let mut deliveries = Vec::with_capacity(batch.len());
        let mut in_work = Vec::with_capacity(batch.len());
        let mut dead = Vec::new();
        let mut reached = None;
        for message in batch {
            let (position, count, pending) = match message.info() {
                Ok(info) => (
                    Position {
                        stream: info.stream.to_owned(),
                        sequence: info.stream_sequence,
                        published_at: info.published.into(),
                    },
                    u64::try_from(info.delivered).unwrap_or(0),
                    info.pending,
                ),
                Err(error) => {
                    warn!(subject = %message.subject, %error, "not a message of a stream");
                    continue;
                }
            };
            reached = Some((
                position.sequence.max(reached.map_or(0, |(seq, _)| seq)),
                pending,
            ));
            let decoded = decode(
                &message.subject,
                &message.payload,
                message.headers.as_ref(),
                &position,
            );
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
                    self.consumer.metrics.event("dlq", "ignored");
                    self.acknowledge(&message, AckKind::Ack).await;
                }
                Decoded::Unknown => {
                    debug!(subject = %message.subject, "unknown subject ignored");
                    self.consumer.metrics.event("unknown", "unknown");
                    self.acknowledge(&message, AckKind::Ack).await;
                }
            }
        }
        if !deliveries.is_empty() {
            let verdicts = self
                .hand_over(&deliveries, &in_work, &dead, puller, shutdown)
                .await?;
            self.settle(deliveries, in_work, verdicts, &mut dead).await;
        }
        self.bury(dead, puller, shutdown).await?;
        if let Some((sequence, pending)) = reached {
            self.consumer.metrics.pending(spec.stream.name, pending);
            if pending == 0 || self.catch_up_to.is_some_and(|target| sequence >= target) {
                self.consumer
                    .caught_up
                    .send_if_modified(|done| !std::mem::replace(done, true));
            }
        }
        Ok(())
    }

    /// Gets verdicts, however long the world is at fault.
    async fn hand_over(
        &mut self,
        deliveries: &[Delivery],
        in_work: &[InWork],
        dead: &[Dead],
        puller: &mut Puller,
        shutdown: &CancellationToken,
    ) -> Result<Vec<Verdict>, Interrupted> {
        let started = Instant::now();
        let mut backoff = Backoff::new(UNAVAILABLE_FIRST, UNAVAILABLE_MAX);
        let messages: Vec<_> = in_work
            .iter()
            .map(|work| &work.message)
            .chain(dead.iter().map(|d| &d.message))
            .collect();
        let mut keep_alive = keep_alive();
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
            let outcome = {
                let handling = AssertUnwindSafe(self.handler.handle(part)).catch_unwind();
                tokio::pin!(handling);
                loop {
                    tokio::select! {
                        biased;
                        outcome = &mut handling => break outcome,
                        () = grace(shutdown) => return Err(Interrupted),
                        _ = keep_alive.tick() => {
                            hold(&mut self.held, puller);
                            keep(self.consumer, &messages, &self.held).await;
                        }
                    }
                }
            };
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
                                hold(&mut self.held, puller);
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
                    self.acknowledge(&work.message, AckKind::Ack).await;
                }
                Verdict::Stale => {
                    debug!(id, r#type = kind, %entity, latency_us, result, "event");
                    self.acknowledge(&work.message, AckKind::Ack).await;
                }
                Verdict::Retry(reason) if deliveries < DELIVERIES_MAX => {
                    let delay = self.retry_delay(deliveries);
                    warn!(id, r#type = kind, %entity, latency_us, result, reason, deliveries, "event");
                    self.acknowledge(&work.message, AckKind::Nak(Some(delay)))
                        .await;
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

    /// Makes dead letters; an original is acknowledged when the stream has its
    /// dead letter, not before.
    async fn bury(
        &mut self,
        dead: Vec<Dead>,
        puller: &mut Puller,
        shutdown: &CancellationToken,
    ) -> Result<(), Interrupted> {
        let mut backoff = Backoff::new(UNAVAILABLE_FIRST, UNAVAILABLE_MAX);
        let mut kept = Instant::now();
        let mut rest = VecDeque::from(dead);
        while let Some(one) = rest.front() {
            let letter = DeadLetter {
                kind: one.kind,
                message: &one.message,
                stream: &one.position.stream,
                consumer: self.consumer.spec.durable,
                sequence: one.position.sequence,
                deliveries: one.deliveries,
                reason: &one.reason,
            };
            let published = tokio::select! {
                biased;
                published = letter.publish(&self.consumer.js) => published,
                () = grace(shutdown) => return Err(Interrupted),
            };
            match published {
                Ok(()) => {
                    let latency = one.position.published_at.elapsed().unwrap_or_default();
                    error!(
                        id = one.event_id, r#type = one.kind.name(), subject = %one.message.subject,
                        latency_us = latency.as_micros(), result = "dead_lettered",
                        reason = one.reason, deliveries = one.deliveries, "event"
                    );
                    self.consumer
                        .metrics
                        .event(one.kind.label(), "dead_lettered");
                    self.consumer
                        .metrics
                        .dead_lettered(self.consumer.spec.stream.name);
                    self.acknowledge(&one.message, AckKind::Ack).await;
                    rest.pop_front();
                    backoff.reset();
                }
                Err(error) => {
                    let pause = backoff.next();
                    warn!(%error, pause_ms = pause.as_millis(), "dead letter cannot be stored yet");
                    if shutdown.run_until_cancelled(sleep(pause)).await.is_none() {
                        return Err(Interrupted);
                    }
                }
            }
            if kept.elapsed() > KEEP_ALIVE {
                kept = Instant::now();
                hold(&mut self.held, puller);
                let messages: Vec<_> = rest.iter().map(|dead| &dead.message).collect();
                keep(self.consumer, &messages, &self.held).await;
            }
        }
        Ok(())
    }

    async fn acknowledge(&self, message: &jetstream::Message, kind: AckKind) {
        acknowledge(self.consumer, message, kind).await;
    }

    /// Gauges that no event carries. Misses are left to the next time.
    async fn read_statistics(
        &self,
        stream: &jetstream::stream::Stream,
        consumer: &mut jetstream::consumer::PullConsumer,
    ) {
        if !is_connected(&self.consumer.js.client()) {
            return;
        }
        let name = self.consumer.spec.stream.name;
        let read = async {
            let info = consumer.info().await.ok()?;
            self.consumer.metrics.pending(name, info.num_pending);
            let mut counts = stream.info_with_subjects("*.*.*.dlq").await.ok()?;
            let mut messages = 0_u64;
            while let Some((_, count)) = counts.try_next().await.ok()? {
                messages = messages.saturating_add(count as u64);
            }
            self.consumer.metrics.dlq_messages(name, messages);
            Some(())
        };
        if !matches!(timeout(STATISTICS_TIMEOUT, read).await, Ok(Some(()))) {
            debug!(stream = name, "statistics not read");
        }
    }
}

/// Ready when a shutdown has been asked for and its grace is over.
async fn grace(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    sleep(SHUTDOWN_GRACE).await;
}

fn keep_alive() -> tokio::time::Interval {
    let period = jittered(KEEP_ALIVE);
    let mut interval = interval_at(tokio::time::Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Takes what has arrived meanwhile, at most the credit given, so that it is
/// kept alive with the rest. A lost binding is noticed after the batch.
fn hold(held: &mut VecDeque<jetstream::Message>, puller: &mut Puller) {
    while let Ok(Some(message)) = puller.try_next() {
        held.push_back(message);
    }
}

/// Tells the server that these are still in work.
async fn keep(
    consumer: &Consumer,
    messages: &[&jetstream::Message],
    held: &VecDeque<jetstream::Message>,
) {
    if !is_connected(&consumer.js.client()) {
        return;
    }
    for message in messages.iter().copied().chain(held) {
        acknowledge(consumer, message, AckKind::Progress).await;
    }
}

/// Sends an acknowledgement. A lost one means another delivery, which the
/// handler finds stale.
async fn acknowledge(consumer: &Consumer, message: &jetstream::Message, kind: AckKind) {
    let label = match kind {
        AckKind::Ack => "ack",
        AckKind::Nak(_) => "nak",
        AckKind::Progress => "progress",
        AckKind::Next | AckKind::Term => "other",
    };
    match timeout(ACK_SEND_TIMEOUT, message.ack_with(kind)).await {
        Ok(Ok(())) => consumer.metrics.ack(consumer.spec.stream.name, label),
        Ok(Err(error)) => debug!(%error, label, "acknowledgement not sent"),
        Err(_) => debug!(label, "acknowledgement not sent in time"),
    }
}
