//! A database that keeps what commits touch, and fails as the world wants it.
//!
//! Rows are kept one by one, from the effects alone, as the real store writes them: an
//! effect that is missing is a row that is wrong after the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use edd_events::outbox::OutboxEntry;
use edd_route::{ContainerId, StaticRouteSpec, UserId};

use super::world::{Failure, World};
use crate::config::History;
use crate::control::reconcile::{ContainerEntity, KeyEntity, RuleEntity, State, UserEntity};
use crate::control::store::{
    Ahead, Begun, Commit, Entry, GatewayStore, Past, StoreError, Stored, Then,
};
use crate::tls::TicketKey;

/// What is in the database.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    pub(super) identity: u64,
    containers: BTreeMap<ContainerId, ContainerEntity>,
    rules: BTreeMap<(ContainerId, u16), RuleEntity>,
    keys: BTreeMap<i64, KeyEntity>,
    users: BTreeMap<UserId, UserEntity>,
    dead_containers: BTreeMap<ContainerId, u64>,
    dead_keys: BTreeMap<i64, u64>,
    dead_users: BTreeMap<UserId, u64>,
    pub(super) inbox: BTreeSet<String>,
    /// Never emptied: what was ever to be published.
    pub(super) outbox: Vec<OutboxEntry>,
    positions: BTreeMap<String, u64>,
    floors: BTreeMap<String, u64>,
    tries: BTreeMap<String, u64>,
    streams: BTreeMap<String, i64>,
    pub(super) revision: u64,
    pub(super) born: bool,
    rebuilding: bool,
    pub(super) statics: Vec<StaticRouteSpec>,
    /// Lines in the journal.
    position: u64,
}

impl Rows {
    pub(super) fn new(identity: u64) -> Self {
        Self {
            identity,
            ..Self::default()
        }
    }

    fn write(&mut self, commit: &Commit<'_>) {
        self.inbox
            .extend(commit.event_ids.iter().map(|id| (*id).to_owned()));
        if let Some((state, effects)) = commit.changes {
            for id in &effects.containers {
                match state.container(id) {
                    Some(container) => {
                        let rules = BTreeMap::new();
                        let row = ContainerEntity {
                            rules,
                            ..container.clone()
                        };
                        self.containers.insert(id.clone(), row);
                    }
                    None => drop(self.containers.remove(id)),
                }
                if let Some(at) = state.container_died(id) {
                    self.dead_containers.insert(id.clone(), at);
                }
            }
            for (id, port) in &effects.rules {
                let key = (id.clone(), *port);
                match state.container(id).and_then(|c| c.rules.get(port)) {
                    Some(rule) => drop(self.rules.insert(key, rule.clone())),
                    None => drop(self.rules.remove(&key)),
                }
            }
            for id in &effects.keys {
                match state.key(*id) {
                    Some(key) => drop(self.keys.insert(*id, key.clone())),
                    None => drop(self.keys.remove(id)),
                }
                if let Some(at) = state.key_died(*id) {
                    self.dead_keys.insert(*id, at);
                }
            }
            for id in &effects.users {
                match state.user(*id) {
                    Some(user) => drop(self.users.insert(*id, user.clone())),
                    None => drop(self.users.remove(id)),
                }
                if let Some(at) = state.user_died(*id) {
                    self.dead_users.insert(*id, at);
                }
            }
        }
        if let Some(statics) = &commit.statics {
            self.statics.clone_from(statics);
        }
        // Event ids are drawn anew each time: the same twice is one entry written twice.
        self.outbox.extend(commit.outbox.iter().cloned());
        for (stream, sequence) in &commit.positions {
            let position = self.positions.entry(stream.clone()).or_insert(0);
            *position = (*position).max(*sequence);
        }
        for (stream, sequence) in &commit.floors {
            let floor = self.floors.entry(stream.clone()).or_insert(0);
            *floor = (*floor).max(*sequence);
        }
        if let Some(stream) = commit.restarted {
            for of in [&mut self.positions, &mut self.floors, &mut self.tries] {
                of.insert(stream.to_owned(), 0);
            }
        }
        if let Some((stream, tries)) = commit.tries {
            self.tries.insert(stream.to_owned(), tries);
        }
        if let Some((stream, created)) = commit.stream {
            self.streams.insert(stream.to_owned(), created);
        }
        if let Some(revision) = commit.revision {
            assert!(
                revision > self.revision,
                "revision {revision} after {}",
                self.revision
            );
            self.revision = revision;
        }
        assert_eq!(commit.position, self.position, "written to another past");
        self.position += commit.journal.len() as u64;
        self.born |= commit.birth;
        self.rebuilding = commit.rebuilding.unwrap_or(self.rebuilding);
    }

    /// There is one gateway: whoever has another position has another database.
    fn ahead(&self, since: u64) -> Ahead {
        Ahead {
            position: self.position,
            revision: self.revision,
            entries: (since == self.position).then(Vec::new),
        }
    }

    pub(super) fn load(&self) -> Stored {
        let mut state = State::default();
        let mut containers = self.containers.clone();
        for ((id, port), rule) in &self.rules {
            let container = containers.entry(id.clone()).or_default();
            container.rules.insert(*port, rule.clone());
        }
        for (id, container) in containers {
            state.restore_container(id, container);
        }
        for (id, key) in &self.keys {
            state.restore_key(*id, key.clone());
        }
        for (id, user) in &self.users {
            state.restore_user(*id, user.clone());
        }
        for (id, at) in &self.dead_containers {
            state.restore_dead_container(id.clone(), *at);
        }
        for (id, at) in &self.dead_keys {
            state.restore_dead_key(*id, *at);
        }
        for (id, at) in &self.dead_users {
            state.restore_dead_user(*id, *at);
        }
        Stored {
            state,
            born: self.born,
            position: self.position,
            revision: self.revision,
            rebuilding: self.rebuilding,
            positions: self.positions.clone(),
            floors: self.floors.clone(),
            tries: self.tries.clone(),
        }
    }
}

/// One opening of the database.
#[derive(Clone)]
pub(super) struct Opening {
    pub(super) world: Arc<World>,
    pub(super) identity: u64,
}

impl Opening {
    /// Every statement passes here: before it, it may crash; it may fail on either side.
    async fn statement<T>(&self, run: impl FnOnce() -> T) -> Result<T, StoreError> {
        self.world.point().await;
        let failure = self.world.failure();
        if failure == Some(Failure::Slow) {
            self.world.pause(9_000).await;
        }
        if let Some(failure) = failure {
            self.world
                .note(|| format!("the database fails: {failure:?}"));
        }
        if failure == Some(Failure::Before) {
            self.world.lock().counts.failed_before += 1;
            return Err(StoreError::TimedOut);
        }
        if self.world.lock().rows.identity != self.identity {
            return Err(StoreError::Gone);
        }
        let done = run();
        self.world.point().await;
        if failure == Some(Failure::After) {
            self.world.lock().counts.failed_after += 1;
            return Err(StoreError::TimedOut);
        }
        Ok(done)
    }
}

impl GatewayStore for Opening {
    async fn load(&self) -> Result<Stored, StoreError> {
        self.statement(|| self.world.lock().rows.load()).await
    }

    type Turn = ();

    async fn begin(&self, since: u64, event_ids: &[&str]) -> Result<Begun<()>, StoreError> {
        let begin = || {
            let inner = self.world.lock();
            let ids = event_ids
                .iter()
                .filter(|id| inner.rows.inbox.contains(**id));
            Begun {
                turn: (),
                ahead: inner.rows.ahead(since),
                seen: ids.map(|id| (*id).to_owned()).collect(),
            }
        };
        self.statement(begin).await
    }

    async fn stream_created(&self, (): &mut (), name: &str) -> Result<Option<i64>, StoreError> {
        let created = || self.world.lock().rows.streams.get(name).copied();
        self.statement(created).await
    }

    async fn ahead(&self, since: u64) -> Result<Ahead, StoreError> {
        self.statement(|| self.world.lock().rows.ahead(since)).await
    }

    async fn at(&self, _past: Past) -> Result<Option<Then>, StoreError> {
        Ok(None)
    }

    async fn log(&self, _name: &str, _limit: u16) -> Result<Vec<Entry>, StoreError> {
        Ok(Vec::new())
    }

    async fn commit(&self, (): (), commit: &Commit<'_>) -> Result<u64, StoreError> {
        super::model::in_force_is_committed(&self.world);
        let write = || {
            let mut inner = self.world.lock();
            self.world.note(|| {
                let outbox = commit.outbox.iter().map(|entry| &entry.subject);
                format!(
                    "commit {:?}, revision {:?}, positions {:?}, floors {:?}, rebuilding {:?}, {:?}",
                    commit.event_ids,
                    commit.revision,
                    commit.positions,
                    commit.floors,
                    commit.rebuilding,
                    outbox.collect::<Vec<_>>()
                )
            });
            inner.rows.write(commit);
            let position = inner.rows.position;
            inner.counts.commits += 1;
            inner.counts.announcements += commit.outbox.len() as u64;
            position
        };
        self.statement(write).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.statement(|| ()).await
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
        self.statement(|| ()).await
    }
}
