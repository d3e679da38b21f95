//! A batch of events, in one turn.

use std::collections::{BTreeMap, HashSet};

use edd_events::consumer::Verdict;

use super::{Incoming, Reached, WriteError, Writer, announce};
use crate::control::last_good::now_ms;
use crate::control::plan::Plan;
use crate::control::reconcile::{Effects, Outcome};
use crate::control::store::{Commit, GatewayStore, Line};

/// Larger ones are no batches of a stream.
const BATCH_USUAL: usize = 1_000;

impl<S: GatewayStore> Writer<S> {
    /// As [`Self::events`]. Where the database does not take something of it, each by itself:
    /// only what it does not take comes again, and holds up nothing else. Not even what is
    /// `reached` is stored if some of that does not come again by itself: it is to be read again.
    pub(super) async fn batch(
        &mut self,
        batch: &[Incoming],
        restarts: Option<u64>,
        reached: Option<Reached>,
    ) -> Result<Vec<Verdict>, WriteError> {
        match self.events(batch, restarts, reached).await {
            Err(error) if error.is_about_values() && !batch.is_empty() => {
                tracing::warn!(%error, events = batch.len(), "not stored together");
            }
            done => return done,
        }
        let mut verdicts = Vec::with_capacity(batch.len());
        for event in batch {
            let one = std::slice::from_ref(event);
            match self.events(one, restarts, None).await {
                Ok(one) => verdicts.extend(one),
                Err(error) if error.is_about_values() => {
                    // Unless no event can be stored: then it is the database's fault.
                    self.try_out().await?;
                    verdicts.push(Verdict::Retry(error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(reached) = reached
            && !reached.lacks(batch.iter().map(|event| event.sequence), &verdicts)
        {
            self.events(&[], restarts, Some(reached)).await?;
        }
        Ok(verdicts)
    }

    async fn try_out(&self) -> Result<(), WriteError> {
        let session = self.session.as_ref().ok_or(WriteError::Closed)?;
        Ok(session.store.try_out().await?)
    }

    /// Reduces a batch, stores it and puts it in force, with how far the database
    /// has their stream then, if that is known; one verdict per event.
    ///
    /// Where they stand means nothing any more if the sequences of their stream have started over
    /// more often than `restarts`: a late batch of one that is gone, or that another gateway has
    /// found to be another meanwhile.
    pub(super) async fn events(
        &mut self,
        batch: &[Incoming],
        restarts: Option<u64>,
        reached: Option<Reached>,
    ) -> Result<Vec<Verdict>, WriteError> {
        let ids = batch.iter().map(|event| event.event_id.as_str());
        let ids: Vec<&str> = ids.filter(|id| !id.is_empty()).collect();
        let (mut turn, seen) = self.turn_for(&ids).await?;
        if batch.len() > BATCH_USUAL {
            self.prolong(&mut turn, batch.len()).await?;
        }
        let now_ms = now_ms();
        let mut next = self.state.clone();
        let mut effects = Effects::default();
        let (mut outbox, mut journal) = (Vec::new(), Vec::new());
        let mut handled = HashSet::new();
        let mut verdicts = Vec::with_capacity(batch.len());
        let mut positions = BTreeMap::new();
        let mut plan = Plan::default();
        let mut changed_by = None;
        for event in batch {
            let position = positions.entry(event.stream.clone()).or_insert(0);
            *position = event.sequence.max(*position);
            verdicts.push(match &event.change {
                Err(reason) => Verdict::Reject(reason.clone()),
                Ok(_) if seen.contains(&event.event_id) => Verdict::Stale,
                Ok(_) if !event.event_id.is_empty() && !handled.insert(event.event_id.as_str()) => {
                    Verdict::Stale
                }
                Ok(change) => {
                    let mut touched = Effects::default();
                    let outcome = next.apply(change, now_ms, &mut touched);
                    let told = touched.announcements.drain(..);
                    outbox.extend(told.filter_map(|told| announce::rule(&told, &event.cause)));
                    if !self.withheld && plan.step(self.table.table(), &next, &touched) {
                        changed_by = Some(&event.cause);
                    }
                    journal.extend(Line::of(&next, &touched, &event.told));
                    effects.add(touched);
                    match outcome {
                        Outcome::Applied => Verdict::Applied,
                        Outcome::Stale => Verdict::Stale,
                    }
                }
            });
        }
        // A wider gap may have been found while this snapshot was on its way.
        let fills = reached.is_some_and(|reached| {
            reached.restarts.is_none()
                && self.gap > 0
                && self.gap <= reached.floor.saturating_add(1)
        });
        plan.cause = changed_by.cloned().unwrap_or_default();
        let commit = Commit {
            event_ids: handled.into_iter().collect(),
            positions,
            restarts,
            floors: reached
                .map(|reached| (reached.stream.to_owned(), reached.floor))
                .into_iter()
                .collect(),
            tries: reached.map(|reached| (reached.stream, reached.tries)),
            gap: reached.filter(|_| fills).map(|reached| (reached.stream, 0)),
            outbox,
            journal,
            now_ms,
            ..Commit::default()
        };
        self.store_and_publish(turn, Some((next, effects)), plan, commit)
            .await?;
        if fills {
            self.see_gap(0);
        }
        Ok(verdicts)
    }
}
