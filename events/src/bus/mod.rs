//! What carries events: streams with acknowledged publishing, durable consumers,
//! and requests.
//!
//! The seam lies below outbox, consumer and dead letters: batches, verdicts,
//! retries, the breaker and the acknowledgements are the same code over both
//! implementations of [`Bus`]: [`NatsBus`], which services run on, and
//! [`MemoryBus`], which keeps NATS's semantics within one process and on tokio's
//! clock, for tests and simulations. [`AnyBus`] is whichever was chosen.

mod any;
mod memory;
mod message;
mod nats;

use std::{
    fmt,
    future::Future,
    time::{Duration, SystemTime},
};

use async_nats::{HeaderMap, Subject, jetstream::context::PublishError};
use bytes::Bytes;

pub use any::{AnyBus, AnyRequests, AnySubscription};
pub use memory::{MemoryBus, MemoryRequests, MemorySubscription};
pub use message::{Acknowledgement, Info, InfoError, Message, Request, Stored};
pub use nats::{NatsBus, NatsRequests, NatsSubscription};

use crate::{
    consumer::{ACK_PENDING_MAX, ACK_WAIT, ConsumerSpec, DELIVERIES_MAX},
    request::RequestError,
    stream::{EnsureError, StreamSpec},
};

/// The bus as it is seen by whoever publishes, consumes, asks or answers.
///
/// Clones share one connection. Nothing here retries: the callers do, and put a
/// deadline on every wait.
pub trait Bus: Clone + fmt::Debug + Send + Sync + 'static {
    /// What [`Bus::bind`] gives.
    type Subscription: Subscription;
    /// What [`Bus::answer`] gives.
    type Requests: Requests;

    /// Whether the connection stands right now.
    fn is_connected(&self) -> bool;

    /// How often this connection was made so far.
    fn connects(&self) -> u64;

    /// Ready once the connection that was the `connects_then`th is gone, or
    /// another has taken its place: what was asked on it will never be answered.
    /// Cancel safe.
    fn lost(&self, connects_then: u64) -> impl Future<Output = ()> + Send;

    /// Ready once what was sent has left this process, or cannot.
    fn flush(&self) -> impl Future<Output = ()> + Send;

    /// Makes sure of a stream: creates it if missing, with `replicas` copies.
    ///
    /// # Errors
    /// See [`crate::stream::ensure`].
    fn ensure(
        &self,
        spec: &StreamSpec,
        replicas: usize,
    ) -> impl Future<Output = Result<(), EnsureError>> + Send;

    /// Sends a message to the stream that takes its subject. The message is
    /// stored when the [`Acknowledgement`] says so; messages sent one after the
    /// other keep their order. A `Nats-Msg-Id` that the stream has seen within
    /// two minutes is a duplicate and not stored again.
    ///
    /// # Errors
    /// The message is larger than the server takes, or cannot be sent.
    fn publish(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
    ) -> impl Future<Output = Result<Acknowledgement, PublishError>> + Send;

    /// The sequences of a stream; none: there is no such stream.
    ///
    /// # Errors
    /// The server does not say.
    fn stream_state(
        &self,
        stream: &str,
    ) -> impl Future<Output = Result<Option<StreamState>, StateError>> + Send;

    /// The first message of a stream at or after the sequence `from` whose
    /// subject the pattern takes; none: there is none now, or no such stream.
    ///
    /// # Errors
    /// The server does not say.
    fn find(
        &self,
        stream: &str,
        pattern: &str,
        from: u64,
    ) -> impl Future<Output = Result<Option<Kept>, StateError>> + Send;

    /// The message of this sequence; none: it is not kept, or there is no such
    /// stream.
    ///
    /// # Errors
    /// The server does not say.
    fn get(
        &self,
        stream: &str,
        sequence: u64,
    ) -> impl Future<Output = Result<Option<Kept>, StateError>> + Send;

    /// Removes a message from a stream; that it was gone already is no error.
    ///
    /// # Errors
    /// The server refuses or does not say.
    fn remove(
        &self,
        stream: &str,
        sequence: u64,
    ) -> impl Future<Output = Result<(), StateError>> + Send;

    /// How many messages of a stream have subjects that the pattern takes; none:
    /// there is no such stream.
    ///
    /// # Errors
    /// The server does not say.
    fn count(
        &self,
        stream: &str,
        pattern: &str,
    ) -> impl Future<Output = Result<Option<u64>, StateError>> + Send;

    /// What a durable consumer has acknowledged; none: no stream, or no consumer.
    ///
    /// # Errors
    /// The server does not say.
    fn consumer_state(
        &self,
        stream: &str,
        durable: &str,
    ) -> impl Future<Output = Result<Option<ConsumerState>, StateError>> + Send;

    /// Makes a durable consumer anew, to begin with the stream's message `from`
    /// (1: all). What it had delivered and acknowledged is forgotten.
    ///
    /// # Errors
    /// There is no such stream, or the server does not say.
    fn restart_consumer(
        &self,
        durable: &Durable,
        from: u64,
    ) -> impl Future<Output = Result<(), StateError>> + Send;

    /// Binds to a durable consumer; stream and consumer are there afterwards.
    /// Bindings to one durable share its messages.
    ///
    /// # Errors
    /// Something of it cannot be made.
    ///
    /// Cancel safe: what was created stays and is found the next time.
    fn bind(
        &self,
        durable: &Durable,
        replicas: usize,
    ) -> impl Future<Output = Result<Binding<Self::Subscription>, BindError>> + Send;

    /// Asks whoever answers on `subject` and waits this long at most. The
    /// acknowledgement of a stream that takes the subject is no answer.
    ///
    /// # Errors
    /// Nobody is there, or nothing came in time.
    fn request(
        &self,
        subject: &str,
        payload: Bytes,
        within: Duration,
    ) -> impl Future<Output = Result<Bytes, RequestError>> + Send;

    /// Begins to answer on `subject`; those of one `group` share the requests.
    /// Once this is ready, requests find it.
    ///
    /// # Errors
    /// The subscription cannot be made.
    fn answer(
        &self,
        subject: &'static str,
        group: &'static str,
    ) -> impl Future<Output = Result<Self::Requests, RequestError>> + Send;
}

/// Messages of a durable consumer, some of them on their way already.
pub trait Subscription: Send {
    /// The next message, asking for more when few are on their way.
    ///
    /// Cancel safe: no message is lost.
    ///
    /// # Errors
    /// Nothing more will come; binding again helps.
    fn next(&mut self) -> impl Future<Output = Result<Message, Lost>> + Send;

    /// A message that is here already. Asks for nothing.
    ///
    /// # Errors
    /// As [`Subscription::next`].
    fn try_next(&mut self) -> Result<Option<Message>, Lost>;

    /// Wants nothing more; what was on its way. Bounded in time. Whatever is
    /// given back after this goes to others.
    fn end(&mut self) -> impl Future<Output = Vec<Message>> + Send;

    /// How far the consumer is.
    ///
    /// # Errors
    /// The server does not say.
    fn state(&mut self) -> impl Future<Output = Result<ConsumerState, StateError>> + Send;
}

/// Requests to be answered.
pub trait Requests: Send {
    /// The next one; none: there will be no more. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Option<Request>> + Send;
}

/// A durable consumer as it is made when it is missing. One that exists is used
/// as it is.
#[derive(Clone, Debug)]
pub struct Durable {
    /// The stream, created if missing.
    pub stream: StreamSpec,
    /// Its name; consumers of one name share the work.
    pub name: String,
    /// The one subject filter.
    pub filter: String,
    /// The server delivers again what was not acknowledged for so long.
    pub ack_wait: Duration,
    /// After so many deliveries the server gives a message up; none: never.
    pub deliveries_max: Option<u64>,
    /// The server delivers no more than this without acknowledgement.
    pub ack_pending_max: i64,
    /// Most messages asked for at once, at least 1.
    pub batch_max: usize,
}

impl From<&ConsumerSpec> for Durable {
    fn from(spec: &ConsumerSpec) -> Self {
        Self {
            stream: spec.stream,
            name: spec.durable.to_owned(),
            filter: spec.filter.to_owned(),
            ack_wait: ACK_WAIT,
            deliveries_max: Some(DELIVERIES_MAX),
            ack_pending_max: ACK_PENDING_MAX,
            batch_max: spec.batch_max,
        }
    }
}

/// A message that a stream keeps.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: Subject,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its payload.
    pub payload: Bytes,
    /// When the stream took it.
    pub published: SystemTime,
}

/// A fresh binding to a durable consumer.
#[derive(Debug)]
pub struct Binding<S> {
    /// Where its messages come from.
    pub subscription: S,
    /// How far the consumer was then.
    pub consumer: ConsumerState,
    /// The stream then.
    pub stream: StreamState,
    /// The server delivers again what was not acknowledged for so long.
    pub ack_wait: Duration,
}

/// How far a durable consumer is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ConsumerState {
    /// Messages never delivered yet.
    pub pending: u64,
    /// Messages delivered and not acknowledged.
    pub ack_pending: u64,
    /// All up to here are acknowledged (or were given up).
    pub ack_floor: u64,
    /// The highest sequence delivered.
    pub delivered: u64,
}

/// A stream, and its sequences.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StreamState {
    /// When it was made, Unix nanoseconds. One that was made anew under the same
    /// name has another time, and sequences that have nothing to do with the old.
    pub created: i64,
    /// Of the oldest message that is kept.
    pub first_sequence: u64,
    /// Of the newest one ever stored; 0: none.
    pub last_sequence: u64,
}

/// The server could not say how things are.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StateError(pub String);

/// Why a consumer cannot be bound to.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The durable consumer can neither be found nor made.
    #[error("consumer: {0}")]
    Consumer(String),
    /// There is no connection.
    #[error("not connected to NATS")]
    Disconnected,
    /// The stream can neither be found nor made.
    #[error(transparent)]
    Ensure(#[from] EnsureError),
    /// The server does not say how far the consumer is.
    #[error("consumer: {0}")]
    State(#[from] StateError),
    /// The answers cannot be subscribed to.
    #[error("subscription: {0}")]
    Subscribe(String),
    /// It takes too long.
    #[error("JetStream does not answer")]
    TimedOut,
}

/// Why nothing more will come from a subscription; binding again helps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Lost {
    /// The subscription was closed.
    Closed,
    /// The connection was made anew: the server may have forgotten us.
    Reconnected,
    /// More could not be asked for.
    Request(String),
    /// The server has not been heard for so long, in seconds.
    Silent(u64),
    /// The server refused, by status and text.
    Status(u16, String),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("subscription closed"),
            Self::Reconnected => f.write_str("reconnected to NATS"),
            Self::Request(error) => write!(f, "pull request: {error}"),
            Self::Silent(seconds) => write!(f, "nothing heard for {seconds} s"),
            Self::Status(status, text) => write!(f, "status {status} {text}"),
        }
    }
}
