//! What is in the database: what commits touch.
//!
//! Rows are kept one by one, from the effects alone, as the real store writes them: an
//! effect that is missing is a row that is wrong after the next start.

use std::collections::{BTreeMap, BTreeSet};

use edd_events::outbox::OutboxEntry;
use edd_route::{ContainerId, StaticRouteSpec, UserId};

use crate::control::reconcile::{ContainerEntity, KeyEntity, RuleEntity, State, UserEntity};
use crate::control::store::{Ahead, Commit, Line, Marks, Place, Stored, Streams};

/// Who lacks more of the journal reads everything instead; small, so that it is met.
const AHEAD_MAX: usize = 12;

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
    pub(super) streams: Streams,
    pub(super) revision: u64,
    pub(super) born: bool,
    rebuilding: bool,
    pub(super) statics: Vec<StaticRouteSpec>,
    /// With the revision after each, and its mark.
    journal: Vec<(Line, u64, i64)>,
}

impl Rows {
    pub(super) fn new(identity: u64) -> Self {
        Self {
            identity,
            ..Self::default()
        }
    }

    pub(super) fn write(&mut self, commit: &Commit<'_>, mark: i64) {
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
        let means = |marks: &Marks| commit.restarts.is_none_or(|of| of == marks.restarts);
        for (stream, sequence) in &commit.positions {
            let marks = self.marks(stream);
            if means(marks) {
                marks.position = marks.position.max(*sequence);
            }
        }
        for (stream, sequence) in &commit.floors {
            let marks = self.marks(stream);
            if means(marks) {
                marks.floor = marks.floor.max(*sequence);
            }
        }
        if let Some((stream, restarts)) = commit.restarted {
            let marks = self.marks(stream);
            (marks.position, marks.floor, marks.tries) = (0, 0, 0);
            marks.restarts = restarts;
        }
        if let Some((stream, gap)) = commit.gap {
            self.marks(stream).gap = gap;
        }
        if let Some((stream, tries)) = commit.tries {
            self.marks(stream).tries = tries;
        }
        if let Some((stream, created)) = commit.stream {
            self.marks(stream).created = Some(created);
        }
        assert_eq!(
            (commit.position, commit.revision_before),
            (self.position(), self.revision),
            "written to another past"
        );
        if let Some(revision) = commit.revision {
            assert!(
                revision > self.revision,
                "revision {revision} after {}",
                self.revision
            );
            self.revision = revision;
        }
        let lines = commit.journal.iter().cloned();
        let revision = self.revision;
        self.journal
            .extend(lines.map(|line| (line, revision, mark)));
        self.born |= commit.birth;
        self.rebuilding = commit.rebuilding.unwrap_or(self.rebuilding);
    }

    fn marks(&mut self, stream: &str) -> &mut Marks {
        self.streams.entry(stream.to_owned()).or_default()
    }

    /// The journal's last line.
    pub(super) fn position(&self) -> Place {
        Place {
            number: self.journal.len() as u64,
            mark: self.journal.last().map_or(0, |(_, _, mark)| *mark),
        }
    }

    /// Whether the journal has this very line.
    pub(super) fn holds(&self, line: Place) -> bool {
        let number = usize::try_from(line.number).expect("small");
        let Some(index) = number.checked_sub(1) else {
            return true;
        };
        let found = self.journal.get(index);
        found.is_some_and(|(_, _, mark)| line.may_be(*mark))
    }

    /// What was committed after `since`.
    pub(super) fn ahead(&self, since: Place) -> Ahead {
        let number = usize::try_from(since.number).expect("small");
        let lines = self.journal.get(number..);
        let lines = lines.filter(|lines| lines.len() <= AHEAD_MAX && self.holds(since));
        let entries = lines.map(|lines| {
            let entry = |(line, revision, _): &(Line, u64, i64)| line.entry(*revision, 0);
            lines.iter().map(entry).collect::<Result<_, _>>()
        });
        Ahead {
            position: self.position(),
            revision: self.revision,
            gap: self.streams.get("COMPUTE").map_or(0, |marks| marks.gap),
            entries: entries.transpose().expect("what was written can be read"),
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
            position: self.position(),
            revision: self.revision,
            rebuilding: self.rebuilding,
            streams: self.streams.clone(),
        }
    }
}
