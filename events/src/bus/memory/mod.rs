//! The bus within one process: what NATS does, on tokio's clock.
//!
//! Streams with sequences and a duplicate window, durable consumers with
//! acknowledgements, redelivery and limits, requests, and a connection that can
//! be cut. Nothing is written to disk, nothing runs in the background: time
//! passes when somebody waits, so that a paused clock drives all of it and the
//! same calls in the same order give the same deliveries.
//!
//! `stream` keeps messages, `durable` decides what is delivered when; here is
//! how clients get at them.

mod durable;
mod stream;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
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
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};

use super::{
    Acknowledgement, BindError, Binding, Bus, ConsumerState, Durable, Info, Kept, Lost, Message,
    Request, Requests, StateError, Stored, StreamState, Subscription, message,
};
use crate::{
    request::RequestError,
    stream::{EnsureError, StreamSpec, takes},
};
use durable::Consumer;
use stream::Stream;

/// What nats-server takes unless told otherwise, headers included, in bytes.
const PAYLOAD_MAX: usize = 1024 * 1024;
/// Requests that wait for one who answers; more are lost, as with a slow
/// consumer.
const REQUESTS_MAX: usize = 4096;

/// A bus within this process. Clones share a connection; [`MemoryBus::connection`]
/// makes another one to the same streams.
#[derive(Clone, Debug)]
pub struct MemoryBus {
    server: Arc<Server>,
    link: Arc<Link>,
}

#[derive(Debug)]
struct Server {
    state: Mutex<State>,
}

/// A connection.
#[derive(Debug)]
struct Link {
    state: watch::Sender<LinkState>,
}

#[derive(Clone, Copy, Debug)]
struct LinkState {
    connected: bool,
    connects: u64,
    /// Cut the connection when so many more messages are stored, before their
    /// acknowledgement.
    cut_after: Option<u64>,
}

#[derive(Debug)]
struct State {
    streams: BTreeMap<String, Stream>,
    responders: Vec<Responder>,
    subscriptions: BTreeMap<u64, Buffer>,
    next_id: u64,
    payload_max: usize,
    started: (Instant, SystemTime),
    /// Counts what was wiped: messages of an older store are settled by nobody.
    store: u64,
}

/// What a subscription was sent and has not looked at, and what it may be sent.
#[derive(Debug)]
struct Buffer {
    messages: VecDeque<Delivered>,
    credit: usize,
    notify: Arc<Notify>,
    bus: MemoryBus,
    /// The connection over which it was asked for.
    connects: u64,
}

#[derive(Debug)]
struct Responder {
    id: u64,
    subject: &'static str,
    group: &'static str,
    link: Arc<Link>,
    requests: mpsc::Sender<Request>,
}

/// A message as it was delivered.
#[derive(Clone, Debug)]
pub(super) struct Delivered {
    pub(super) message: async_nats::Message,
    stream: Arc<str>,
    durable: Arc<str>,
    sequence: u64,
    deliveries: u64,
    pending: u64,
    published: SystemTime,
    store: u64,
    bus: MemoryBus,
}

impl Default for MemoryBus {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryBus {
    /// A bus without streams, connected.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            streams: BTreeMap::new(),
            responders: Vec::new(),
            subscriptions: BTreeMap::new(),
            next_id: 0,
            payload_max: PAYLOAD_MAX,
            started: (Instant::now(), SystemTime::now()),
            store: 0,
        };
        Self {
            server: Arc::new(Server {
                state: Mutex::new(state),
            }),
            link: Link::new(),
        }
    }

    /// Another connection to the same streams, to be cut by itself.
    #[must_use]
    pub fn connection(&self) -> Self {
        Self {
            server: Arc::clone(&self.server),
            link: Link::new(),
        }
    }

    /// Cuts this connection: what was asked on it is never answered, what is
    /// acknowledged meanwhile is not heard. What had arrived can still be read.
    pub fn disconnect(&self) {
        self.link.state.send_modify(|link| link.connected = false);
    }

    /// Makes this connection again; subscriptions have to be bound anew.
    pub fn reconnect(&self) {
        self.link.state.send_if_modified(|link| {
            let was_cut = !link.connected;
            if was_cut {
                link.connected = true;
                link.connects += 1;
                link.cut_after = None;
            }
            was_cut
        });
    }

    /// Cuts this connection when so many more messages are stored over it,
    /// before the acknowledgement of the last one (which is stored).
    pub fn disconnect_after(&self, messages: u64) {
        self.link
            .state
            .send_modify(|link| link.cut_after = Some(messages));
    }

    /// Forgets all streams and consumers, as a server that lost its disk.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.streams.clear();
        state.store += 1;
        for buffer in state.subscriptions.values_mut() {
            buffer.credit = 0;
            buffer.notify.notify_one();
        }
    }

    /// The messages that a stream keeps, oldest first; none: no such stream.
    #[must_use]
    pub fn messages(&self, stream: &str) -> Vec<Kept> {
        let mut state = self.state();
        let found = state.fresh(stream);
        found.map(|stream| stream.all()).unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; if something did, what is there is whole.
        let state = self.server.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, subject: &str, headers: HeaderMap, payload: Bytes) -> Acknowledgement {
        let link = *self.link.state.borrow();
        if !link.connected {
            return Acknowledgement::memory(None);
        }
        let now = Instant::now();
        let word = self.state().store(subject, headers, payload, now);
        let mut cut = false;
        if word.is_ok() && link.cut_after.is_some() {
            self.link.state.send_modify(|link| {
                let left = link.cut_after.map(|left| left.saturating_sub(1));
                cut = left == Some(0);
                link.cut_after = left.filter(|left| *left > 0);
                link.connected &= !cut;
            });
        }
        Acknowledgement::memory((!cut).then_some(word))
    }
}

impl Link {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: watch::Sender::new(LinkState {
                connected: true,
                connects: 1,
                cut_after: None,
            }),
        })
    }

    fn is_connected(&self) -> bool {
        self.state.borrow().connected
    }

    async fn connected(&self) -> u64 {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        match state.wait_for(|link| link.connected).await {
            Ok(link) => link.connects,
            Err(_) => 0,
        }
    }
}

impl Bus for MemoryBus {
    type Requests = MemoryRequests;
    type Subscription = MemorySubscription;

    fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    fn connects(&self) -> u64 {
        self.link.state.borrow().connects
    }

    async fn lost(&self, connects_then: u64) {
        let mut state = self.link.state.subscribe();
        // The sender lives as long as `self`.
        let _ = state
            .wait_for(|link| !link.connected || link.connects != connects_then)
            .await;
    }

    async fn flush(&self) {}

    async fn ensure(&self, spec: &StreamSpec, _replicas: usize) -> Result<(), EnsureError> {
        self.link.connected().await;
        self.state().ensure(spec)
    }

    async fn publish(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Acknowledgement, PublishError> {
        if stream::size(&headers, &payload) > self.state().payload_max {
            return Err(PublishError::new(PublishErrorKind::MaxPayloadExceeded));
        }
        Ok(self.store(subject, headers, payload))
    }

    async fn stream_state(&self, stream: &str) -> Result<Option<StreamState>, StateError> {
        self.link.connected().await;
        let mut state = self.state();
        Ok(state.fresh(stream).map(|stream| stream.sequences()))
    }

    async fn find(
        &self,
        stream: &str,
        pattern: &str,
        from: u64,
    ) -> Result<Option<Kept>, StateError> {
        self.link.connected().await;
        let mut state = self.state();
        let found = state.fresh(stream);
        Ok(found.and_then(|stream| stream.find(pattern, from)))
    }

    async fn get(&self, stream: &str, sequence: u64) -> Result<Option<Kept>, StateError> {
        self.link.connected().await;
        let mut state = self.state();
        let found = state.fresh(stream);
        Ok(found.and_then(|stream| stream.get(sequence)))
    }

    async fn remove(&self, stream: &str, sequence: u64) -> Result<(), StateError> {
        self.link.connected().await;
        let mut state = self.state();
        let Some(found) = state.fresh(stream) else {
            return Err(StateError(format!("no stream {stream}")));
        };
        found.remove(sequence);
        Ok(())
    }

    async fn count(&self, stream: &str, pattern: &str) -> Result<Option<u64>, StateError> {
        self.link.connected().await;
        let mut state = self.state();
        Ok(state.fresh(stream).map(|stream| stream.count(pattern)))
    }

    async fn consumer_state(
        &self,
        stream: &str,
        durable: &str,
    ) -> Result<Option<ConsumerState>, StateError> {
        self.link.connected().await;
        let mut state = self.state();
        state.pump(stream, durable);
        Ok(state
            .streams
            .get(stream)
            .and_then(|stream| stream.durables.get(durable))
            .map(Consumer::state))
    }

    async fn restart_consumer(&self, durable: &Durable, from: u64) -> Result<(), StateError> {
        self.link.connected().await;
        let mut state = self.state();
        let Some(stream) = state.fresh(durable.stream.name) else {
            return Err(StateError(format!("no stream {}", durable.stream.name)));
        };
        let before = stream.durables.remove(&durable.name);
        stream.consumer(durable, from);
        for id in before.map(|before| before.waiting).unwrap_or_default() {
            if let Some(buffer) = state.subscriptions.get(&id) {
                buffer.notify.notify_one();
            }
        }
        Ok(())
    }

    async fn bind(
        &self,
        durable: &Durable,
        _replicas: usize,
    ) -> Result<Binding<MemorySubscription>, BindError> {
        let connects = self.link.connected().await;
        let mut state = self.state();
        state.ensure(&durable.stream)?;
        let Some(stream) = state.fresh(durable.stream.name) else {
            return Err(BindError::Consumer("no stream".into()));
        };
        let filter = &durable.filter;
        let fits = |subject: &String| takes(subject, filter) || takes(filter, subject);
        if !stream.subjects.iter().any(fits) {
            return Err(BindError::Consumer(format!(
                "the stream takes no subjects of {filter}"
            )));
        }
        let sequences = stream.sequences();
        let consumer = stream.consumer(durable, 1);
        let (consumer, ack_wait) = (consumer.state(), consumer.ack_wait);
        let (store, id) = (state.store, state.id());
        let notify = Arc::new(Notify::new());
        let buffer = Buffer {
            messages: VecDeque::new(),
            credit: 0,
            notify: Arc::clone(&notify),
            bus: self.clone(),
            connects,
        };
        state.subscriptions.insert(id, buffer);
        Ok(Binding {
            subscription: MemorySubscription {
                bus: self.clone(),
                stream: durable.stream.name,
                durable: durable.name.clone(),
                batch: durable.batch_max.max(1),
                connects,
                id,
                notify,
                store,
                asked: false,
            },
            consumer,
            stream: sequences,
            ack_wait,
        })
    }

    async fn request(
        &self,
        subject: &str,
        payload: Bytes,
        within: Duration,
    ) -> Result<Bytes, RequestError> {
        if !self.is_connected() {
            // NATS's client would keep it for later, when nobody waits for it.
            tokio::time::sleep(within).await;
            return Err(RequestError::TimedOut);
        }
        let (reply, answer) = oneshot::channel();
        let stored = self.store(subject, HeaderMap::new(), payload.clone());
        let is_stored = matches!(futures_util::FutureExt::now_or_never(stored), Some(Ok(_)));
        let responder = self.state().responder(subject);
        let Some(responder) = responder else {
            if is_stored {
                // The stream's acknowledgement came, and it is no answer.
                tokio::time::sleep(within).await;
                return Err(RequestError::TimedOut);
            }
            return Err(RequestError::NoResponders);
        };
        let request = Request {
            payload,
            reply: message::Reply::Memory(reply),
        };
        // Full: lost, as with a slow consumer.
        let _ = responder.try_send(request);
        match timeout(within, answer).await {
            Ok(Ok(answer)) if self.is_connected() => Ok(answer),
            Ok(Ok(_)) | Err(_) => Err(RequestError::TimedOut),
            Ok(Err(_)) => {
                // Thrown away unanswered: nobody will ever say so.
                tokio::time::sleep(within).await;
                Err(RequestError::TimedOut)
            }
        }
    }

    async fn answer(
        &self,
        subject: &'static str,
        group: &'static str,
    ) -> Result<MemoryRequests, RequestError> {
        let (requests, incoming) = mpsc::channel(REQUESTS_MAX);
        let mut state = self.state();
        let id = state.id();
        state.responders.push(Responder {
            id,
            subject,
            group,
            link: Arc::clone(&self.link),
            requests,
        });
        drop(state);
        Ok(MemoryRequests {
            bus: self.clone(),
            id,
            incoming,
        })
    }
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
    fn fresh(&mut self, stream: &str) -> Option<&mut Stream> {
        let found = self.streams.get_mut(stream)?;
        found.expire(Instant::now());
        Some(found)
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Unix nanoseconds on tokio's clock.
    fn now_ns(&self) -> i64 {
        let now = self.started.1 + self.started.0.elapsed();
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        i64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
    }

    fn ensure(&mut self, spec: &StreamSpec) -> Result<(), EnsureError> {
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

    fn store(
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
    fn pump(&mut self, stream: &str, durable: &str) {
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
    fn responder(&mut self, subject: &str) -> Option<mpsc::Sender<Request>> {
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
    pub(super) fn info(&self) -> Info<'_> {
        Info {
            stream: &self.stream,
            stream_sequence: self.sequence,
            delivered: self.deliveries,
            pending: self.pending,
            published: self.published,
        }
    }

    pub(super) fn ack_with(&self, kind: AckKind) -> Result<(), async_nats::Error> {
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

/// Messages of a durable consumer within this process. Dropped, what it was sent
/// and has not acknowledged is delivered again after the ack wait.
#[derive(Debug)]
pub struct MemorySubscription {
    bus: MemoryBus,
    stream: &'static str,
    durable: String,
    batch: usize,
    connects: u64,
    id: u64,
    notify: Arc<Notify>,
    store: u64,
    /// Whether the durable consumer knows about us.
    asked: bool,
}

impl MemorySubscription {
    /// Takes what has arrived; then asks for more when few are on their way.
    fn take(&mut self, ask: bool) -> Result<Option<Message>, Lost> {
        let link = *self.bus.link.state.borrow();
        let is_here = link.connected && link.connects == self.connects;
        let mut state = self.bus.state();
        if is_here {
            if state.store != self.store {
                return Err(Lost::Status(409, "Consumer Deleted".into()));
            }
            if ask {
                let Some(durable) = state
                    .streams
                    .get_mut(self.stream)
                    .and_then(|stream| stream.durables.get_mut(&self.durable))
                else {
                    return Err(Lost::Status(409, "Consumer Deleted".into()));
                };
                if !durable.waiting.contains(&self.id) {
                    if self.asked {
                        return Err(Lost::Status(409, "Consumer Deleted".into()));
                    }
                    durable.waiting.push(self.id);
                    self.asked = true;
                }
                if let Some(buffer) = state.subscriptions.get_mut(&self.id)
                    && buffer.credit <= self.batch / 2
                {
                    buffer.credit += self.batch;
                }
            }
            state.pump(self.stream, &self.durable);
        } else if let Some(buffer) = state.subscriptions.get_mut(&self.id) {
            // The server forgot us with the connection.
            buffer.credit = 0;
        }
        let Some(buffer) = state.subscriptions.get_mut(&self.id) else {
            return Err(Lost::Closed);
        };
        if let Some(delivered) = buffer.messages.pop_front() {
            return Ok(Some(Message(message::From::Memory(delivered))));
        }
        if link.connects != self.connects {
            return Err(Lost::Reconnected);
        }
        Ok(None)
    }

    /// When something may have to be delivered again.
    fn due(&self) -> Option<Instant> {
        let state = self.bus.state();
        let durable = state
            .streams
            .get(self.stream)?
            .durables
            .get(&self.durable)?;
        durable.next_due()
    }
}

impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Result<Message, Lost> {
        let mut link = self.bus.link.state.subscribe();
        loop {
            link.mark_unchanged();
            if let Some(message) = self.take(true)? {
                return Ok(message);
            }
            let due = self.due();
            tokio::select! {
                biased;
                () = self.notify.notified() => {}
                // The sender lives as long as `self`.
                _ = link.changed() => {}
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
            }
        }
    }

    fn try_next(&mut self) -> Result<Option<Message>, Lost> {
        self.take(false)
    }

    async fn end(&mut self) -> Vec<Message> {
        let mut rest = Vec::new();
        while let Ok(Some(message)) = self.take(false) {
            rest.push(message);
        }
        self.leave();
        rest
    }

    async fn state(&mut self) -> Result<ConsumerState, StateError> {
        let state = self.bus.consumer_state(self.stream, &self.durable).await?;
        state.ok_or_else(|| StateError("consumer not found".into()))
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        self.leave();
    }
}

impl MemorySubscription {
    /// Nothing is delivered here any more.
    fn leave(&self) {
        let mut state = self.bus.state();
        state.subscriptions.remove(&self.id);
        if let Some(durable) = state
            .streams
            .get_mut(self.stream)
            .and_then(|stream| stream.durables.get_mut(&self.durable))
        {
            durable.waiting.retain(|id| *id != self.id);
        }
    }
}

/// Requests within this process.
#[derive(Debug)]
pub struct MemoryRequests {
    bus: MemoryBus,
    id: u64,
    incoming: mpsc::Receiver<Request>,
}

impl Requests for MemoryRequests {
    async fn next(&mut self) -> Option<Request> {
        self.incoming.recv().await
    }
}

impl Drop for MemoryRequests {
    fn drop(&mut self) {
        let mut state = self.bus.state();
        state.responders.retain(|responder| responder.id != self.id);
    }
}
