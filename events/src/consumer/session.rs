//! Working through one binding: collect a batch, decode, hand over, settle.
//!
//! The session outlives a binding: what was delivered and not yet handled when
//! the connection was lost is still handled first.

use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    time::{Duration, Instant, SystemTime},
};

use async_nats::jetstream::AckKind;
use futures_util::FutureExt as _;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    ACK_WAIT, Consumer, DELIVERIES_MAX, Handler, Unavailable, Verdict,
    acks::{acknowledge, grace, hold, keep, keep_alive, ticks},
    bound::Bound,
    burial::Dead,
};
use crate::{
    backoff::Backoff,
    bus::{AnySubscription, Binding, Bus as _, Lost, Message, StateError, Subscription as _},
    dead_letter::DLQ_SUBJECTS,
    event::{Decoded, Delivery, Position, decode},
    event_store::keep_letter,
    subject::Kind,
};

/// Pauses while the world is at fault.
pub(super) const UNAVAILABLE_FIRST: Duration = Duration::from_millis(100);
pub(super) const UNAVAILABLE_MAX: Duration = Duration::from_secs(5);
/// How long handing back may take in all.
const HAND_BACK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the gauges are read from the server.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(10);
/// How soon after dead letters came.
const STATISTICS_SOON: Duration = Duration::from_millis(100);
const STATISTICS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a copy of a dead letter may take.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often to look whether what was delivered before is acknowledged by now.
const SETTLED_POLL: Duration = Duration::from_millis(250);

/// Why a binding ended.
pub(super) enum End {
    Lost(Lost),
    Shutdown,
}

/// The time to stop came while a batch was in work.
pub(super) struct Interrupted;

pub(super) struct Session<'a, H> {
    pub(super) consumer: &'a Consumer,
    handler: H,
    /// When the stream of the last binding was made.
    stream_created: Option<i64>,
    /// Delivered, not yet looked at.
    pub(super) held: VecDeque<Message>,
    pub(super) keep_alive: Duration,
    progress: bool,
    /// Handled up to here, all was handled that was there at the first binding
    /// since the last time that all was handled.
    catch_up_to: Option<u64>,
    /// Whether that is so.
    is_through: bool,
    /// Up to here some were delivered before and are not acknowledged.
    unsettled_to: Option<u64>,
    /// There are more dead letters than the gauge says, perhaps.
    letters_came: bool,
}

/// A good event, waiting for its verdict.
struct InWork {
    message: Message,
    kind: Kind,
}

impl<'a, H: Handler> Session<'a, H> {
    pub(super) fn new(consumer: &'a Consumer, handler: H) -> Self {
        Self {
            consumer,
            handler,
            stream_created: None,
            held: VecDeque::new(),
            keep_alive: keep_alive(ACK_WAIT),
            progress: false,
            catch_up_to: None,
            is_through: false,
            unsettled_to: None,
            letters_came: false,
        }
    }

    /// Whether anything was handled since the last call.
    pub(super) fn took_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// Lets the handler look at a fresh binding, before anything of it is handed
    /// over; whether all that was delivered before is in effect.
    pub(super) async fn greet(
        &mut self,
        bound: &Binding<AnySubscription>,
    ) -> Result<bool, Unavailable> {
        let before = self.stream_created.replace(bound.stream.created);
        if before.is_some_and(|before| before != bound.stream.created) && !self.held.is_empty() {
            warn!(
                stream = self.consumer.spec.stream.name,
                events = self.held.len(),
                "the stream was made anew: what it had delivered before is dropped"
            );
            self.held.clear();
        }
        let binding = Bound::new(self.consumer, bound);
        let bus = &self.consumer.bus;
        let connects = bus.connects();
        tokio::select! {
            settled = self.handler.bound(&binding) => settled,
            () = bus.lost(connects) => Err(Unavailable("NATS went away".into())),
        }
    }

    /// Works until the binding is lost or the time to stop has come. `settled`:
    /// what was delivered before is in effect and need not be waited for.
    pub(super) async fn run(
        &mut self,
        bound: Binding<AnySubscription>,
        settled: bool,
        shutdown: &CancellationToken,
    ) -> End {
        let Binding {
            subscription: mut from,
            consumer: state,
            stream,
            ack_wait,
        } = bound;
        self.consumer
            .metrics
            .pending(self.consumer.spec.stream.name, state.pending);
        let kept = self.consumer.last.take(stream.created);
        self.held.extend(kept);
        self.is_through = state.pending == 0 && self.held.is_empty();
        self.unsettled_to = (state.ack_pending > 0 && !settled).then_some(state.delivered);
        self.tell_if_caught_up();
        // A stream that was made anew starts again at 1.
        let last = stream.last_sequence;
        let target = self.catch_up_to.map_or(last, |target| target.min(last));
        self.catch_up_to = Some(target);
        // The consumer may be someone else's, with another ack wait.
        self.keep_alive = keep_alive(ack_wait);
        let mut statistics = interval(STATISTICS_INTERVAL);
        statistics.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut statistics_soon = false;
        let mut settled = interval(SETTLED_POLL);
        settled.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            let first = if let Some(message) = self.held.pop_front() {
                message
            } else {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break End::Shutdown,
                    _ = settled.tick(), if self.is_through && self.unsettled_to.is_some() => {
                        self.look_if_settled(&mut from).await;
                        continue;
                    }
                    next = from.next() => match next {
                        Ok(message) => message,
                        Err(lost) => break End::Lost(lost),
                    },
                    _ = statistics.tick() => {
                        statistics_soon = false;
                        self.read_statistics(&mut from).await;
                        continue;
                    }
                }
            };
            let (batch, lost) = self.collect(first, &mut from);
            if let Err(Interrupted) = self.work(batch, &mut from, shutdown).await {
                break End::Shutdown;
            }
            self.progress = true;
            if std::mem::take(&mut self.letters_came) && !statistics_soon {
                statistics_soon = true;
                statistics.reset_after(STATISTICS_SOON);
            }
            if shutdown.is_cancelled() {
                break End::Shutdown;
            }
            if let Some(lost) = lost {
                break End::Lost(lost);
            }
        };
        // What has arrived is handled after the next binding, or handed back.
        hold(&mut self.held, &mut from);
        if matches!(end, End::Shutdown) {
            // What is handed back must not come to us once more.
            self.held.extend(from.end().await);
        }
        if matches!(end, End::Lost(_)) && self.consumer.caught_up.send_replace(false) {
            self.catch_up_to = None;
        }
        end
    }

    fn tell_if_caught_up(&self) {
        if self.is_through && self.unsettled_to.is_none() {
            self.consumer
                .caught_up
                .send_if_modified(|done| !std::mem::replace(done, true));
        }
    }

    /// What a process before us left unacknowledged comes again after the ack
    /// wait; until then it is in effect for nobody.
    async fn look_if_settled(&mut self, from: &mut AnySubscription) {
        let bus = &self.consumer.bus;
        let connects = bus.connects();
        let state = tokio::select! {
            state = timeout(STATISTICS_TIMEOUT, from.state()) => state,
            () = bus.lost(connects) => return,
        };
        let Ok(Ok(state)) = state else { return };
        if state.ack_pending == 0 || self.unsettled_to.is_some_and(|to| state.ack_floor >= to) {
            self.unsettled_to = None;
            self.tell_if_caught_up();
        }
    }

    /// Gives back what was delivered and not handled, for the next process.
    /// What will not be delivered again is kept for the next consumer of this
    /// process; if there is none, it becomes a dead letter instead of vanishing.
    pub(super) async fn hand_back(&mut self) {
        let consumer = self.consumer;
        let mut held = std::mem::take(&mut self.held);
        if let Some(created) = self.stream_created {
            if consumer.last.is_keeping() {
                held.retain(|message| {
                    let is_last = Dead::at_last_delivery(message).is_some();
                    if is_last {
                        consumer
                            .last
                            .push(created, self.keep_alive, message.clone());
                    }
                    !is_last
                });
            } else {
                // The binding that would have taken them never came.
                held.extend(consumer.last.take(created));
            }
        }
        let give_back = async {
            for message in held {
                if let Some(dead) = Dead::at_last_delivery(&message) {
                    // A failure is not silent: the log has had its reason.
                    let _ = dead.bury(consumer).await;
                } else {
                    acknowledge(consumer, &message, AckKind::Nak(None)).await;
                }
            }
            // The client sends on its own; give it the chance before we go.
            consumer.bus.flush().await;
        };
        if consumer.bus.is_connected() {
            let _ = timeout(HAND_BACK_TIMEOUT, give_back).await;
        }
    }

    /// Whatever is there, without waiting for more.
    fn collect(
        &mut self,
        first: Message,
        from: &mut AnySubscription,
    ) -> (Vec<Message>, Option<Lost>) {
        let mut batch = vec![first];
        while batch.len() < self.consumer.spec.batch_max {
            if let Some(message) = self.held.pop_front() {
                batch.push(message);
                continue;
            }
            match from.try_next() {
                Ok(Some(message)) => batch.push(message),
                Ok(None) => break,
                Err(lost) => return (batch, Some(lost)),
            }
        }
        (batch, None)
    }

    async fn work(
        &mut self,
        batch: Vec<Message>,
        from: &mut AnySubscription,
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
                    self.letters_came = true;
                    self.archive(&message).await;
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
            let handled = self
                .hand_over(&deliveries, &in_work, &dead, from, shutdown)
                .await;
            let Ok(verdicts) = handled else {
                let bad = dead.into_iter().map(|dead| dead.message);
                self.held
                    .extend(in_work.into_iter().map(|work| work.message).chain(bad));
                return Err(Interrupted);
            };
            self.settle(deliveries, in_work, verdicts, &mut dead).await;
        }
        self.letters_came |= !dead.is_empty();
        // Those that did not decode came first.
        dead.sort_by_key(|dead| dead.position.sequence);
        self.bury(dead, from, shutdown).await?;
        if let Some((sequence, pending)) = reached {
            self.consumer.metrics.pending(spec.stream.name, pending);
            if pending == 0 || self.catch_up_to.is_some_and(|target| sequence >= target) {
                self.is_through = true;
                self.tell_if_caught_up();
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

    async fn acknowledge(&self, message: &Message, kind: AckKind) {
        acknowledge(self.consumer, message, kind).await;
    }

    /// A copy: that it cannot be made now keeps nothing from being handled, the
    /// stream has the letter for a week.
    async fn archive(&self, letter: &Message) {
        let Some(database) = &self.consumer.archive else {
            return;
        };
        match timeout(ARCHIVE_TIMEOUT, keep_letter(database, letter)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "dead letter not archived"),
            Err(_) => warn!("dead letter not archived in time"),
        }
    }

    /// Gauges that no event carries. Misses are left to the next time.
    async fn read_statistics(&self, from: &mut AnySubscription) {
        let Consumer { bus, metrics, .. } = self.consumer;
        if !bus.is_connected() {
            return;
        }
        let name = self.consumer.spec.stream.name;
        let read = async {
            metrics.pending(name, from.state().await?.pending);
            if let Some(letters) = bus.count(name, DLQ_SUBJECTS).await? {
                metrics.dlq_messages(name, letters);
            }
            Ok::<_, StateError>(())
        };
        let connects = bus.connects();
        tokio::select! {
            read = timeout(STATISTICS_TIMEOUT, read) => if !matches!(read, Ok(Ok(()))) {
                debug!(stream = name, "statistics not read");
            },
            () = bus.lost(connects) => {}
        }
    }
}
