//! Pull requests under our own control.
//!
//! async-nats's ready-made message stream asks for more by itself as soon as it
//! is polled. Here nothing is asked for while a batch is in work: what is on
//! its way is bounded by the credit given, and all of it can be kept alive with
//! progress acknowledgements through a long pause. A request always waits at
//! the server while we are idle, so that an event arrives without a round trip.

use std::time::{Duration, Instant};

use async_nats::{
    Client, StatusCode, SubscribeError, Subscriber,
    jetstream::{
        self, Context,
        consumer::{PullConsumer, pull::BatchConfig},
    },
};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{sleep, timeout};
use tracing::trace;

use crate::{
    bus::Lost,
    connect::{connects, is_connected},
};

/// How long a pull request waits at the server.
const EXPIRES: Duration = Duration::from_secs(30);
/// The server says that it is there this often while nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Longer silence means that the server forgot our request.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// How often to look for a reconnect and for silence.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long what is on its way may take at the end.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// A subscription with credit at the server.
pub(super) struct Puller {
    js: Context,
    client: Client,
    consumer: PullConsumer,
    inbox: String,
    subscriber: Subscriber,
    batch: usize,
    /// Messages that the server may still send for our requests.
    credit: usize,
    heard: Instant,
    connects: u64,
}

impl Puller {
    pub(super) async fn subscribe(
        js: Context,
        consumer: PullConsumer,
        batch: usize,
        connects: u64,
    ) -> Result<Self, SubscribeError> {
        let client = js.client();
        let inbox = client.new_inbox();
        let subscriber = client.subscribe(inbox.clone()).await?;
        let heard = Instant::now();
        Ok(Self {
            js,
            client,
            consumer,
            inbox,
            subscriber,
            batch,
            credit: 0,
            heard,
            connects,
        })
    }

    /// The next message, asking for more when few are on their way.
    ///
    /// Cancel safe: no message is lost; at worst one request too many is made.
    pub(super) async fn next(&mut self) -> Result<jetstream::Message, Lost> {
        loop {
            self.top_up().await?;
            let received = tokio::select! {
                biased;
                received = self.subscriber.next() => received,
                () = sleep(WATCH_INTERVAL) => {
                    self.watch()?;
                    continue;
                }
            };
            if let Some(message) = self.accept(received)? {
                return Ok(message);
            }
        }
    }

    /// A message that is here already. Asks for nothing.
    pub(super) fn try_next(&mut self) -> Result<Option<jetstream::Message>, Lost> {
        while let Some(received) = self.subscriber.next().now_or_never() {
            if let Some(message) = self.accept(received)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Unsubscribes, in the order of what else is sent; what arrived before the
    /// server knew.
    ///
    /// Our requests still wait at the server, for nobody. As long as they are all that waits,
    /// nats-server 2.9 takes what is given back out of the queue of what comes again, finds no
    /// request alive, and delivers the newest message twice instead: the one that was given back
    /// is left to the ack wait. Asked about the consumer, it removes the dead requests first.
    pub(super) async fn end(&mut self) -> Vec<jetstream::Message> {
        let mut rest = Vec::new();
        let ending = async {
            if !is_connected(&self.client) || self.subscriber.drain().await.is_err() {
                return;
            }
            while let Some(received) = self.subscriber.next().await {
                if let Ok(Some(message)) = self.accept(Some(received)) {
                    rest.push(message);
                }
            }
            let _ = self.consumer.get_info().await;
        };
        // Without an answer what is still on its way waits for the ack wait.
        let _ = timeout(END_TIMEOUT, ending).await;
        rest
    }

    async fn top_up(&mut self) -> Result<(), Lost> {
        if self.credit > self.batch / 2 {
            return Ok(());
        }
        let request = BatchConfig {
            batch: self.batch,
            expires: Some(EXPIRES),
            idle_heartbeat: HEARTBEAT,
            ..BatchConfig::default()
        };
        let sent = self
            .consumer
            .request_batch(request, self.inbox.clone().into());
        match timeout(SEND_TIMEOUT, sent).await {
            Ok(Ok(())) => {
                self.credit += self.batch;
                // Silence is counted from the first request on.
                self.heard = Instant::now();
                Ok(())
            }
            Ok(Err(error)) => Err(Lost::Request(error.to_string())),
            Err(_) => Err(Lost::Request("not sent in time".into())),
        }
    }

    fn watch(&self) -> Result<(), Lost> {
        if connects(&self.client) != self.connects {
            // The server may have been restarted and forgotten our request.
            return Err(Lost::Reconnected);
        }
        if self.heard.elapsed() > SILENCE_MAX && is_connected(&self.client) {
            return Err(Lost::Silent(SILENCE_MAX.as_secs()));
        }
        Ok(())
    }

    /// Sorts messages from the server's words about our requests.
    fn accept(
        &mut self,
        received: Option<async_nats::Message>,
    ) -> Result<Option<jetstream::Message>, Lost> {
        let Some(message) = received else {
            return Err(Lost::Closed);
        };
        self.heard = Instant::now();
        match message.status {
            None | Some(StatusCode::OK) => {
                self.credit = self.credit.saturating_sub(1);
                return Ok(Some(jetstream::Message {
                    message,
                    context: self.js.clone(),
                }));
            }
            Some(StatusCode::IDLE_HEARTBEAT) => {}
            Some(StatusCode::TIMEOUT) => {
                // The request expired; the header says how much of it is left.
                let unused = message
                    .headers
                    .as_ref()
                    .and_then(|headers| headers.get("Nats-Pending-Messages"))
                    .and_then(|count| count.as_str().parse().ok())
                    .unwrap_or(self.batch);
                self.credit = self.credit.saturating_sub(unused);
                trace!(unused, "pull request expired");
            }
            Some(status) => {
                return Err(Lost::Status(
                    status.as_u16(),
                    message.description.unwrap_or_default(),
                ));
            }
        }
        Ok(None)
    }
}
