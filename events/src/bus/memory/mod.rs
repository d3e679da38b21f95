//! The bus within one process: what NATS does, on tokio's clock.
//!
//! Streams with sequences and a duplicate window, durable consumers with
//! acknowledgements, redelivery and limits, requests, and a connection that can
//! be cut. Nothing is written to disk, nothing runs in the background: time
//! passes when somebody waits, so that a paused clock drives all of it and the
//! same calls in the same order give the same deliveries.
//!
//! `stream` keeps messages, `durable` decides what is delivered when, `state` has
//! them all, `subscription` is what clients hold; here is how they get at them.

mod durable;
mod state;
mod stream;
mod subscription;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use async_nats::{
    HeaderMap,
    jetstream::context::{PublishError, PublishErrorKind},
};
use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, timeout},
};

use super::{
    Acknowledgement, BindError, Binding, Bus, ConsumerState, Durable, Kept, Request, StateError,
    StreamState, message,
};
use crate::{
    request::RequestError,
    stream::{EnsureError, StreamSpec, takes},
};
use durable::Consumer;
use state::{Buffer, Responder, State};

pub(super) use state::Delivered;
pub use subscription::{MemoryRequests, MemorySubscription};

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
