//! Working through one binding: collect a batch, have it worked on
//! ([`work`](super::work)), see how far that is.
//!
//! The session outlives a binding: what was delivered and not yet handled when
//! the connection was lost is still handled first.

use std::{collections::VecDeque, panic::AssertUnwindSafe, sync::atomic::Ordering, time::Duration};

use async_nats::jetstream::AckKind;
use futures_util::FutureExt as _;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{
    ACK_WAIT, Consumer, Handler, LOOK_TIMEOUT, Unavailable,
    acks::{acknowledge, hold, keep_alive},
    bound::Bound,
    burial::Dead,
    catch_up::CatchUp,
    work::Interrupted,
};
use crate::bus::{AnySubscription, Binding, Bus as _, Lost, Message, Subscription as _};

/// How long handing back may take in all.
const HAND_BACK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often to look how far the durable consumer is, until all is in effect; not
/// while that is seen from what is handled here.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Why a binding ended.
pub(super) enum End {
    Lost(Lost),
    /// It stands, and all is in effect that was here; a fresh one tells more: why.
    Quiet(&'static str),
    Shutdown,
    /// It stands, but means nothing any more: why.
    Stale(&'static str),
}

pub(super) struct Session<'a, H> {
    pub(super) consumer: &'a Consumer,
    pub(super) handler: H,
    /// When the stream of the last binding was made.
    stream_created: Option<i64>,
    /// Delivered, not yet looked at.
    pub(super) held: VecDeque<Message>,
    pub(super) keep_alive: Duration,
    progress: bool,
    pub(super) catch_up: CatchUp,
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
            catch_up: CatchUp::default(),
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
        self.consumer.bound_to(Some(bound.stream.created));
        if before.is_some_and(|before| before != bound.stream.created) {
            if !self.held.is_empty() {
                warn!(
                    stream = self.consumer.spec.stream.name,
                    events = self.held.len(),
                    "the stream was made anew: what it had delivered before is dropped"
                );
                self.held.clear();
            }
            // Whatever was in effect, nothing of this one is known to be.
            self.fall_behind();
        }
        let binding = Bound::new(self.consumer, bound);
        let bus = &self.consumer.bus;
        let connects = bus.connects();
        let greeting = AssertUnwindSafe(self.handler.bound(&binding)).catch_unwind();
        tokio::select! {
            settled = greeting => settled.unwrap_or_else(|_panic| {
                error!(stream = self.consumer.spec.stream.name, "the handler panicked at a binding");
                Err(Unavailable("the handler panicked".into()))
            }),
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
        let holds = !self.held.is_empty();
        self.catch_up.bind(&state, &stream, settled, holds);
        self.consumer.is_settled.store(settled, Ordering::Relaxed);
        self.tell_if_caught_up();
        // The consumer may be someone else's, with another ack wait.
        self.keep_alive = keep_alive(ack_wait);
        self.consumer.letters_came.notify_one();
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            let first = if let Some(message) = self.held.pop_front() {
                message
            } else {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break End::Shutdown,
                    () = self.consumer.stream_replaced.notified() => {
                        break End::Stale("another stream has taken the place of this one");
                    }
                    () = self.consumer.others_silent.notified(), if settled => {
                        break End::Quiet("others keep silent about what they were given");
                    }
                    _ = look.tick(), if !self.catch_up.is_done() => {
                        self.look(&mut from).await;
                        // Who does not read what was delivered before can only wait for it.
                        if settled && self.catch_up.is_quiet(Instant::now()) {
                            break End::Quiet("those who were given the rest keep silent");
                        }
                        continue;
                    }
                    next = from.next() => match next {
                        Ok(message) => message,
                        Err(lost) => break End::Lost(lost),
                    },
                }
            };
            let (batch, lost) = self.collect(first, &mut from);
            if let Err(Interrupted) = self.work(batch, &mut from, shutdown).await {
                break End::Shutdown;
            }
            self.progress = true;
            if self.catch_up.is_near() {
                look.reset_immediately();
            } else if !self.catch_up.is_through() {
                look.reset();
            }
            if shutdown.is_cancelled() {
                break End::Shutdown;
            }
            if let Some(lost) = lost {
                break End::Lost(lost);
            }
        };
        self.consumer.bound_to(None);
        // What has arrived is handled after the next binding, or handed back.
        hold(&mut self.held, &mut from);
        if !matches!(end, End::Lost(_)) {
            // What is handed back must not come to us once more, nor to nobody.
            self.held.extend(from.end().await);
        }
        if matches!(end, End::Lost(_) | End::Stale(_)) {
            self.fall_behind();
        }
        end
    }

    /// Nothing comes from here on: what is in effect then is all only once the next binding says
    /// so.
    pub(super) fn fall_behind(&mut self) {
        if self.consumer.caught_up.send_replace(false) {
            self.catch_up.begin_again();
        }
    }

    pub(super) fn tell_if_caught_up(&self) {
        if self.catch_up.is_done() {
            self.consumer
                .caught_up
                .send_if_modified(|done| !std::mem::replace(done, true));
        }
    }

    /// Looks how far the durable consumer is: what others were given is seen in
    /// nothing that is handled here. Bounded in time; a miss is left to the next one.
    async fn look(&mut self, from: &mut AnySubscription) {
        let bus = &self.consumer.bus;
        let connects = bus.connects();
        let state = tokio::select! {
            state = timeout(LOOK_TIMEOUT, from.state()) => state,
            () = bus.lost(connects) => return,
        };
        let Ok(Ok(state)) = state else { return };
        self.catch_up.look(&state, Instant::now());
        self.tell_if_caught_up();
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
}
