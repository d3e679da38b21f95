//! `compute.digest.request`: what the whole state comes to, for a gateway that
//! wants to know whether it believes the same.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use edd_events::{
    bus::{AnyBus, Bus as _, Request, Requests as _},
    digest::{DIGEST_REQUEST, Digest, Fact},
    event::Payload,
    outbox,
    signature::Signer,
    stream,
    subject::{Parsed, parse},
};
use edd_proto::compute::DigestRequest;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// Requests are answered by one replica.
const QUEUE_GROUP: &str = "compute";
/// Askers wait no longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// One look at the stream.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest request that is decoded, in bytes.
const REQUEST_BYTES_MAX: usize = 4096;
/// Pause before subscribing again after the subscription ended.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);

/// Answers requests for digests.
#[derive(Debug)]
pub(crate) struct Digests {
    pub(crate) bus: AnyBus,
    pub(crate) store: Store,
    pub(crate) signer: Option<Arc<Signer>>,
}

/// Why there is none at the moment.
#[derive(Debug, thiserror::Error)]
enum DigestError {
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("events wait to be published")]
    Pending,
    #[error("stream: {0}")]
    Stream(String),
}

impl Digests {
    /// Answers one request after the other until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let serve = async {
            loop {
                match self.bus.answer(DIGEST_REQUEST, QUEUE_GROUP).await {
                    Ok(mut requests) => {
                        while let Some(request) = requests.next().await {
                            let answering =
                                tokio::time::timeout(ANSWER_TIMEOUT, self.answer(request));
                            if answering.await.is_err() {
                                tracing::warn!("a digest was not made in time");
                            }
                        }
                    }
                    Err(error) => tracing::warn!(%error, "cannot subscribe to {DIGEST_REQUEST}"),
                }
                tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
            }
        };
        shutdown.run_until_cancelled(serve).await;
    }

    async fn answer(&self, request: Request) {
        let payload = &request.payload;
        let asked = match DigestRequest::decode(payload.clone()) {
            Ok(asked) if payload.len() <= REQUEST_BYTES_MAX => asked,
            _ => return,
        };
        let answer = match self.make().await {
            Ok((sequence, digest)) => digest.answer(&asked, sequence, self.signer.as_deref()),
            // No answer: the asker tries again.
            Err(error) => {
                tracing::debug!(%error, "no digest for {DIGEST_REQUEST}");
                return;
            }
        };
        if let Err(error) = request.respond(Bytes::from(answer)).await {
            tracing::warn!(%error, "cannot answer {DIGEST_REQUEST}");
        }
    }

    /// First the sequence, then the state, then whether something waits: what is in the state and
    /// not in the stream up to the sequence waits still, or has made the stream longer, which the
    /// asker looks at last.
    async fn make(&self) -> Result<(u64, Digest), DigestError> {
        let looking = self.bus.stream_state(stream::COMPUTE.name);
        let state = tokio::time::timeout(STREAM_TIMEOUT, looking)
            .await
            .map_err(|_| DigestError::Stream("no answer".to_owned()))?
            .map_err(|error| DigestError::Stream(error.to_string()))?;
        let sequence = state.map_or(0, |state| state.last_sequence);
        let facts = self.store.facts().await?;
        if outbox::pending(self.store.database().sql()).await? > 0 {
            return Err(DigestError::Pending);
        }
        let mut digest = Digest::default();
        for fact in &facts {
            let Parsed::Event(kind, _) = parse(&fact.subject) else {
                continue;
            };
            let payload = Payload::decode(kind, &fact.payload);
            if let Some(fact) = payload.ok().as_ref().and_then(Fact::of) {
                digest.add(&fact);
            }
        }
        Ok((sequence, digest))
    }
}
