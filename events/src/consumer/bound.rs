//! A fresh binding, and its stream read past the durable consumer.
//!
//! What a process before us was given and did not acknowledge comes again after
//! the ack wait only, behind newer events; what was acknowledged does not come
//! again at all. A handler whose effects lack some of it reads it here, in the
//! stream's order. Message by message (`STREAM.MSG.GET`, many at once): a service
//! needs no permission for that which dead letters do not need already, and the
//! durable consumer, which others may share, stays as it is.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::{Consumer, Unavailable, Verdict};
use crate::{
    bus::{AnySubscription, Binding, Bus as _, ConsumerState, Kept, StateError, StreamState},
    event::{Decoded, Delivery, Position, decode},
    stream::takes,
    subject::Kind,
};

/// Questions on their way at once.
const AT_ONCE: usize = 64;
/// Questions one after the other: as many as are answered within this make a stretch.
const FIND_TIME: Duration = Duration::from_secs(5);
/// One stretch.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// A fresh binding of a consumer.
#[derive(Debug)]
pub struct Bound<'a> {
    /// The stream then.
    pub stream: StreamState,
    /// The durable consumer then.
    pub durable: ConsumerState,
    consumer: &'a Consumer,
}

/// A stretch of a stream.
#[derive(Debug, Default)]
pub struct Stretch {
    /// Its good events, in order. Bad ones and dead letters are none.
    pub events: Vec<Delivery>,
    /// It ends with this sequence.
    pub up_to: u64,
}

impl<'a> Bound<'a> {
    pub(super) fn new(consumer: &'a Consumer, binding: &Binding<AnySubscription>) -> Self {
        Self {
            stream: binding.stream,
            durable: binding.consumer,
            consumer,
        }
    }

    /// Reads the consumer's events in the stream from the sequence `from` to the
    /// sequence `to`, the first `max` messages at most (at least 1; fewer from a
    /// slow server). Nothing is acknowledged, and nothing counts as delivered.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn read(&self, from: u64, to: u64, max: usize) -> Result<Stretch, Unavailable> {
        let from = from.max(self.stream.first_sequence);
        if from > to {
            return Ok(Stretch {
                events: Vec::new(),
                up_to: to,
            });
        }
        let spec = &self.consumer.spec;
        let is_whole = spec
            .stream
            .subjects
            .iter()
            .all(|subject| takes(spec.filter, subject));
        let reading = async {
            match is_whole {
                true => self.get(from, to, max.max(1)).await,
                // Most of it may be others' events.
                false => self.find(from, to, max.max(1)).await,
            }
        };
        let (kept, up_to) = timeout(READ_TIMEOUT, reading)
            .await
            .map_err(|_| Unavailable("JetStream does not answer".into()))?
            .map_err(|StateError(error)| Unavailable(error))?;
        let events = kept
            .into_iter()
            .filter(|kept| takes(spec.filter, &kept.subject))
            .filter_map(|kept| self.event(kept));
        Ok(Stretch {
            events: events.collect(),
            up_to,
        })
    }

    async fn get(&self, from: u64, to: u64, max: usize) -> Result<(Vec<Kept>, u64), StateError> {
        let most = u64::try_from(max).unwrap_or(u64::MAX);
        let to = to.min(from.saturating_add(most - 1));
        let Consumer { bus, spec, .. } = self.consumer;
        let kept: Vec<Option<Kept>> = stream::iter(from..=to)
            .map(|sequence| bus.get(spec.stream.name, sequence))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        Ok((kept.into_iter().flatten().collect(), to))
    }

    async fn find(&self, from: u64, to: u64, max: usize) -> Result<(Vec<Kept>, u64), StateError> {
        let Consumer { bus, spec, .. } = self.consumer;
        let mut found = Vec::new();
        let mut next = from;
        let begun = Instant::now();
        // What is found slowly is found all the same, in shorter stretches.
        while found.len() < max && (next == from || begun.elapsed() < FIND_TIME) {
            match bus.find(spec.stream.name, spec.filter, next).await? {
                Some(kept) if kept.sequence <= to => {
                    next = kept.sequence + 1;
                    found.push(kept);
                }
                _ => return Ok((found, to)),
            }
        }
        Ok((found, next - 1))
    }

    fn event(&self, kept: Kept) -> Option<Delivery> {
        let position = Position {
            stream: self.consumer.spec.stream.name.to_owned(),
            sequence: kept.sequence,
            published_at: kept.published,
        };
        let headers = (!kept.headers.is_empty()).then_some(&kept.headers);
        let decoded = decode(&kept.subject, &kept.payload, headers, &position);
        let decoded = match &self.consumer.verifier {
            Some(verifier) => verifier.judge(&kept.subject, &kept.payload, headers, decoded),
            None => decoded,
        };
        match decoded {
            Decoded::Event(event) => Some(Delivery {
                event: *event,
                position,
                deliveries: 0,
            }),
            Decoded::Bad(kind, bad) => {
                self.leave_out(kind, "", position.sequence, &bad.to_string());
                None
            }
            Decoded::DeadLetter | Decoded::Unknown => None,
        }
    }

    /// Counts and logs what came of events that were read here.
    pub fn handled(&self, events: &[Delivery], verdicts: &[Verdict]) {
        for (
            Delivery {
                event, position, ..
            },
            verdict,
        ) in events.iter().zip(verdicts)
        {
            let latency = position.published_at.elapsed().unwrap_or_default();
            let (id, entity, latency_us) = (&event.event_id, &event.entity, latency.as_micros());
            let (subject, kind) = (event.kind.label(), event.kind.name());
            match verdict {
                Verdict::Applied => {
                    info!(id, r#type = kind, %entity, latency_us, result = "applied", "event");
                    self.consumer.metrics.event(subject, "applied");
                    self.consumer.metrics.applied(subject, latency);
                }
                Verdict::Stale => {
                    debug!(id, r#type = kind, %entity, latency_us, result = "stale", "event");
                    self.consumer.metrics.event(subject, "stale");
                }
                Verdict::Reject(reason) | Verdict::Retry(reason) => {
                    self.leave_out(event.kind, id, position.sequence, reason);
                }
            }
        }
    }

    /// What becomes of it is the durable consumer's business, or was: a dead letter.
    fn leave_out(&self, kind: Kind, id: &str, sequence: u64, reason: &str) {
        let result = "left_out";
        warn!(
            id,
            r#type = kind.name(),
            stream = self.consumer.spec.stream.name,
            sequence,
            result,
            reason,
            "event"
        );
        self.consumer.metrics.event(kind.label(), result);
    }
}
