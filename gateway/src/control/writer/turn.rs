//! Turns: what others committed is taken over, then the own change is stored, and
//! only then put in force.

use std::collections::HashSet;

use tokio::time::Instant;

use super::{WriteError, Writer, announce};
use crate::control::plan::Plan;
use crate::control::reconcile::{Effects, State};
use crate::control::store::{Ahead, Commit, GatewayStore};

impl<S: GatewayStore> Writer<S> {
    /// Begins a turn.
    pub(super) async fn turn(&mut self) -> Result<S::Turn, WriteError> {
        let (turn, _) = self.turn_for(&[]).await?;
        Ok(turn)
    }

    /// The turn may take as long as it takes to write the whole state and `more` rows.
    pub(super) async fn prolong(&self, turn: &mut S::Turn, more: usize) -> Result<(), WriteError> {
        let session = self.session.as_ref().ok_or(WriteError::Closed)?;
        let rows = self.state.containers().count() + self.state.keys().count() + more;
        // Containers have rules, and all of it is in the journal too.
        Ok(session.store.prolong(turn, 4 * rows).await?)
    }

    /// Begins a turn; also tells which of these events were handled before.
    pub(super) async fn turn_for(
        &mut self,
        event_ids: &[&str],
    ) -> Result<(S::Turn, HashSet<String>), WriteError> {
        let session = self.session.as_mut().ok_or(WriteError::Closed)?;
        let begun = session.store.begin(self.position, event_ids).await?;
        session.used = Instant::now();
        self.take_over(begun.ahead)?;
        Ok((begun.turn, begun.seen))
    }

    /// Takes over what others committed, without a turn of its own.
    pub(super) async fn follow(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        let followed = match session.store.ahead(self.position).await {
            Ok(ahead) => self.take_over(ahead),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = followed {
            self.fail(&error);
        }
    }

    /// Step by step, so that what ended and began again has ended here too.
    fn take_over(&mut self, ahead: Ahead) -> Result<(), WriteError> {
        if ahead.gap != self.gap {
            self.see_gap(ahead.gap);
        }
        if ahead.position == self.position && ahead.revision == self.stored_revision {
            return Ok(());
        }
        let entries = ahead.entries.ok_or(WriteError::Behind)?;
        let mut plan = Plan::default();
        for entry in &entries {
            let mut touched = Effects::default();
            self.state
                .take_over(&entry.record, entry.at_ms, &mut touched);
            if !self.withheld {
                plan.step(self.table.table(), &self.state, &touched);
            }
        }
        self.position = ahead.position;
        self.stored_revision = ahead.revision;
        if !entries.is_empty() {
            tracing::debug!(
                changes = entries.len(),
                revision = ahead.revision,
                "following another gateway"
            );
        }
        plan.take(&mut self.table);
        if !self.withheld && ahead.revision > self.table.table().revision {
            // Also when it is a file of theirs that changed: whoever waits for this
            // revision waits for everything before it.
            self.table.advance();
        }
        self.publish(ahead.revision);
        self.tell_common();
        Ok(())
    }

    /// Stores, then puts in force. On an error nothing has changed here, and the
    /// database is read again before it is used.
    pub(super) async fn store_and_publish(
        &mut self,
        turn: S::Turn,
        change: Option<(State, Effects)>,
        plan: Plan,
        mut commit: Commit<'_>,
    ) -> Result<(), WriteError> {
        if !plan.is_empty() {
            let revision = self.next_revision();
            let containers = plan.container_count(self.table.table());
            let statics = match &plan.statics {
                Some(specs) => specs.len(),
                None => self.table.table().statics().iter().len(),
            };
            commit.revision = Some(revision);
            let refreshed = announce::refreshed(revision, containers, statics, &plan.cause);
            commit.outbox.push(refreshed);
        } else if self.withheld
            && let Some((_, touched)) = &change
            && (!touched.containers.is_empty() || !touched.key_owners.is_empty())
        {
            // Our table waits; that of another gateway, which follows, does not, and its revision
            // must be one that all know. It follows when it hears of it.
            let revision = self.next_revision();
            let table = self.table.table();
            let containers = i64::try_from(table.containers().len()).unwrap_or(i64::MAX);
            let statics = table.statics().iter().len();
            commit.revision = Some(revision);
            let refreshed = announce::refreshed(revision, containers, statics, &plan.cause);
            commit.outbox.push(refreshed);
        }
        if self.statics_unsaved || plan.statics.is_some() {
            let in_force = || self.table.table().static_specs().cloned().collect();
            commit.statics = Some(plan.statics.clone().unwrap_or_else(in_force));
            let now = self.table.table().revision;
            commit.statics_revision = commit.revision.unwrap_or(now);
        }
        commit.changes = change.as_ref().map(|(state, effects)| (state, effects));
        commit.position = self.position;
        commit.revision_before = self.stored_revision;
        let session = self.session.as_mut().ok_or(WriteError::Closed)?;
        let wakes = !commit.outbox.is_empty() || commit.statics.is_some();
        self.position = session.store.commit(turn, &commit).await?;
        session.used = Instant::now();
        let revision = commit.revision;
        self.stored_revision = revision.unwrap_or(self.stored_revision);
        if wakes && let Some(waker) = &session.waker {
            waker.wake();
        }
        self.statics_unsaved = false;
        if let Some((state, _)) = change {
            self.state = state;
        }
        self.put_in_force(plan, revision);
        self.tell_common();
        Ok(())
    }

    /// Above every revision that this gateway or the database has seen.
    pub(super) fn next_revision(&self) -> u64 {
        let seen = self.revision_min.max(self.stored_revision);
        self.table.table().revision.max(seen) + 1
    }

    pub(super) fn put_in_force(&mut self, plan: Plan, revision: Option<u64>) {
        plan.take(&mut self.table);
        self.publish(revision.unwrap_or_default());
    }

    /// `stored` is the revision that the database gives to what is published, if it
    /// does: that is the one, even where a database that was lost or set back since
    /// had seen it before.
    pub(super) fn publish(&mut self, stored: u64) {
        let revision_min = match stored > self.table.table().revision {
            true => stored,
            false => stored.max(self.revision_min.saturating_add(1)),
        };
        if let Some(published) = self.table.publish(revision_min) {
            let revision = published.table.revision;
            self.shared.swap(published);
            self.revision_min = revision;
            self.revision.send_replace(revision);
            if !self.has_others() {
                self.common.send_replace(revision);
            }
        }
    }

    /// The table in force has all that the database has. What is put in force without
    /// it has a number that may mean something else to another gateway.
    fn tell_common(&self) {
        if !self.withheld && self.has_others() {
            self.common.send_if_modified(|common| {
                std::mem::replace(common, self.stored_revision) != self.stored_revision
            });
        }
    }

    /// Whether other gateways may have the same database.
    fn has_others(&self) -> bool {
        self.shared.config.database_url.path().is_none()
    }
}
