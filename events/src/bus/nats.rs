//! The bus that services run on: JetStream's streams and consumers, core NATS's
//! requests.

mod pull;

use std::{future::Future, sync::Arc, time::Duration};

use async_nats::{
    Client, HeaderMap, StatusCode, Subscriber,
    jetstream::{
        self, Context, ErrorCode,
        consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull::Config},
        context::{ConsumerInfoErrorKind, GetStreamErrorKind, PublishError},
        message::{PublishMessage, StreamMessage},
        stream::{DeleteMessageErrorKind, RawMessageError, RawMessageErrorKind, Stream},
    },
};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::timeout;
use tracing::warn;

use super::{
    Acknowledgement, BindError, Binding, Bus, ConsumerState, Durable, Kept, Lost, Message, Request,
    Requests, StateError, StreamState, Subscription, message,
};
use crate::{
    connect::{connects, is_connected, lost},
    request::{RequestError, is_stream_ack},
    stream::{EnsureError, StreamSpec, ensure},
};
use pull::Puller;

/// NATS with JetStream.
#[derive(Clone, Debug)]
pub struct NatsBus(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    client: Client,
    js: Context,
}

impl NatsBus {
    /// The bus behind a context.
    #[must_use]
    pub fn new(js: Context) -> Self {
        let client = js.client();
        Self(Arc::new(Connection { client, js }))
    }

    /// For what only NATS has.
    #[must_use]
    pub fn jetstream(&self) -> &Context {
        &self.0.js
    }

    /// The connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// Without asking whether it is there.
    async fn stream_unseen(&self, name: &str) -> Result<Stream<()>, StateError> {
        self.0
            .js
            .get_stream_no_info(name)
            .await
            .map_err(state_error)
    }

    async fn stream(&self, name: &str) -> Result<Option<Stream>, StateError> {
        match self.0.js.get_stream(name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(refused)
                    if refused.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(None)
                }
                _ => Err(state_error(error)),
            },
        }
    }
}

impl Bus for NatsBus {
    type Requests = NatsRequests;
    type Subscription = NatsSubscription;

    fn is_connected(&self) -> bool {
        is_connected(&self.0.client)
    }

    fn connects(&self) -> u64 {
        connects(&self.0.client)
    }

    fn lost(&self, connects_then: u64) -> impl Future<Output = ()> + Send {
        lost(&self.0.client, connects_then)
    }

    async fn flush(&self) {
        // What cannot leave is known from elsewhere.
        let _ = self.0.client.flush().await;
    }

    async fn ensure(&self, spec: &StreamSpec, replicas: usize) -> Result<(), EnsureError> {
        ensure(&self.0.js, spec, replicas).await.map(drop)
    }

    async fn publish(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Acknowledgement, PublishError> {
        let message = PublishMessage::build().payload(payload).headers(headers);
        let sent = self.0.js.send_publish(subject.to_owned(), message).await?;
        Ok(Acknowledgement::nats(sent))
    }

    async fn stream_state(&self, stream: &str) -> Result<Option<StreamState>, StateError> {
        Ok(self.stream(stream).await?.map(|stream| {
            // The answer is as fresh as its request.
            stream_state(stream.cached_info())
        }))
    }

    async fn find(
        &self,
        stream: &str,
        pattern: &str,
        from: u64,
    ) -> Result<Option<Kept>, StateError> {
        let stream = self.stream_unseen(stream).await?;
        kept(stream.get_first_raw_message_by_subject(pattern, from).await)
    }

    async fn get(&self, stream: &str, sequence: u64) -> Result<Option<Kept>, StateError> {
        let stream = self.stream_unseen(stream).await?;
        kept(stream.get_raw_message(sequence).await)
    }

    async fn remove(&self, stream: &str, sequence: u64) -> Result<(), StateError> {
        let stream = self.stream_unseen(stream).await?;
        match stream.delete_message(sequence).await {
            Ok(_) => Ok(()),
            // Somebody else was quicker.
            Err(error)
                if matches!(error.kind(), DeleteMessageErrorKind::JetStream(error) if matches!(
                    error.error_code(),
                    ErrorCode::NO_MESSAGE_FOUND | ErrorCode::SEQUENCE_NOT_FOUND
                )) =>
            {
                Ok(())
            }
            Err(error) => Err(state_error(error)),
        }
    }

    async fn count(&self, stream: &str, pattern: &str) -> Result<Option<u64>, StateError> {
        let Some(stream) = self.stream(stream).await? else {
            return Ok(None);
        };
        let mut counts = stream
            .info_with_subjects(pattern)
            .await
            .map_err(state_error)?;
        let mut messages = 0_u64;
        while let Some((_, count)) = counts.try_next().await.map_err(state_error)? {
            messages = messages.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(Some(messages))
    }

    async fn consumer_state(
        &self,
        stream: &str,
        durable: &str,
    ) -> Result<Option<ConsumerState>, StateError> {
        let Some(stream) = self.stream(stream).await? else {
            return Ok(None);
        };
        match stream.consumer_info(durable).await {
            Ok(info) => Ok(Some(consumer_state(&info))),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(state_error(error)),
        }
    }

    async fn restart_consumer(&self, durable: &Durable, from: u64) -> Result<(), StateError> {
        let name = durable.stream.name;
        let Some(stream) = self.stream(name).await? else {
            return Err(StateError(format!("no stream {name}")));
        };
        if let Err(error) = stream.delete_consumer(&durable.name).await
            && self.consumer_state(name, &durable.name).await?.is_some()
        {
            return Err(state_error(error));
        }
        let deliver_policy = match from {
            0 | 1 => DeliverPolicy::All,
            start_sequence => DeliverPolicy::ByStartSequence { start_sequence },
        };
        let config = Config {
            deliver_policy,
            ..config(durable)
        };
        let created = stream.create_consumer(config).await;
        created.map(drop).map_err(state_error)
    }

    async fn bind(
        &self,
        durable: &Durable,
        replicas: usize,
    ) -> Result<Binding<NatsSubscription>, BindError> {
        let connects = self.connects();
        let mut stream = ensure(&self.0.js, &durable.stream, replicas).await?;
        let wanted = config(durable);
        let consumer = stream
            .get_or_create_consumer(&durable.name, wanted.clone())
            .await
            .map_err(|error| BindError::Consumer(error.to_string()))?;
        warn_of_differences(durable, &wanted, &consumer.cached_info().config);
        let ack_wait = consumer.cached_info().config.ack_wait;
        let info = consumer.get_info().await.map_err(state_error)?;
        let stream = stream_state(stream.info().await.map_err(state_error)?);
        let batch = durable.batch_max.max(1);
        let puller = Puller::subscribe(self.0.js.clone(), consumer.clone(), batch, connects)
            .await
            .map_err(|error| BindError::Subscribe(error.to_string()))?;
        Ok(Binding {
            subscription: NatsSubscription { puller, consumer },
            consumer: consumer_state(&info),
            stream,
            ack_wait,
        })
    }

    async fn request(
        &self,
        subject: &str,
        payload: Bytes,
        within: Duration,
    ) -> Result<Bytes, RequestError> {
        timeout(within, self.ask(subject, payload))
            .await
            .unwrap_or(Err(RequestError::TimedOut))
    }

    async fn answer(
        &self,
        subject: &'static str,
        group: &'static str,
    ) -> Result<NatsRequests, RequestError> {
        let subscribed = self
            .0
            .client
            .queue_subscribe(subject, group.to_owned())
            .await
            .map_err(|error| RequestError::Send(error.to_string()))?;
        Ok(NatsRequests {
            client: self.0.client.clone(),
            subscribed,
        })
    }
}

impl NatsBus {
    /// A stream that someone made too wide (`auth.>`) answers a request too, and
    /// first, with the acknowledgement of having stored it. The reply is read
    /// from an inbox of our own, where that is skipped and the real answer
    /// awaited.
    async fn ask(&self, subject: &str, payload: Bytes) -> Result<Bytes, RequestError> {
        let inbox = self.0.client.new_inbox();
        let mut replies = self
            .0
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| RequestError::Send(error.to_string()))?;
        self.0
            .client
            .publish_with_reply(subject.to_owned(), inbox, payload)
            .await
            .map_err(|error| RequestError::Send(error.to_string()))?;
        while let Some(reply) = replies.next().await {
            if reply.status == Some(StatusCode::NO_RESPONDERS) {
                return Err(RequestError::NoResponders);
            }
            if !is_stream_ack(&reply.payload) {
                return Ok(reply.payload);
            }
        }
        Err(RequestError::TimedOut)
    }
}

/// Messages of a durable consumer by pull requests.
pub struct NatsSubscription {
    puller: Puller,
    consumer: PullConsumer,
}

impl std::fmt::Debug for NatsSubscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NatsSubscription")
    }
}

impl Subscription for NatsSubscription {
    async fn next(&mut self) -> Result<Message, Lost> {
        self.puller.next().await.map(wrap)
    }

    fn try_next(&mut self) -> Result<Option<Message>, Lost> {
        Ok(self.puller.try_next()?.map(wrap))
    }

    async fn end(&mut self) -> Vec<Message> {
        self.puller.end().await.into_iter().map(wrap).collect()
    }

    async fn state(&mut self) -> Result<ConsumerState, StateError> {
        let info = self.consumer.info().await.map_err(state_error)?;
        Ok(consumer_state(info))
    }
}

/// Requests of a queue group. The client reconnects by itself and keeps the
/// subscription.
#[derive(Debug)]
pub struct NatsRequests {
    client: Client,
    subscribed: Subscriber,
}

impl Requests for NatsRequests {
    async fn next(&mut self) -> Option<Request> {
        loop {
            let asked = self.subscribed.next().await?;
            // Without one there is nobody to answer.
            if let Some(reply) = asked.reply {
                return Some(Request {
                    payload: asked.payload,
                    reply: message::Reply::Nats(self.client.clone(), reply),
                });
            }
        }
    }
}

fn wrap(message: jetstream::Message) -> Message {
    Message(message::From::Nats(message))
}

fn state_error(error: impl std::fmt::Display) -> StateError {
    StateError(error.to_string())
}

fn kept(found: Result<StreamMessage, RawMessageError>) -> Result<Option<Kept>, StateError> {
    match found {
        Ok(message) => Ok(Some(Kept {
            sequence: message.sequence,
            subject: message.subject,
            headers: message.headers,
            payload: message.payload,
            published: message.time.into(),
        })),
        Err(error) => match error.kind() {
            RawMessageErrorKind::NoMessageFound => Ok(None),
            RawMessageErrorKind::JetStream(refused)
                if refused.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Ok(None)
            }
            _ => Err(state_error(error)),
        },
    }
}

fn stream_state(info: &jetstream::stream::Info) -> StreamState {
    StreamState {
        created: i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or(i64::MAX),
        first_sequence: info.state.first_sequence,
        last_sequence: info.state.last_sequence,
    }
}

fn consumer_state(info: &jetstream::consumer::Info) -> ConsumerState {
    ConsumerState {
        pending: info.num_pending,
        ack_pending: info.num_ack_pending as u64,
        ack_floor: info.ack_floor.stream_sequence,
        delivered: info.delivered.stream_sequence,
    }
}

fn config(durable: &Durable) -> Config {
    Config {
        durable_name: Some(durable.name.clone()),
        filter_subject: durable.filter.clone(),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: durable.ack_wait,
        max_deliver: durable
            .deliveries_max
            .map_or(-1, |max| i64::try_from(max).unwrap_or(i64::MAX)),
        max_ack_pending: durable.ack_pending_max,
        // No `backoff`: the server would let its first entry replace the
        // ack wait. Retries are delayed by our NAKs.
        ..Config::default()
    }
}

/// An existing consumer is used as it is.
fn warn_of_differences(durable: &Durable, wanted: &Config, found: &jetstream::consumer::Config) {
    let same = found.filter_subject == wanted.filter_subject
        && found.ack_policy == wanted.ack_policy
        && found.ack_wait == wanted.ack_wait
        && found.max_deliver == wanted.max_deliver
        && found.max_ack_pending == wanted.max_ack_pending
        && found.backoff.is_empty();
    if !same {
        warn!(
            stream = durable.stream.name,
            consumer = durable.name,
            ?found,
            ?wanted,
            "consumer is configured otherwise than wanted and stays so"
        );
    }
}
