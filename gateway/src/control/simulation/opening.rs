//! One opening of the database, which fails as the world wants it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::turns::Turn;
use super::world::{Failure, World};
use crate::config::History;
use crate::control::store::{
    Ahead, Begun, Commit, GatewayStore, Log, Marks, Past, Place, StoreError, Stored, Then,
};
use crate::tls::TicketKey;

#[derive(Clone)]
pub(super) struct Opening {
    pub(super) world: Arc<World>,
    pub(super) seat: usize,
    pub(super) identity: u64,
    /// How often its connections had broken off when it began.
    pub(super) breaks: u64,
}

impl Opening {
    /// Every statement passes here: before it, it may crash; it may fail on either side.
    async fn statement<T>(
        &self,
        run: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.world.point(self.seat).await;
        let failure = self.world.failure(self.seat);
        if failure == Some(Failure::Slow) {
            self.world.pause(9_000).await;
        }
        if let Some(failure) = failure {
            let inner = &mut *self.world.lock();
            self.world.note(inner, || {
                format!("{}: the database fails: {failure:?}", self.seat)
            });
        }
        if failure == Some(Failure::Before) {
            self.world.lock().counts.failed_before += 1;
            return Err(StoreError::TimedOut);
        }
        self.is_same()?;
        let done = run.await?;
        self.world.point(self.seat).await;
        if failure == Some(Failure::After) {
            self.world.lock().counts.failed_after += 1;
            return Err(StoreError::TimedOut);
        }
        Ok(done)
    }

    /// What is found is counted.
    fn ahead_of(&self, since: Place) -> Ahead {
        let inner = &mut *self.world.lock();
        let ahead = inner.rows.ahead(since);
        match &ahead.entries {
            None => inner.counts.behind += 1,
            Some(entries) => inner.counts.followed += entries.len() as u64,
        }
        if ahead.position != since {
            self.world.note(inner, || {
                let (seat, position) = (self.seat, ahead.position);
                format!("{seat}: follows from {since:?} to {position:?}")
            });
        }
        ahead
    }

    fn is_same(&self) -> Result<(), StoreError> {
        let inner = self.world.lock();
        if inner.rows.identity != self.identity {
            return Err(StoreError::Gone);
        }
        match inner.breaks == self.breaks {
            true => Ok(()),
            false => Err(StoreError::TimedOut),
        }
    }
}

impl GatewayStore for Opening {
    async fn load(&self) -> Result<Stored, StoreError> {
        self.statement(async { Ok(self.world.lock().rows.load()) })
            .await
    }

    type Turn = Turn;

    async fn begin(&self, since: Place, event_ids: &[&str]) -> Result<Begun<Turn>, StoreError> {
        let begin = async {
            let turn = Turn::take(&self.world, self.seat).await?;
            self.is_same()?;
            let ahead = self.ahead_of(since);
            let inner = self.world.lock();
            let ids = event_ids
                .iter()
                .filter(|id| inner.rows.inbox.contains(**id));
            let seen = ids.map(|id| (*id).to_owned()).collect();
            Ok(Begun { turn, ahead, seen })
        };
        let begun = self.statement(begin).await?;
        begun.turn.idle();
        Ok(begun)
    }

    async fn prolong(&self, _turn: &mut Turn, _rows: usize) -> Result<(), StoreError> {
        // Reducing takes no time here.
        Ok(())
    }

    async fn stream(&self, turn: &mut Turn, name: &str) -> Result<Marks, StoreError> {
        let marks = async {
            turn.go_on()?;
            let inner = self.world.lock();
            Ok(inner.rows.streams.get(name).copied().unwrap_or_default())
        };
        let marks = self.statement(marks).await?;
        turn.idle();
        Ok(marks)
    }

    async fn ahead(&self, since: Place) -> Result<Ahead, StoreError> {
        self.statement(async { Ok(self.ahead_of(since)) }).await
    }

    async fn holds(&self, line: Place) -> Result<bool, StoreError> {
        self.statement(async { Ok(self.world.lock().rows.holds(line)) })
            .await
    }

    async fn at(&self, _past: Past) -> Result<Option<Then>, StoreError> {
        Ok(None)
    }

    async fn log(&self, _name: &str, _limit: u16) -> Result<Log, StoreError> {
        Ok(Log::default())
    }

    async fn commit(&self, turn: Turn, commit: &Commit<'_>) -> Result<Place, StoreError> {
        super::model::in_force_is_committed(&self.world, self.seat);
        let write = async {
            turn.go_on()?;
            self.is_same()?;
            let inner = &mut *self.world.lock();
            self.world.note(inner, || {
                let outbox = commit.outbox.iter().map(|entry| &entry.subject);
                let events: BTreeSet<_> = commit.event_ids.iter().collect();
                format!(
                    "{}: commit {:?}, revision {:?}, positions {:?}, floors {:?}, rebuilding {:?}, \
                     {:?}",
                    self.seat,
                    events,
                    commit.revision,
                    commit.positions,
                    commit.floors,
                    commit.rebuilding,
                    outbox.collect::<Vec<_>>()
                )
            });
            inner.counts.commits += 1;
            let mark = i64::try_from(inner.counts.commits).expect("few");
            inner.rows.write(commit, mark);
            inner.counts.announcements += commit.outbox.len() as u64;
            if commit.revision.is_some() {
                self.world.refreshed.notify_waiters();
            }
            Ok(inner.rows.position())
        };
        let done = self.statement(write).await;
        drop(turn);
        done
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.statement(async { Ok(()) }).await
    }

    async fn try_out(&self) -> Result<(), StoreError> {
        self.statement(async { Ok(()) }).await
    }

    async fn share_ticket_keys(
        &self,
        offered: &[TicketKey],
        _oldest: u64,
    ) -> Result<Vec<TicketKey>, StoreError> {
        tokio::time::sleep(Duration::ZERO).await;
        Ok(offered.to_vec())
    }

    async fn prune(&self, _now_ms: u64, _history: History) -> Result<(), StoreError> {
        // Nothing here is eight days old.
        self.statement(async { Ok(()) }).await
    }
}
