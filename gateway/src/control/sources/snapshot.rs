//! Compute's whole state, when the stream does not reach back far enough: asked
//! for, checked as events are, handed to the writer as one batch.

use std::sync::Arc;
use std::time::Duration;

use edd_events::bus::AnyBus;
use edd_events::consumer::Verdict;
use edd_events::envelope::Cause;
use edd_events::signature::Verifier;
use edd_events::snapshot::{self, SnapshotError};
use edd_events::stream::COMPUTE;
use edd_events::subject::subject;
use rand::RngExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::control::reconcile::Checks;
use crate::control::store::{self, SqlStore};
use crate::control::writer::{Command, Incoming};

/// First and longest pause between attempts.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Why the state is not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The writer has ended, or its database is away.
    #[error("the database: {0}")]
    Database(String),
    /// There is a gap between it and what the stream still holds.
    #[error("the snapshot ends at {sequence}, before the stream, which begins at {first}")]
    Old {
        /// Up to where it goes.
        sequence: u64,
        /// What the stream still has.
        first: u64,
    },
    /// It could not be had.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// Restores the state from compute.
#[derive(Clone, Debug)]
pub struct Snapshots {
    /// Where compute is asked.
    pub bus: AnyBus,
    /// Knows compute's keys.
    pub verifier: Option<Arc<Verifier>>,
    /// What a fact must be like.
    pub checks: Arc<Checks>,
    /// Where the facts go.
    pub writer: mpsc::Sender<Command<SqlStore>>,
}

impl Snapshots {
    /// Asks once and stores what comes; up to which sequence of COMPUTE it goes.
    /// `first` is the oldest that the stream has. In the buckets of `doubted` it
    /// is believed whatever is known.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub async fn restore(&self, first: u64, doubted: Vec<u8>) -> Result<u64, RestoreError> {
        let snapshot = snapshot::fetch(&self.bus, self.verifier.as_deref()).await?;
        let sequence = snapshot.sequence;
        if sequence.saturating_add(1) < first {
            return Err(RestoreError::Old { sequence, first });
        }
        let facts = snapshot.facts.iter().map(|delivery| Incoming {
            // No event: what is in the inbox is told apart by ids.
            event_id: String::new(),
            stream: delivery.position.stream.clone(),
            sequence: delivery.position.sequence,
            told: store::Cause {
                subject: subject(delivery.event.kind, &delivery.event.entity),
                stream: delivery.position.stream.clone(),
                sequence: delivery.position.sequence,
                event_id: delivery.event.event_id.clone(),
                source: delivery.event.source.clone(),
            },
            cause: Cause::default(),
            change: self.checks.check(delivery),
        });
        let (answer, verdicts) = oneshot::channel();
        let command = Command::Snapshot {
            batch: facts.collect(),
            sequence,
            doubted,
            answer,
        };
        let ended = || RestoreError::Database("the control path has ended".into());
        self.writer.send(command).await.map_err(|_| ended())?;
        let verdicts = verdicts.await.map_err(|_| ended())?;
        let verdicts = verdicts.map_err(|error| RestoreError::Database(error.to_string()))?;
        let count = |is: fn(&Verdict) -> bool| verdicts.iter().filter(|&one| is(one)).count();
        tracing::info!(
            stream = COMPUTE.name,
            sequence,
            facts = verdicts.len(),
            applied = count(|verdict| matches!(verdict, Verdict::Applied)),
            refused = count(|verdict| matches!(verdict, Verdict::Reject(_))),
            "restored from compute's snapshot"
        );
        Ok(sequence)
    }

    /// As [`Self::restore`], again and again until it is done or `round` is over.
    pub async fn restore_in_time(self, first: u64, round: CancellationToken) {
        let mut pause = RETRY_FIRST;
        loop {
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
            pause = (pause * 2).min(RETRY_MAX);
            if tokio::time::timeout(jittered, round.cancelled())
                .await
                .is_ok()
            {
                return;
            }
            match round
                .run_until_cancelled(self.restore(first, Vec::new()))
                .await
            {
                None | Some(Ok(_)) => return,
                Some(Err(error)) => {
                    tracing::warn!(%error, retry_ms = pause.as_millis(), "state not restored yet");
                }
            }
        }
    }
}
