//! Whichever bus was chosen, without a parameter in every type that has one.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{self, context::PublishError},
};
use bytes::Bytes;

use super::{
    Acknowledgement, BindError, Binding, Bus, ConsumerState, Durable, Kept, Lost, MemoryBus,
    MemoryRequests, MemorySubscription, Message, NatsBus, NatsRequests, NatsSubscription, Request,
    Requests, StateError, StreamState, Subscription,
};
use crate::{
    request::RequestError,
    stream::{EnsureError, StreamSpec},
};

/// The bus that was chosen (`EVENT_BUS_TYPE`).
#[derive(Clone, Debug)]
pub enum AnyBus {
    /// Within this process.
    Memory(MemoryBus),
    /// A NATS server.
    Nats(NatsBus),
}

/// A subscription on either.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one per consumer, and every message goes through it"
)]
pub enum AnySubscription {
    /// Within this process.
    Memory(MemorySubscription),
    /// Of a NATS server.
    Nats(NatsSubscription),
}

/// Requests on either.
#[derive(Debug)]
pub enum AnyRequests {
    /// Within this process.
    Memory(MemoryRequests),
    /// Of a NATS server.
    Nats(NatsRequests),
}

impl From<jetstream::Context> for AnyBus {
    fn from(js: jetstream::Context) -> Self {
        Self::Nats(NatsBus::new(js))
    }
}

impl From<async_nats::Client> for AnyBus {
    fn from(client: async_nats::Client) -> Self {
        jetstream::new(client).into()
    }
}

impl From<MemoryBus> for AnyBus {
    fn from(bus: MemoryBus) -> Self {
        Self::Memory(bus)
    }
}

impl From<NatsBus> for AnyBus {
    fn from(bus: NatsBus) -> Self {
        Self::Nats(bus)
    }
}

impl AnyBus {
    /// NATS, for what only NATS has.
    #[must_use]
    pub fn nats(&self) -> Option<&NatsBus> {
        match self {
            Self::Memory(_) => None,
            Self::Nats(bus) => Some(bus),
        }
    }
}

/// Calls the same method on whichever it is.
macro_rules! either {
    ($self:expr, $bus:ident => $call:expr) => {
        match $self {
            Self::Memory($bus) => $call,
            Self::Nats($bus) => $call,
        }
    };
}

impl Bus for AnyBus {
    type Requests = AnyRequests;
    type Subscription = AnySubscription;

    fn is_connected(&self) -> bool {
        either!(self, bus => bus.is_connected())
    }

    fn connects(&self) -> u64 {
        either!(self, bus => bus.connects())
    }

    async fn lost(&self, connects_then: u64) {
        either!(self, bus => bus.lost(connects_then).await);
    }

    async fn flush(&self) {
        either!(self, bus => bus.flush().await);
    }

    async fn ensure(&self, spec: &StreamSpec, replicas: usize) -> Result<(), EnsureError> {
        either!(self, bus => bus.ensure(spec, replicas).await)
    }

    async fn publish(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Acknowledgement, PublishError> {
        either!(self, bus => bus.publish(subject, headers, payload).await)
    }

    async fn stream_state(&self, stream: &str) -> Result<Option<StreamState>, StateError> {
        either!(self, bus => bus.stream_state(stream).await)
    }

    async fn find(
        &self,
        stream: &str,
        pattern: &str,
        from: u64,
    ) -> Result<Option<Kept>, StateError> {
        either!(self, bus => bus.find(stream, pattern, from).await)
    }

    async fn get(&self, stream: &str, sequence: u64) -> Result<Option<Kept>, StateError> {
        either!(self, bus => bus.get(stream, sequence).await)
    }

    async fn remove(&self, stream: &str, sequence: u64) -> Result<(), StateError> {
        either!(self, bus => bus.remove(stream, sequence).await)
    }

    async fn count(&self, stream: &str, pattern: &str) -> Result<Option<u64>, StateError> {
        either!(self, bus => bus.count(stream, pattern).await)
    }

    async fn consumer_state(
        &self,
        stream: &str,
        durable: &str,
    ) -> Result<Option<ConsumerState>, StateError> {
        either!(self, bus => bus.consumer_state(stream, durable).await)
    }

    async fn restart_consumer(&self, durable: &Durable, from: u64) -> Result<(), StateError> {
        either!(self, bus => bus.restart_consumer(durable, from).await)
    }

    async fn bind(
        &self,
        durable: &Durable,
        replicas: usize,
    ) -> Result<Binding<AnySubscription>, BindError> {
        Ok(match self {
            Self::Memory(bus) => bus
                .bind(durable, replicas)
                .await?
                .map(AnySubscription::Memory),
            Self::Nats(bus) => bus
                .bind(durable, replicas)
                .await?
                .map(AnySubscription::Nats),
        })
    }

    async fn request(
        &self,
        subject: &str,
        payload: Bytes,
        within: Duration,
    ) -> Result<Bytes, RequestError> {
        either!(self, bus => bus.request(subject, payload, within).await)
    }

    async fn answer(
        &self,
        subject: &'static str,
        group: &'static str,
    ) -> Result<AnyRequests, RequestError> {
        Ok(match self {
            Self::Memory(bus) => AnyRequests::Memory(bus.answer(subject, group).await?),
            Self::Nats(bus) => AnyRequests::Nats(bus.answer(subject, group).await?),
        })
    }
}

impl Subscription for AnySubscription {
    async fn next(&mut self) -> Result<Message, Lost> {
        either!(self, from => from.next().await)
    }

    fn try_next(&mut self) -> Result<Option<Message>, Lost> {
        either!(self, from => from.try_next())
    }

    async fn end(&mut self) -> Vec<Message> {
        either!(self, from => from.end().await)
    }

    async fn state(&mut self) -> Result<ConsumerState, StateError> {
        either!(self, from => from.state().await)
    }
}

impl Requests for AnyRequests {
    async fn next(&mut self) -> Option<Request> {
        either!(self, from => from.next().await)
    }
}

impl<S> Binding<S> {
    fn map<T>(self, wrap: impl FnOnce(S) -> T) -> Binding<T> {
        Binding {
            subscription: wrap(self.subscription),
            consumer: self.consumer,
            stream: self.stream,
            ack_wait: self.ack_wait,
        }
    }
}
