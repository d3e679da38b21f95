//! `compute.snapshot.request`: the whole state in pages, for a gateway that
//! cannot hear it from the streams any more.
//!
//! The first page makes a snapshot, in one read of the database, after the
//! stream's last sequence was read: what is in the stream by then is in the
//! database too. It is kept for a minute after it was last asked for, and there
//! are two at most; replicas do not share them, so an asker whose pages come
//! from different replicas starts over.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use edd_events::{
    bus::{AnyBus, Bus as _, Request, Requests as _},
    signature::Signer,
    snapshot::{Pages, SNAPSHOT_REQUEST, no_such_snapshot},
    stream,
};
use edd_proto::compute::SnapshotRequest;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// Requests are answered by one replica.
const QUEUE_GROUP: &str = "compute";
/// Snapshots at a time.
const KEPT_MAX: usize = 2;
/// For so long after it was last asked for.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Askers wait no longer for a first page.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// One look at the stream.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest request that is decoded, in bytes.
const REQUEST_BYTES_MAX: usize = 4096;
/// Pause before subscribing again after the subscription ended.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);

/// Answers requests for snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    pub(crate) bus: AnyBus,
    pub(crate) store: Store,
    pub(crate) signer: Option<Arc<Signer>>,
}

#[derive(Debug, thiserror::Error)]
enum SnapshotError {
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("stream: {0}")]
    Stream(String),
}

impl Snapshots {
    /// Answers one request after the other until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let serve = async {
            let mut kept: Vec<(Pages, Instant)> = Vec::new();
            loop {
                match self.bus.answer(SNAPSHOT_REQUEST, QUEUE_GROUP).await {
                    Ok(mut requests) => {
                        while let Some(request) = requests.next().await {
                            let answering = self.answer(request, &mut kept);
                            if tokio::time::timeout(ANSWER_TIMEOUT, answering)
                                .await
                                .is_err()
                            {
                                tracing::warn!("a snapshot was not made in time");
                            }
                        }
                    }
                    Err(error) => tracing::warn!(%error, "cannot subscribe to {SNAPSHOT_REQUEST}"),
                }
                tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
            }
        };
        shutdown.run_until_cancelled(serve).await;
    }

    async fn answer(&self, request: Request, kept: &mut Vec<(Pages, Instant)>) {
        let payload = &request.payload;
        let asked = match SnapshotRequest::decode(payload.clone()) {
            Ok(asked) if payload.len() <= REQUEST_BYTES_MAX => asked,
            _ => return,
        };
        kept.retain(|(_, used)| used.elapsed() < KEPT_FOR);
        let signer = self.signer.as_deref();
        let answer = if asked.snapshot_id.is_empty() {
            let pages = match self.make().await {
                Ok(pages) => pages,
                // No answer: the asker tries again.
                Err(error) => {
                    tracing::warn!(%error, "no snapshot for {SNAPSHOT_REQUEST}");
                    return;
                }
            };
            let answer = pages.answer(&asked, signer);
            if kept.len() >= KEPT_MAX {
                kept.remove(0);
            }
            tracing::info!(id = pages.id(), "snapshot made");
            kept.push((pages, Instant::now()));
            answer
        } else {
            match kept
                .iter_mut()
                .find(|(pages, _)| pages.id() == asked.snapshot_id)
            {
                Some((pages, used)) => {
                    *used = Instant::now();
                    pages.answer(&asked, signer)
                }
                None => no_such_snapshot(&asked, signer),
            }
        };
        if let Err(error) = request.respond(Bytes::from(answer)).await {
            tracing::warn!(%error, "cannot answer {SNAPSHOT_REQUEST}");
        }
    }

    async fn make(&self) -> Result<Pages, SnapshotError> {
        // First the sequence, then the state: all that the stream has by now is
        // committed.
        let looking = self.bus.stream_state(stream::COMPUTE.name);
        let state = tokio::time::timeout(STREAM_TIMEOUT, looking)
            .await
            .map_err(|_| SnapshotError::Stream("no answer".to_owned()))?
            .map_err(|error| SnapshotError::Stream(error.to_string()))?;
        let sequence = state.map_or(0, |state| state.last_sequence);
        Ok(Pages::new(sequence, self.store.facts().await?))
    }
}
