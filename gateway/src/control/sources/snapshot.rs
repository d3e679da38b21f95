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
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::control::reconcile::Checks;
use crate::control::status::{DatabaseStatus, NatsStatus, Status, StatusBoard};
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
    /// One is asked for at a time.
    pub asking: Arc<Mutex<()>>,
}

impl Snapshots {
    /// Asks once and stores what comes; up to which sequence of COMPUTE it goes.
    /// `first` is the oldest that the stream has. In the buckets of `doubted` it
    /// is believed whatever is known.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub async fn restore(&self, first: u64, doubted: Vec<u8>) -> Result<u64, RestoreError> {
        let _asking = self.asking.lock().await;
        self.ask(first, doubted).await
    }

    async fn ask(&self, first: u64, doubted: Vec<u8>) -> Result<u64, RestoreError> {
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
                // That of the page is none that anybody has published.
                event_id: String::new(),
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

    /// Asks while `board` says that a snapshot is wanted: after a moment, and again
    /// with growing pauses until there was one. For as long as the process consumes,
    /// however often it begins to. Never ends.
    pub async fn restore_as_wanted(&self, board: &StatusBoard) {
        let mut status = board.watch();
        let mut pause = RETRY_FIRST;
        loop {
            if status.borrow_and_update().snapshot_wanted.is_none() {
                pause = RETRY_FIRST;
            }
            // The board ends with the process.
            let _ = status.wait_for(|status| wanted(status).is_some()).await;
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
            tokio::time::sleep(jittered).await;
            let _asking = self.asking.lock().await;
            let Some(first) = wanted(&board.now()) else {
                continue;
            };
            pause = (pause * 2).min(RETRY_MAX);
            if let Err(error) = self.ask(first, Vec::new()).await {
                tracing::warn!(%error, retry_ms = pause.as_millis(), "state not restored yet");
            }
        }
    }
}

/// The snapshot that is wanted, when there is any sense in asking.
fn wanted(status: &Status) -> Option<u64> {
    let can_ask = status.nats == NatsStatus::Connected
        && status.database != DatabaseStatus::Unavailable
        && status.consuming;
    status.snapshot_wanted.filter(|_| can_ask)
}
