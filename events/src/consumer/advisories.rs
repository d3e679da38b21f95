//! Events whose handlers died with them: a process that ends on the fifth
//! delivery leaves a message that the server never delivers again.
//!
//! The server says so in an advisory. The stream `ADVISORIES` keeps those, a
//! durable consumer of each stream and consumer reads them, fetches the original
//! and writes its dead letter, under the message id that a burial has: both
//! paths together make one letter. Processes of one name share the work.

use std::time::Duration;

use async_nats::jetstream::AckKind;
use serde::Deserialize;
use tokio::time::sleep;
use tracing::{debug, error, warn};

use super::{ACK_PENDING_MAX, Consumer, Durable, acks::acknowledge};
use crate::{
    backoff::Backoff,
    bus::{BindError, Bus as _, Lost, Message, StateError, Subscription as _},
    dead_letter::{DeadLetter, WriteError},
    stream::ADVISORIES,
    subject::{Parsed, parse},
};

/// What the letters of this module say.
const REASON: &str = "every process that was handling it ended before it was done";
/// Pauses between attempts to listen.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Pause before an advisory whose letter could not be written comes again.
const AGAIN: Duration = Duration::from_secs(2);
/// Advisories asked for at once.
const BATCH: usize = 64;

/// `io.nats.jetstream.advisory.v1.max_deliver`.
#[derive(Debug, Deserialize)]
struct MaxDeliveries {
    stream: String,
    consumer: String,
    stream_seq: u64,
    deliveries: u64,
}

#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("{0}")]
    Lost(Lost),
}

#[derive(Debug, thiserror::Error)]
enum LetterFailure {
    #[error(transparent)]
    Original(#[from] StateError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Consumer {
    /// Writes dead letters for the server's advisories about this consumer.
    /// Never ends.
    ///
    /// Cancel safety: an advisory is acknowledged after its letter is stored;
    /// one in work comes again.
    pub(super) async fn heed_advisories(&self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let stream = self.spec.stream.name;
        loop {
            let mut heard = false;
            let error = match self.listen(&mut heard).await {
                Err(ListenError::Lost(Lost::Reconnected)) => {
                    backoff.reset();
                    continue;
                }
                Err(error) => error,
                Ok(never) => match never {},
            };
            if heard {
                backoff.reset();
            }
            // Without NATS the consumer itself says so.
            debug!(stream, %error, "not listening to advisories");
            sleep(backoff.next()).await;
        }
    }

    async fn listen(&self, heard: &mut bool) -> Result<std::convert::Infallible, ListenError> {
        let durable = self.advisories();
        let mut puller = self.bind_to(&durable, async {}).await?.subscription;
        loop {
            let message = puller.next().await.map_err(ListenError::Lost)?;
            *heard = true;
            let kind = match self.heed(&message).await {
                Ok(()) => AckKind::Ack,
                Err(error) => {
                    warn!(%error, "dead letter of an advisory cannot be stored yet");
                    AckKind::Nak(Some(AGAIN))
                }
            };
            acknowledge(self, &message, kind).await;
        }
    }

    /// One durable consumer for each pair, so that each has one filter.
    fn advisories(&self) -> Durable {
        let (stream, consumer) = (self.spec.stream.name, self.spec.durable);
        Durable {
            stream: ADVISORIES,
            name: format!("{stream}-{consumer}"),
            filter: format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.{consumer}"),
            ack_wait: super::ACK_WAIT,
            deliveries_max: None,
            ack_pending_max: ACK_PENDING_MAX,
            batch_max: BATCH,
        }
    }

    /// Turns the original into a dead letter, unless it is none of ours.
    async fn heed(&self, message: &Message) -> Result<(), LetterFailure> {
        let spec = &self.spec;
        let advisory = match serde_json::from_slice::<MaxDeliveries>(&message.payload) {
            Ok(advisory) => advisory,
            Err(error) => {
                warn!(subject = %message.subject, %error, "an advisory that does not decode");
                return Ok(());
            }
        };
        if advisory.stream != spec.stream.name || advisory.consumer != spec.durable {
            return Ok(());
        }
        let sequence = advisory.stream_seq;
        let Some(original) = self.bus.get(spec.stream.name, sequence).await? else {
            // Not even its subject is known any more.
            error!(
                stream = spec.stream.name,
                sequence,
                deliveries = advisory.deliveries,
                result = "lost",
                "event: expired before anyone could handle it or bury it"
            );
            self.metrics.lost();
            return Ok(());
        };
        let Parsed::Event(kind, _) = parse(&original.subject) else {
            return Ok(());
        };
        let letter = DeadLetter {
            kind,
            subject: &original.subject,
            headers: Some(&original.headers),
            payload: &original.payload,
            stream: spec.stream.name,
            consumer: spec.durable,
            sequence,
            published_at: original.published,
            deliveries: advisory.deliveries,
            reason: REASON,
        };
        // An advisory may be read long after the letter was written.
        if letter.publish_if_new(&self.bus).await? {
            error!(
                r#type = kind.name(), subject = %original.subject, result = "dead_lettered",
                reason = REASON, deliveries = advisory.deliveries, "event"
            );
            self.metrics.event(kind.label(), "dead_lettered");
            self.metrics.dead_lettered(spec.stream.name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advisories_of_the_server_are_read() {
        // As nats-server 2.9 writes them.
        let text = r#"{"type":"io.nats.jetstream.advisory.v1.max_deliver","id":"x",
            "timestamp":"2026-01-01T00:00:00Z","stream":"COMPUTE","consumer":"gateway-service",
            "stream_seq":7,"deliveries":5}"#;
        let read: MaxDeliveries = serde_json::from_str(text).unwrap();
        assert_eq!((read.stream_seq, read.deliveries), (7, 5));
        assert_eq!(
            (read.stream.as_str(), read.consumer.as_str()),
            ("COMPUTE", "gateway-service")
        );
    }
}
