//! Binding to the durable consumer: stream, consumer and subscription are there
//! afterwards, whatever was missing before.

use std::time::Duration;

use async_nats::{
    Client,
    jetstream::{
        consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
        stream::ConsumerError,
    },
};
use tokio::time::{error::Elapsed, timeout};
use tracing::warn;

use super::{ACK_PENDING_MAX, Consumer, DELIVERIES_MAX, pull::Puller};
use crate::{
    connect::{connects, is_connected, lost},
    stream::{ADVISORIES, EnsureError, ensure},
};

/// All of it together.
const BIND_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a client may take to be connected before that is worth a line.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
const CONNECT_POLL: Duration = Duration::from_millis(20);

/// Everything needed to consume.
pub(super) struct Bound {
    pub(super) puller: Puller,
    pub(super) consumer: PullConsumer,
    /// Events not yet delivered.
    pub(super) pending: u64,
    /// Up to here some were delivered, perhaps to a process that is no more,
    /// and are not acknowledged; none: all are.
    pub(super) unsettled_to: Option<u64>,
    /// The stream's last sequence at this time.
    pub(super) last_sequence: u64,
}

/// Waits until the client is connected, for a while.
pub(super) async fn connected(client: &Client) -> Result<(), Elapsed> {
    let connected = async {
        while !is_connected(client) {
            tokio::time::sleep(CONNECT_POLL).await;
        }
    };
    timeout(CONNECT_WAIT, connected).await
}

#[derive(Debug, thiserror::Error)]
pub(super) enum BindError {
    #[error("consumer: {0}")]
    Consumer(#[from] ConsumerError),
    #[error("not connected to NATS")]
    Disconnected,
    #[error(transparent)]
    Ensure(#[from] EnsureError),
    #[error("consumer: {0}")]
    Info(String),
    #[error("subscription: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
    #[error("JetStream does not answer")]
    TimedOut,
}

impl Consumer {
    /// Cancel safe: what was created stays and is found the next time.
    pub(super) async fn bind(&self) -> Result<Bound, BindError> {
        let client = self.js.client();
        connected(&client)
            .await
            .map_err(|_| BindError::Disconnected)?;
        let connects = connects(&client);
        tokio::select! {
            bound = timeout(BIND_TIMEOUT, self.bind_connected(connects)) => {
                bound.unwrap_or(Err(BindError::TimedOut))
            }
            () = lost(&client, connects) => Err(BindError::Disconnected),
        }
    }

    async fn bind_connected(&self, connects: u64) -> Result<Bound, BindError> {
        let mut stream = ensure(&self.js, &self.spec.stream, self.replicas).await?;
        // Before anything can be delivered, else the server's word about it is
        // kept by nobody.
        if let Err(error) = ensure(&self.js, &ADVISORIES, self.replicas).await {
            warn!(%error, "events whose handlers die with them will leave no dead letter");
        }
        let wanted = self.config();
        let consumer = stream
            .get_or_create_consumer(self.spec.durable, wanted.clone())
            .await?;
        self.warn_of_differences(&wanted, &consumer.cached_info().config);
        let info = consumer
            .get_info()
            .await
            .map_err(|e| BindError::Info(e.to_string()))?;
        let last_sequence = stream
            .info()
            .await
            .map_err(|error| BindError::Info(error.to_string()))?
            .state
            .last_sequence;
        let batch = self.spec.batch_max.max(1);
        let puller = Puller::subscribe(self.js.clone(), consumer.clone(), batch, connects).await?;
        Ok(Bound {
            puller,
            consumer,
            pending: info.num_pending,
            unsettled_to: (info.num_ack_pending > 0).then_some(info.delivered.stream_sequence),
            last_sequence,
        })
    }

    fn config(&self) -> pull::Config {
        pull::Config {
            durable_name: Some(self.spec.durable.to_owned()),
            filter_subject: self.spec.filter.to_owned(),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            max_deliver: DELIVERIES_MAX as i64,
            max_ack_pending: ACK_PENDING_MAX,
            // No `backoff`: the server would let its first entry replace the
            // ack wait. Retries are delayed by our NAKs.
            ..pull::Config::default()
        }
    }

    /// An existing consumer is used as it is.
    fn warn_of_differences(
        &self,
        wanted: &pull::Config,
        found: &async_nats::jetstream::consumer::Config,
    ) {
        let same = found.filter_subject == wanted.filter_subject
            && found.ack_policy == wanted.ack_policy
            && found.ack_wait == wanted.ack_wait
            && found.max_deliver == wanted.max_deliver
            && found.max_ack_pending == wanted.max_ack_pending
            && found.backoff.is_empty();
        if !same {
            warn!(
                stream = self.spec.stream.name,
                consumer = self.spec.durable,
                ?found,
                ?wanted,
                "consumer is configured otherwise than wanted and stays so"
            );
        }
    }
}
