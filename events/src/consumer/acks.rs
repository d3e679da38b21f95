//! Acknowledgements: sending them, and keeping alive what is in work.

use std::{collections::VecDeque, time::Duration};

use async_nats::jetstream::AckKind;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{ACK_WAIT, Consumer};
use crate::{
    backoff::jittered,
    bus::{AnySubscription, Bus as _, Message, Subscription as _},
};

/// Bounds of how often what is in work is kept alive.
const KEEP_ALIVE_MIN: Duration = Duration::from_millis(50);
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(ACK_WAIT.as_secs() / 3);
/// How long an acknowledgement, or those of one batch together, may wait for the client's queue.
pub(super) const ACK_SEND_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a batch may take after the shutdown began.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// How often to keep messages alive: three chances within the ack wait.
pub(super) fn keep_alive(ack_wait: Duration) -> Duration {
    (ack_wait / 3).clamp(KEEP_ALIVE_MIN, KEEP_ALIVE_MAX)
}

/// Ticks about every `period`, the first after one.
pub(super) fn ticks(period: Duration) -> Interval {
    let period = jittered(period);
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Ready when a shutdown has been asked for and its grace is over.
pub(super) async fn grace(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    sleep(SHUTDOWN_GRACE).await;
}

/// Takes what has arrived meanwhile, at most the credit given, so that it is
/// kept alive with the rest. A lost binding is noticed after the batch.
pub(super) fn hold(held: &mut VecDeque<Message>, from: &mut AnySubscription) {
    while let Ok(Some(message)) = from.try_next() {
        held.push_back(message);
    }
}

/// Tells the server that these are still in work.
pub(super) async fn keep(consumer: &Consumer, messages: &[&Message], held: &VecDeque<Message>) {
    if !consumer.bus.is_connected() {
        return;
    }
    let deadline = send_deadline();
    for message in messages.iter().copied().chain(held) {
        acknowledge_by(consumer, message, AckKind::Progress, deadline).await;
    }
}

/// Until then several acknowledgements may wait for the client's queue, which is full while the
/// connection takes nothing: each for itself they would hold up batch and shutdown for minutes.
pub(super) fn send_deadline() -> Instant {
    Instant::now() + ACK_SEND_TIMEOUT
}

/// Sends an acknowledgement. A lost one means another delivery, which the
/// handler finds stale.
pub(super) async fn acknowledge(consumer: &Consumer, message: &Message, kind: AckKind) {
    acknowledge_by(consumer, message, kind, send_deadline()).await;
}

/// Sends an acknowledgement that does not wait beyond `deadline`; what can be sent without
/// waiting still is.
pub(super) async fn acknowledge_by(
    consumer: &Consumer,
    message: &Message,
    kind: AckKind,
    deadline: Instant,
) {
    let label = match kind {
        AckKind::Ack => "ack",
        AckKind::Nak(_) => "nak",
        AckKind::Progress => "progress",
        AckKind::Next | AckKind::Term => "other",
    };
    match timeout_at(deadline, message.ack_with(kind)).await {
        Ok(Ok(())) => consumer.metrics.ack(consumer.spec.stream.name, label),
        Ok(Err(error)) => debug!(%error, label, "acknowledgement not sent"),
        Err(_) => debug!(label, "acknowledgement not sent in time"),
    }
}
