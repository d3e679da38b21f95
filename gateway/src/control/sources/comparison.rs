//! Whether the gateway believes what compute believes: digests compared now and
//! then, and what differs asked for again.
//!
//! Two digests can be compared only when both are of the same place in the
//! stream, with nothing under way. A difference counts when it is there twice,
//! a few seconds apart: a user's deletion, for one, reaches both by another stream.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::Context;
use edd_events::bus::{AnyBus, Bus as _};
use edd_events::digest::{Digest, fetch};
use edd_events::stream::COMPUTE;
use rand::RngExt as _;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::events::consumer_info;
use super::snapshot::Snapshots;
use crate::control::status::StatusBoard;
use crate::control::writer::Command;
use crate::telemetry::Metrics;

/// Attempts to find both at rest, and the pause between them.
const ATTEMPTS: u32 = 10;
const ATTEMPT_PAUSE: Duration = Duration::from_secs(1);

/// Pause before a difference is looked at again.
const SECOND_LOOK: Duration = Duration::from_secs(5);

/// One look at JetStream.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Compares, and repairs.
pub(super) struct Comparison {
    pub(super) js: Context,
    pub(super) snapshots: Snapshots,
    pub(super) metrics: Metrics,
    pub(super) board: StatusBoard,
    pub(super) interval: Duration,
}

/// Both were at rest, and differ so.
struct Difference {
    buckets: Vec<u8>,
    ours: u64,
    theirs: u64,
}

impl Comparison {
    /// Compares every interval until `round` is over.
    pub(super) async fn run(self, round: CancellationToken) {
        let comparing = async {
            let mut unrepaired = Vec::new();
            loop {
                // Replicas need not ask at once.
                let pause = self.interval.mul_f64(rand::rng().random_range(0.9..=1.0));
                tokio::time::sleep(pause).await;
                if self.board.now().is_whole() {
                    self.compare(&mut unrepaired).await;
                }
            }
        };
        round.run_until_cancelled(comparing).await;
    }

    /// `unrepaired` are buckets that a repair did not help: they are asked for once, and reported
    /// each time.
    async fn compare(&self, unrepaired: &mut Vec<u8>) {
        let Some(first) = self.look().await else {
            return;
        };
        if first.buckets.is_empty() {
            unrepaired.clear();
            self.metrics.digest_equal(SystemTime::now());
            return;
        }
        tokio::time::sleep(SECOND_LOOK).await;
        let Some(second) = self.look().await else {
            return;
        };
        if second.buckets != first.buckets {
            return;
        }
        self.metrics.digest_drifted();
        tracing::error!(
            buckets = ?second.buckets,
            facts = second.ours,
            facts_of_compute = second.theirs,
            "the state differs from compute's"
        );
        if *unrepaired == second.buckets {
            tracing::error!("and a snapshot does not help: compute tells what is refused here");
            return;
        }
        match self.snapshots.restore(0, second.buckets.clone()).await {
            Ok(sequence) => tracing::info!(sequence, "repaired from compute's snapshot"),
            Err(error) => {
                tracing::warn!(%error, "not repaired; tried again with the next comparison");
                return;
            }
        }
        *unrepaired = second.buckets;
    }

    /// None: they were not found at rest, or nobody answered.
    async fn look(&self) -> Option<Difference> {
        for _ in 0..ATTEMPTS {
            match self.try_look().await {
                Ok(Some(difference)) => return Some(difference),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "no digest to compare with");
                }
            }
            tokio::time::sleep(ATTEMPT_PAUSE).await;
        }
        tracing::info!("the state was not compared with compute's: no answer, or no rest");
        None
    }

    async fn try_look(&self) -> anyhow::Result<Option<Difference>> {
        let bus: AnyBus = self.js.clone().into();
        let (sequence, theirs) = fetch(&bus, self.snapshots.verifier.as_deref()).await?;
        let settled = async {
            let stream = self.js.get_stream(COMPUTE.name).await?;
            let found = consumer_info(&stream).await?;
            anyhow::Ok(found.is_some_and(|found| {
                // Dead letters and what follows the last of ours are not waited for.
                found.num_ack_pending == 0 && found.num_pending == 0
            }))
        };
        if !tokio::time::timeout(LOOK_TIMEOUT, settled).await?? {
            return Ok(None);
        }
        let Some(ours) = self.ours().await else {
            return Ok(None);
        };
        // Nothing came in between.
        let state = tokio::time::timeout(LOOK_TIMEOUT, bus.stream_state(COMPUTE.name)).await??;
        if state.map_or(0, |state| state.last_sequence) != sequence {
            return Ok(None);
        }
        Ok(Some(Difference {
            buckets: ours.differing(&theirs),
            ours: ours.facts(),
            theirs: theirs.facts(),
        }))
    }

    async fn ours(&self) -> Option<Digest> {
        let (answer, digest) = oneshot::channel();
        let command = Command::Digest(answer);
        self.snapshots.writer.send(command).await.ok()?;
        digest.await.ok()
    }
}
