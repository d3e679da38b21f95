//! Turning events into dead letters, however long that takes.

use std::collections::VecDeque;

use async_nats::jetstream::AckKind;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{
    Consumer, DELIVERIES_MAX, Handler,
    acks::{acknowledge, grace, hold, keep},
    session::Session,
    work::{Interrupted, UNAVAILABLE_FIRST, UNAVAILABLE_MAX},
};
use crate::{
    backoff::Backoff,
    bus::{AnySubscription, Message},
    dead_letter::{DeadLetter, WriteError},
    event::Position,
    subject::{Kind, Parsed, parse},
};

/// A bad or failed event, waiting to be a dead letter.
pub(super) struct Dead {
    pub(super) message: Message,
    pub(super) kind: Kind,
    /// Empty when it did not decode.
    pub(super) event_id: String,
    pub(super) position: Position,
    pub(super) deliveries: u64,
    pub(super) reason: String,
}

impl Dead {
    /// An event that the server will not deliver again, unhandled: without a
    /// dead letter it would be lost to this consumer.
    pub(super) fn at_last_delivery(message: &Message) -> Option<Self> {
        let Parsed::Event(kind, _) = parse(&message.subject) else {
            return None;
        };
        let info = message.info().ok()?;
        let deliveries = info.delivered;
        if deliveries < DELIVERIES_MAX {
            return None;
        }
        let position = Position {
            stream: info.stream.to_owned(),
            sequence: info.stream_sequence,
            published_at: info.published,
        };
        let reason = "shut down before its last delivery was handled".to_owned();
        let message = message.clone();
        Some(Self {
            message,
            kind,
            event_id: String::new(),
            position,
            deliveries,
            reason,
        })
    }

    /// Stores the dead letter, then acknowledges the original, not before.
    pub(super) async fn bury(&self, consumer: &Consumer) -> Result<(), WriteError> {
        let letter = DeadLetter {
            kind: self.kind,
            subject: &self.message.subject,
            headers: self.message.headers.as_ref(),
            payload: &self.message.payload,
            stream: &self.position.stream,
            consumer: consumer.spec.durable,
            sequence: self.position.sequence,
            published_at: self.position.published_at,
            deliveries: self.deliveries,
            reason: &self.reason,
        };
        let is_new = letter.publish(&consumer.bus).await?;
        let latency = self.position.published_at.elapsed().unwrap_or_default();
        error!(
            id = self.event_id, r#type = self.kind.name(), subject = %self.message.subject,
            latency_us = latency.as_micros(), result = "dead_lettered",
            reason = self.reason, deliveries = self.deliveries, "event"
        );
        consumer.metrics.event(self.kind.label(), "dead_lettered");
        if is_new {
            consumer.metrics.dead_lettered(consumer.spec.stream.name);
        }
        acknowledge(consumer, &self.message, AckKind::Ack).await;
        Ok(())
    }
}

impl<H: Handler> Session<'_, H> {
    /// Buries all of them. Without a broker it tries again; what is left at a
    /// shutdown goes back to what is held.
    pub(super) async fn bury(
        &mut self,
        dead: Vec<Dead>,
        from: &mut AnySubscription,
        shutdown: &CancellationToken,
    ) -> Result<(), Interrupted> {
        let mut backoff = Backoff::new(UNAVAILABLE_FIRST, UNAVAILABLE_MAX);
        let mut kept = Instant::now();
        let mut rest = VecDeque::from(dead);
        // One grace for all of them.
        let grace = grace(shutdown);
        tokio::pin!(grace);
        while let Some(one) = rest.front() {
            let published = tokio::select! {
                biased;
                published = one.bury(self.consumer) => Some(published),
                () = &mut grace => None,
            };
            let go_on = match published {
                Some(Ok(())) => {
                    rest.pop_front();
                    backoff.reset();
                    true
                }
                Some(Err(error)) => {
                    let pause = backoff.next();
                    warn!(%error, pause_ms = pause.as_millis(), "dead letter cannot be stored yet");
                    shutdown.run_until_cancelled(sleep(pause)).await.is_some()
                }
                None => false,
            };
            if !go_on {
                self.held.extend(rest.into_iter().map(|dead| dead.message));
                return Err(Interrupted);
            }
            if kept.elapsed() > self.keep_alive {
                kept = Instant::now();
                hold(&mut self.held, from);
                let messages: Vec<_> = rest.iter().map(|dead| &dead.message).collect();
                keep(self.consumer, &messages, &self.held).await;
            }
        }
        Ok(())
    }
}
