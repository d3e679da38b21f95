//! What the server has: streams, and what it was asked for and has not delivered.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::SystemTime,
};

use async_nats::{
    HeaderMap,
    jetstream::{
        AckKind,
        context::{CreateStreamError, CreateStreamErrorKind, PublishError, PublishErrorKind},
    },
};
use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{Link, MemoryBus, stream::Stream};
use crate::{
    bus::{Bus as _, Info, Request, Stored},
    stream::{EnsureError, StreamSpec, takes},
};

#[derive(Debug)]
pub(super) struct State {
    pub(super) streams: BTreeMap<String, Stream>,
    pub(super) responders: Vec<Responder>,
    pub(super) subscriptions: BTreeMap<u64, Buffer>,
    pub(super) next_id: u64,
    pub(super) payload_max: usize,
    pub(super) started: (Instant, SystemTime),
    /// Counts what was wiped: messages of an older store are settled by nobody.
    pub(super) store: u64,
}

/// What a subscription was sent and has not looked at, and what it may be sent.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) messages: VecDeque<Delivered>,
    pub(super) credit: usize,
    pub(super) notify: Arc<Notify>,
    pub(super) bus: MemoryBus,
    /// The connection over which it was asked for.
    pub(super) connects: u64,
}

#[derive(Debug)]
pub(super) struct Responder {
    pub(super) id: u64,
    pub(super) subject: &'static str,
    pub(super) group: &'static str,
    pub(super) link: Arc<Link>,
    pub(super) requests: mpsc::Sender<Request>,
}

/// A message as it was delivered.
#[derive(Clone, Debug)]
pub(in crate::bus) struct Delivered {
    pub(in crate::bus) message: async_nats::Message,
    stream: Arc<str>,
    durable: Arc<str>,
    sequence: u64,
    deliveries: u64,
    pending: u64,
    published: SystemTime,
    store: u64,
    bus: MemoryBus,
}

impl Buffer {
    /// Whether it asked, over a connection that still stands.
    fn may_take(&self) -> bool {
        let link = *self.bus.link.state.borrow();
        self.credit > 0 && link.connected && link.connects == self.connects
    }
}

impl State {
    /// The stream as it is now.
    pub(super) fn fresh(&mut self, stream: &str) -> Option<&mut Stream> {
        let found = self.streams.get_mut(stream)?;
        found.expire(Instant::now());
        Some(found)
    }

    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Unix nanoseconds on tokio's clock.
    fn now_ns(&self) -> i64 {
        let now = self.started.1 + self.started.0.elapsed();
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        i64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
    }

    pub(super) fn ensure(&mut self, spec: &StreamSpec) -> Result<(), EnsureError> {
        let overlaps = |pattern: &str, other: &str| takes(pattern, other) || takes(other, pattern);
        let taken = self.streams.iter().find(|(name, stream)| {
            name.as_str() != spec.name
                && stream
                    .subjects
                    .iter()
                    .any(|other| spec.subjects.iter().any(|mine| overlaps(mine, other)))
        });
        if let Some((other, _)) = taken {
            return Err(EnsureError::Create {
                stream: spec.name,
                source: CreateStreamError::with_source(
                    CreateStreamErrorKind::Response,
                    format!("subjects overlap with those of {other}"),
                ),
            });
        }
        let made = match self.streams.contains_key(spec.name) {
            true => 0,
            // No two are made at once, though the clock may stand still.
            false => self.now_ns().saturating_add(self.id().cast_signed()),
        };
        let stream = self
            .streams
            .entry(spec.name.to_owned())
            .or_insert_with(|| Stream::new(spec.name, made));
        for subject in spec.subjects {
            if !stream.subjects.iter().any(|has| takes(has, subject)) {
                stream.subjects.push((*subject).to_owned());
            }
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        now: Instant,
    ) -> Result<Stored, PublishError> {
        let published = self.started.1 + (now - self.started.0);
        let Some((name, stream)) = self
            .streams
            .iter_mut()
            .find(|(_, stream)| stream.subjects.iter().any(|has| takes(has, subject)))
        else {
            return Err(PublishError::new(PublishErrorKind::StreamNotFound));
        };
        let stored = stream.store(subject, headers, payload, now, published);
        if !stored.duplicate {
            let name = name.clone();
            let durables: Vec<_> = stream.durables.keys().cloned().collect();
            for durable in durables {
                self.pump(&name, &durable);
            }
        }
        Ok(stored)
    }

    /// Delivers what can be delivered to those who asked.
    pub(super) fn pump(&mut self, stream: &str, durable: &str) {
        let now = Instant::now();
        let store = self.store;
        let mut advisories = Vec::new();
        if let Some(found) = self.streams.get_mut(stream) {
            found.expire(now);
            let Stream {
                name,
                messages,
                durables,
                ..
            } = found;
            let Some(durable) = durables.get_mut(durable) else {
                return;
            };
            durable.time_passes(now);
            let buffers = &mut self.subscriptions;
            while let Some(id) = durable.turn(|id| buffers.get(&id).is_some_and(Buffer::may_take))
                && let Some(buffer) = buffers.get_mut(&id)
                && let Some(next) = durable.deliver(messages, now, &mut advisories)
            {
                buffer.credit -= 1;
                buffer.messages.push_back(Delivered {
                    message: next.message,
                    stream: Arc::clone(name),
                    durable: Arc::clone(&durable.name),
                    sequence: next.sequence,
                    deliveries: next.deliveries,
                    pending: durable.unseen,
                    published: next.published,
                    store,
                    bus: buffer.bus.clone(),
                });
                buffer.notify.notify_one();
            }
        }
        for (sequence, deliveries) in advisories {
            let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.{durable}");
            let advisory = serde_json::json!({
                "type": "io.nats.jetstream.advisory.v1.max_deliver",
                "stream": stream, "consumer": durable,
                "stream_seq": sequence, "deliveries": deliveries,
            });
            // Kept only if a stream takes such subjects.
            let payload = Bytes::from(advisory.to_string());
            let _ = self.store(&subject, HeaderMap::new(), payload, now);
        }
    }

    /// One of a group that answers on this subject and is connected; the groups
    /// and their members take turns.
    pub(super) fn responder(&mut self, subject: &str) -> Option<mpsc::Sender<Request>> {
        let found = self
            .responders
            .iter()
            .position(|one| one.subject == subject && one.link.is_connected())?;
        let responder = self.responders.remove(found);
        let requests = responder.requests.clone();
        tracing::trace!(subject, group = responder.group, "request");
        self.responders.push(responder);
        Some(requests)
    }
}

impl Delivered {
    pub(in crate::bus) fn info(&self) -> Info<'_> {
        Info {
            stream: &self.stream,
            stream_sequence: self.sequence,
            delivered: self.deliveries,
            pending: self.pending,
            published: self.published,
        }
    }

    pub(in crate::bus) fn ack_with(&self, kind: AckKind) -> Result<(), async_nats::Error> {
        if !self.bus.is_connected() {
            return Err("not connected".into());
        }
        let mut state = self.bus.state();
        if state.store != self.store {
            return Ok(());
        }
        let (stream, durable) = (&*self.stream, &*self.durable);
        if let Some(found) = state
            .streams
            .get_mut(stream)
            .and_then(|stream| stream.durables.get_mut(durable))
        {
            found.settle(self.sequence, kind, Instant::now());
        }
        state.pump(stream, durable);
        Ok(())
    }
}
