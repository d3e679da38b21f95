//! Everything that the events said so far, and how one more changes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use edd_route::{ContainerId, ContainerSpec, KeySpec, RouteTable, UserId};
use imbl::{HashMap, OrdSet};

use super::change::{Change, What};
use super::entity::{
    ContainerEntity, Created, KeyEntity, RuleEntity, Running, Stamp, UserEntity, sequence_of,
};

/// The entities. Cloning is cheap: a batch works on a clone, which replaces the
/// original once it is stored.
#[derive(Clone, Debug, Default)]
pub struct State {
    containers: HashMap<ContainerId, Arc<ContainerEntity>>,
    keys: HashMap<i64, Arc<KeyEntity>>,
    users: HashMap<UserId, Arc<UserEntity>>,
    /// What was deleted, and when (Unix milliseconds).
    dead_containers: HashMap<ContainerId, u64>,
    dead_keys: HashMap<i64, u64>,
    dead_users: HashMap<UserId, u64>,
    /// Indexes by owner.
    containers_of: HashMap<UserId, OrdSet<ContainerId>>,
    keys_of: HashMap<UserId, OrdSet<i64>>,
}

/// What came of a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It is part of the state.
    Applied,
    /// Older than what is known, or about something deleted.
    Stale,
}

/// What changes touched, in sum.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// Containers with another row or without one.
    pub containers: BTreeSet<ContainerId>,
    /// Rules with another row or without one.
    pub rules: BTreeSet<(ContainerId, u16)>,
    /// Keys with another row or without one.
    pub keys: BTreeSet<i64>,
    /// Users whose set of keys changed.
    pub key_owners: BTreeSet<UserId>,
    /// Users with another row or without one.
    pub users: BTreeSet<UserId>,
    /// What others are to be told, in order.
    pub announcements: Vec<Announcement>,
}

impl Effects {
    /// Adds what later changes touched.
    pub fn add(&mut self, later: Self) {
        self.containers.extend(later.containers);
        self.rules.extend(later.rules);
        self.keys.extend(later.keys);
        self.key_owners.extend(later.key_owners);
        self.users.extend(later.users);
        self.announcements.extend(later.announcements);
    }
}

/// A rule that came into force or ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Announcement {
    /// The container.
    pub container: ContainerId,
    /// The public port.
    pub port: u16,
    /// The container's port; none: the rule ended.
    pub target: Option<u16>,
    /// The rule's version.
    pub version: i64,
}

impl State {
    /// Takes one change at the time `now_ms` (Unix milliseconds, for tombstones).
    pub fn apply(&mut self, change: &Change, now_ms: u64, effects: &mut Effects) -> Outcome {
        let stamp = change.stamp;
        match &change.what {
            What::ContainerCreated { id, owner, name } => {
                let created = Created {
                    owner: *owner,
                    name: name.clone(),
                    sequence: stamp.sequence,
                    origin: change.origin.clone(),
                };
                self.create_container(id, created, now_ms, effects)
            }
            What::ContainerDeleted { id } => self.bury_container(id, now_ms, effects),
            What::ContainerStarted {
                id,
                address,
                ssh_host_key,
            } => self.on_container(id, effects, |container| {
                if !container.run.stamp.is_before(stamp) {
                    return Outcome::Stale;
                }
                container.run.stamp = stamp;
                container.run.running = Some(Running {
                    address: *address,
                    ssh_host_key: ssh_host_key.clone(),
                    origin: change.origin.clone(),
                });
                Outcome::Applied
            }),
            What::ContainerStopped { id } => self.on_container(id, effects, |container| {
                if !container.run.stamp.is_before(stamp) {
                    return Outcome::Stale;
                }
                container.run.stamp = stamp;
                container.run.running = None;
                Outcome::Applied
            }),
            What::SshToggled { id, on } => self.on_container(id, effects, |container| {
                toggle(&mut container.ssh, stamp, *on)
            }),
            What::HttpsToggled { id, on } => self.on_container(id, effects, |container| {
                toggle(&mut container.https, stamp, *on)
            }),
            What::RuleRequested { id, port, target } => {
                self.put_rule(change, id, *port, Some(*target), effects)
            }
            What::RuleDeleted { id, port } => self.put_rule(change, id, *port, None, effects),
            What::KeyCreated {
                id,
                user,
                fingerprint,
            } => {
                let key = KeyEntity {
                    stamp,
                    user: *user,
                    fingerprint: fingerprint.clone(),
                    origin: change.origin.clone(),
                };
                self.create_key(*id, key, now_ms, effects)
            }
            What::KeyDeleted { id } => self.bury_key(*id, now_ms, effects),
            What::UserNamed {
                id,
                username,
                display_name,
            } => {
                let known = self.users.get(id);
                if self.dead_users.contains_key(id)
                    || known.is_some_and(|known| !known.stamp.is_before(stamp))
                {
                    return Outcome::Stale;
                }
                let user = UserEntity {
                    stamp,
                    username: username.clone(),
                    display_name: display_name.clone(),
                };
                self.users.insert(*id, Arc::new(user));
                effects.users.insert(*id);
                Outcome::Applied
            }
            What::UserDeleted { id } => self.bury_user(*id, now_ms, effects),
            What::Nothing => Outcome::Stale,
        }
    }

    /// What should be in force of a container.
    pub fn container_spec(&self, id: &ContainerId) -> Option<ContainerSpec> {
        self.containers.get(id)?.spec(id)
    }

    /// What should be in force of a user's keys.
    pub fn key_specs(&self, user: UserId) -> Vec<KeySpec> {
        let ids = self.keys_of.get(&user);
        ids.into_iter()
            .flatten()
            .filter_map(|id| Some(self.keys.get(id)?.spec(*id)))
            .collect()
    }

    /// All containers in force.
    pub fn container_specs(&self) -> Vec<ContainerSpec> {
        self.containers
            .iter()
            .filter_map(|(id, container)| container.spec(id))
            .collect()
    }

    /// All keys in force, by user.
    pub fn all_key_specs(&self) -> Vec<(UserId, Vec<KeySpec>)> {
        self.keys_of
            .keys()
            .map(|user| (*user, self.key_specs(*user)))
            .collect()
    }

    /// All containers that are not deleted.
    pub fn containers(&self) -> impl Iterator<Item = (&ContainerId, &ContainerEntity)> {
        self.containers.iter().map(|(id, found)| (id, &**found))
    }

    /// All keys that are not deleted.
    pub fn keys(&self) -> impl Iterator<Item = (i64, &KeyEntity)> {
        self.keys.iter().map(|(id, found)| (*id, &**found))
    }

    /// A container that is not deleted.
    pub fn container(&self, id: &ContainerId) -> Option<&ContainerEntity> {
        self.containers.get(id).map(|container| &**container)
    }

    /// A key that is not deleted.
    pub fn key(&self, id: i64) -> Option<&KeyEntity> {
        self.keys.get(&id).map(|key| &**key)
    }

    /// A user who is not deleted.
    pub fn user(&self, id: UserId) -> Option<&UserEntity> {
        self.users.get(&id).map(|user| &**user)
    }

    /// When a container was deleted, Unix milliseconds.
    pub fn container_died(&self, id: &ContainerId) -> Option<u64> {
        self.dead_containers.get(id).copied()
    }

    /// When a key was deleted, Unix milliseconds.
    pub fn key_died(&self, id: i64) -> Option<u64> {
        self.dead_keys.get(&id).copied()
    }

    /// When a user was deleted, Unix milliseconds.
    pub fn user_died(&self, id: UserId) -> Option<u64> {
        self.dead_users.get(&id).copied()
    }

    /// Forgets what was deleted before `before_ms` (Unix milliseconds).
    pub fn prune(&mut self, before_ms: u64) {
        self.dead_containers.retain(|_, at| *at >= before_ms);
        self.dead_keys.retain(|_, at| *at >= before_ms);
        self.dead_users.retain(|_, at| *at >= before_ms);
    }

    /// The state as far as a table tells it, and the highest sequence in it.
    ///
    /// For a database that is lost when the streams may not reach back far
    /// enough; what they have is replayed onto it from their beginning. Versions are
    /// not in a table: each fact learns its own when its event comes by.
    pub fn of_table(table: &RouteTable) -> (Self, u64) {
        let specs: Vec<_> = table.containers().map(|found| found.to_spec()).collect();
        let keys = table.key_owners().flat_map(|(_, keys)| keys);
        let origins = specs
            .iter()
            .flat_map(ContainerEntity::origins_of)
            .chain(keys.map(|key| &key.spec.origin));
        let last = origins.map(sequence_of).max().unwrap_or_default();
        let mut state = Self::default();
        for spec in specs {
            let id = spec.id.clone();
            state.restore_container(id, ContainerEntity::of_spec(spec));
        }
        for (user, keys) in table.key_owners() {
            for key in keys {
                let spec = key.spec.clone();
                let entity = KeyEntity {
                    stamp: Stamp::unversioned(sequence_of(&spec.origin)),
                    user,
                    fingerprint: spec.fingerprint,
                    origin: spec.origin,
                };
                state.restore_key(spec.id, entity);
            }
        }
        (state, last)
    }

    /// Forgets where events stand in their stream, keeps their versions.
    pub fn forget_sequences(&mut self) {
        let containers: Vec<_> = self.containers.keys().cloned().collect();
        for id in containers {
            if let Some(container) = self.containers.get_mut(&id) {
                Arc::make_mut(container).forget_sequences();
            }
        }
        let keys: Vec<_> = self.keys.keys().copied().collect();
        for id in keys {
            if let Some(key) = self.keys.get_mut(&id) {
                Arc::make_mut(key).stamp.sequence = 0;
            }
        }
        let users: Vec<_> = self.users.keys().copied().collect();
        for id in users {
            if let Some(user) = self.users.get_mut(&id) {
                Arc::make_mut(user).stamp.sequence = 0;
            }
        }
    }

    /// Effects that touch everything.
    pub fn all(&self) -> Effects {
        let rules = self.containers.iter();
        let rules = rules.flat_map(|(id, c)| c.rules.keys().map(|port| (id.clone(), *port)));
        Effects {
            containers: self.containers.keys().cloned().collect(),
            rules: rules.collect(),
            keys: self.keys.keys().copied().collect(),
            key_owners: self.keys_of.keys().copied().collect(),
            users: self.users.keys().copied().collect(),
            announcements: Vec::new(),
        }
    }

    /// Puts back a container as it was stored.
    pub fn restore_container(&mut self, id: ContainerId, container: ContainerEntity) {
        if let Some(created) = &container.created {
            self.containers_of
                .entry(created.owner)
                .or_default()
                .insert(id.clone());
        }
        self.containers.insert(id, Arc::new(container));
    }

    /// Takes a container out, as if it had never been; its rules.
    pub(super) fn forget_container(
        &mut self,
        id: &ContainerId,
    ) -> Option<BTreeMap<u16, RuleEntity>> {
        let container = self.containers.remove(id)?;
        if let Some(created) = &container.created {
            remove_from(&mut self.containers_of, created.owner, id);
        }
        Some(container.rules.clone())
    }

    /// Takes a key out, as if it had never been; whose it was.
    pub(super) fn forget_key(&mut self, id: i64) -> Option<UserId> {
        let key = self.keys.remove(&id)?;
        remove_from(&mut self.keys_of, key.user, &id);
        Some(key.user)
    }

    /// Puts back a rule as it was stored, or takes it out.
    pub(super) fn restore_rule(&mut self, id: &ContainerId, port: u16, rule: Option<RuleEntity>) {
        // The last of a container that is gone comes after it.
        if self.dead_containers.contains_key(id) {
            return;
        }
        let container = Arc::make_mut(self.containers.entry(id.clone()).or_default());
        match rule {
            Some(rule) => container.rules.insert(port, rule),
            None => container.rules.remove(&port),
        };
    }

    /// Puts back a key as it was stored.
    pub fn restore_key(&mut self, id: i64, key: KeyEntity) {
        self.keys_of.entry(key.user).or_default().insert(id);
        self.keys.insert(id, Arc::new(key));
    }

    /// Puts back a user as he was stored.
    pub fn restore_user(&mut self, id: UserId, user: UserEntity) {
        self.users.insert(id, Arc::new(user));
    }

    /// Puts back the tombstone of a container.
    pub fn restore_dead_container(&mut self, id: ContainerId, at_ms: u64) {
        self.dead_containers.insert(id, at_ms);
    }

    /// Puts back the tombstone of a key.
    pub fn restore_dead_key(&mut self, id: i64, at_ms: u64) {
        self.dead_keys.insert(id, at_ms);
    }

    /// Puts back the tombstone of a user.
    pub fn restore_dead_user(&mut self, id: UserId, at_ms: u64) {
        self.users.remove(&id);
        self.dead_users.insert(id, at_ms);
    }

    fn on_container(
        &mut self,
        id: &ContainerId,
        effects: &mut Effects,
        change: impl FnOnce(&mut ContainerEntity) -> Outcome,
    ) -> Outcome {
        if self.dead_containers.contains_key(id) {
            return Outcome::Stale;
        }
        let mut container = self.containers.get(id).cloned().unwrap_or_default();
        let outcome = change(Arc::make_mut(&mut container));
        if outcome == Outcome::Applied {
            self.containers.insert(id.clone(), container);
            effects.containers.insert(id.clone());
        }
        outcome
    }

    /// Immutable, so never stale; of two that differ the earlier in the stream counts.
    fn create_container(
        &mut self,
        id: &ContainerId,
        created: Created,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Outcome {
        let owner = created.owner;
        let mut before = None;
        let outcome = self.on_container(id, effects, |container| {
            if let Some(known) = &container.created {
                if known.sequence <= created.sequence {
                    return Outcome::Stale;
                }
                before = Some(known.owner);
            }
            container.created = Some(created);
            Outcome::Applied
        });
        if outcome == Outcome::Stale {
            return outcome;
        }
        if let Some(before) = before {
            remove_from(&mut self.containers_of, before, id);
        }
        self.containers_of
            .entry(owner)
            .or_default()
            .insert(id.clone());
        // There is no order between the streams: its owner may be gone already.
        if self.dead_users.contains_key(&owner) {
            self.bury_container(id, now_ms, effects);
        }
        Outcome::Applied
    }

    fn put_rule(
        &mut self,
        change: &Change,
        id: &ContainerId,
        port: u16,
        target: Option<u16>,
        effects: &mut Effects,
    ) -> Outcome {
        let mut before = None;
        let mut overtook = false;
        let outcome = self.on_container(id, effects, |container| {
            if let Some(known) = container.rules.get(&port) {
                if !known.stamp.is_before(change.stamp) {
                    return Outcome::Stale;
                }
                before = known.target;
                // A deletion in between was overtaken: who asked again waits
                // for an answer to this version.
                let version = known.stamp.version;
                overtook = version > 0 && change.stamp.version > version + 1;
            }
            let rule = RuleEntity {
                stamp: change.stamp,
                target,
                origin: change.origin.clone(),
            };
            container.rules.insert(port, rule);
            Outcome::Applied
        });
        if outcome == Outcome::Applied {
            effects.rules.insert((id.clone(), port));
            if before != target || (overtook && target.is_some()) {
                effects.announcements.push(Announcement {
                    container: id.clone(),
                    port,
                    target,
                    version: change.stamp.version,
                });
            }
        }
        outcome
    }

    fn bury_container(&mut self, id: &ContainerId, now_ms: u64, effects: &mut Effects) -> Outcome {
        if self.dead_containers.contains_key(id) {
            return Outcome::Stale;
        }
        self.dead_containers.insert(id.clone(), now_ms);
        effects.containers.insert(id.clone());
        let Some(container) = self.containers.remove(id) else {
            return Outcome::Applied;
        };
        if let Some(created) = &container.created {
            remove_from(&mut self.containers_of, created.owner, id);
        }
        for (port, rule) in &container.rules {
            effects.rules.insert((id.clone(), *port));
            if rule.target.is_some() {
                effects.announcements.push(Announcement {
                    container: id.clone(),
                    port: *port,
                    target: None,
                    version: rule.stamp.version,
                });
            }
        }
        Outcome::Applied
    }

    fn create_key(
        &mut self,
        id: i64,
        key: KeyEntity,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Outcome {
        if self.dead_keys.contains_key(&id) {
            return Outcome::Stale;
        }
        if let Some(known) = self.keys.get(&id) {
            if !known.stamp.is_before(key.stamp) {
                return Outcome::Stale;
            }
            let user = known.user;
            remove_from(&mut self.keys_of, user, &id);
            effects.key_owners.insert(user);
        }
        let user = key.user;
        effects.keys.insert(id);
        effects.key_owners.insert(user);
        self.restore_key(id, key);
        if self.dead_users.contains_key(&user) {
            self.bury_key(id, now_ms, effects);
        }
        Outcome::Applied
    }

    fn bury_key(&mut self, id: i64, now_ms: u64, effects: &mut Effects) -> Outcome {
        if self.dead_keys.contains_key(&id) {
            return Outcome::Stale;
        }
        self.dead_keys.insert(id, now_ms);
        effects.keys.insert(id);
        if let Some(key) = self.keys.remove(&id) {
            remove_from(&mut self.keys_of, key.user, &id);
            effects.key_owners.insert(key.user);
        }
        Outcome::Applied
    }

    fn bury_user(&mut self, id: UserId, now_ms: u64, effects: &mut Effects) -> Outcome {
        if self.dead_users.contains_key(&id) {
            return Outcome::Stale;
        }
        self.dead_users.insert(id, now_ms);
        self.users.remove(&id);
        effects.users.insert(id);
        for container in self.containers_of.get(&id).cloned().unwrap_or_default() {
            self.bury_container(&container, now_ms, effects);
        }
        for key in self.keys_of.get(&id).cloned().unwrap_or_default() {
            self.bury_key(key, now_ms, effects);
        }
        Outcome::Applied
    }
}

fn toggle(flag: &mut super::Flag, stamp: Stamp, on: bool) -> Outcome {
    if !flag.stamp.is_before(stamp) {
        return Outcome::Stale;
    }
    *flag = super::Flag { stamp, on };
    Outcome::Applied
}

fn remove_from<T: Ord + Clone>(index: &mut HashMap<UserId, OrdSet<T>>, user: UserId, id: &T) {
    if let Some(set) = index.get_mut(&user) {
        set.remove(id);
        if set.is_empty() {
            index.remove(&user);
        }
    }
}
