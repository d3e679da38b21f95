//! The one writer of the table.
//!
//! Takes what should be in force, finds what differs, carries over the facts
//! that still hold and collects those that do not. The caller swaps the new
//! table in first and revokes then, so that nobody is admitted by a fact after
//! its end.

use std::collections::HashSet;
use std::sync::Arc;

use crate::fact::Fact;
use crate::name::{ContainerId, UserId};
use crate::origin::Origin;
use crate::spec::{ContainerSpec, KeySpec, RunSpec, StaticRouteSpec};
use crate::statics::StaticRoutes;
use crate::table::{Container, Key, RouteTable, Rule, Running};

/// A new table, and the facts that it no longer holds.
#[must_use = "swap the table in, then revoke"]
#[derive(Debug)]
pub struct Published {
    /// The table to swap in.
    pub table: Arc<RouteTable>,
    revoked: Vec<Fact>,
}

impl Published {
    /// Ends the connections that the old table admitted and the new one does not.
    ///
    /// Call it after the swap.
    pub fn revoke(self) {
        for fact in self.revoked {
            fact.revoke();
        }
    }
}

/// Owns the table that is being built. Not `Clone`: there is one.
#[derive(Debug)]
pub struct TableWriter {
    table: RouteTable,
    revoked: Vec<Fact>,
    changed: bool,
}

impl TableWriter {
    /// Starts from `table`.
    pub fn new(table: RouteTable) -> Self {
        Self {
            table,
            revoked: Vec::new(),
            changed: false,
        }
    }

    /// The table as built so far.
    pub fn table(&self) -> &RouteTable {
        &self.table
    }

    /// Whether anything differs from the last published table.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Has the next table published although nothing differs: its revision does.
    pub fn advance(&mut self) {
        self.changed = true;
    }

    /// Hands out the new table with the next revision, at least `revision_min`; none if nothing changed.
    pub fn publish(&mut self, revision_min: u64) -> Option<Published> {
        if !self.changed {
            return None;
        }
        self.changed = false;
        self.table.revision = (self.table.revision + 1).max(revision_min);
        let table = Arc::new(self.table.clone());
        Some(Published {
            table,
            revoked: std::mem::take(&mut self.revoked),
        })
    }

    /// Replaces the static routes. Requests under way keep theirs.
    pub fn set_statics(&mut self, specs: Vec<StaticRouteSpec>) {
        if self.table.static_specs().eq(specs.iter()) {
            return;
        }
        self.table.statics = Arc::new(StaticRoutes::new(specs));
        self.changed = true;
    }

    /// Puts a container in force, or brings the one that is up to date.
    pub fn put_container(&mut self, spec: ContainerSpec) {
        let old = self.table.containers.get(&spec.id).cloned();
        if old.as_ref().is_some_and(|old| old.to_spec() == spec) {
            return;
        }
        let new = Arc::new(self.carry_over(old.as_deref(), spec));
        self.index_ports(old.as_deref(), Some(&new));
        self.table.containers.insert(new.id.clone(), new);
        self.changed = true;
    }

    /// Takes a container and everything that depends on it out of force.
    pub fn remove_container(&mut self, id: &ContainerId) {
        let Some(old) = self.table.containers.remove(id) else {
            return;
        };
        self.index_ports(Some(&old), None);
        self.revoked
            .extend(old.running.iter().map(|run| run.fact.clone()));
        self.revoked
            .extend(old.ssh.iter().chain(&old.https).cloned());
        self.revoked
            .extend(old.rules.iter().map(|rule| rule.fact.clone()));
        self.changed = true;
    }

    /// Sets all SSH keys of a user; none removes the user.
    pub fn put_keys(&mut self, user: UserId, specs: Vec<KeySpec>) {
        let old = self.table.keys.get(&user).cloned().unwrap_or_default();
        if old.iter().map(|key| &key.spec).eq(specs.iter()) {
            return;
        }
        let mut kept = HashSet::new();
        let keys: Arc<[Key]> = specs
            .into_iter()
            .map(|spec| {
                let same =
                    |key: &&Key| key.spec.id == spec.id && key.spec.fingerprint == spec.fingerprint;
                let fact = old.iter().find(same).map(|key| {
                    kept.insert(key.spec.id);
                    key.fact.clone()
                });
                Key {
                    spec,
                    fact: fact.unwrap_or_default(),
                }
            })
            .collect();
        let gone = old.iter().filter(|key| !kept.contains(&key.spec.id));
        self.revoked.extend(gone.map(|key| key.fact.clone()));
        if keys.is_empty() {
            self.table.keys.remove(&user);
        } else {
            self.table.keys.insert(user, keys);
        }
        self.changed = true;
    }

    /// Makes the containers and keys exactly these; what is equal is not touched.
    pub fn replace_dynamic(
        &mut self,
        containers: Vec<ContainerSpec>,
        keys: Vec<(UserId, Vec<KeySpec>)>,
    ) {
        let wanted: HashSet<_> = containers.iter().map(|spec| spec.id.clone()).collect();
        let gone: Vec<_> = self
            .table
            .containers
            .keys()
            .filter(|id| !wanted.contains(*id))
            .cloned()
            .collect();
        for id in gone {
            self.remove_container(&id);
        }
        for spec in containers {
            self.put_container(spec);
        }
        let wanted: HashSet<_> = keys.iter().map(|(user, _)| *user).collect();
        let gone: Vec<_> = self
            .table
            .keys
            .keys()
            .filter(|user| !wanted.contains(*user))
            .copied()
            .collect();
        for user in gone {
            self.put_keys(user, Vec::new());
        }
        for (user, specs) in keys {
            self.put_keys(user, specs);
        }
    }

    fn carry_over(&mut self, old: Option<&Container>, spec: ContainerSpec) -> Container {
        let running = spec.running.map(|run| Running {
            fact: old
                .and_then(|old| old.running.as_ref())
                .filter(|old| old.address == run.address)
                .map_or_else(Fact::new, |old| old.fact.clone()),
            ..new_run(run)
        });
        let flag = |on: bool, old: Option<&Fact>| on.then(|| old.cloned().unwrap_or_default());
        let mut rules = spec.rules;
        rules.sort_by_key(|rule| rule.port);
        rules.dedup_by_key(|rule| rule.port);
        let new = Container {
            ssh: flag(spec.ssh_enabled, old.and_then(|old| old.ssh.as_ref())),
            https: flag(spec.https_enabled, old.and_then(|old| old.https.as_ref())),
            running,
            rules: rules
                .into_iter()
                .map(|rule| Rule {
                    fact: old
                        .and_then(|old| old.rule(rule.port))
                        .map_or_else(Fact::new, |old| old.fact.clone()),
                    port: rule.port,
                    target_port: rule.target_port,
                    origin: Arc::new(rule.origin),
                })
                .collect(),
            id: spec.id,
            owner: spec.owner,
            name: spec.name.into(),
            origin: shared(spec.origin),
        };
        if let Some(old) = old {
            self.revoke_missing(old, &new);
        }
        new
    }

    fn revoke_missing(&mut self, old: &Container, new: &Container) {
        let run = |of: &Container| of.running.as_ref().map(|run| run.fact.clone());
        let pairs = [
            (run(old), run(new)),
            (old.ssh.clone(), new.ssh.clone()),
            (old.https.clone(), new.https.clone()),
        ];
        for (old, new) in pairs {
            if let Some(old) = old
                && !new.is_some_and(|new| new.is(&old))
            {
                self.revoked.push(old);
            }
        }
        let gone = old
            .rules
            .iter()
            .filter(|rule| new.rule(rule.port).is_none());
        self.revoked.extend(gone.map(|rule| rule.fact.clone()));
    }

    fn index_ports(&mut self, old: Option<&Container>, new: Option<&Container>) {
        if let Some(old) = old {
            for rule in &old.rules {
                let Some(owners) = self.table.ports.get_mut(&rule.port) else {
                    continue;
                };
                owners.all.remove(&old.id);
                owners.running.remove(&old.id);
                if owners.all.is_empty() {
                    self.table.ports.remove(&rule.port);
                }
            }
        }
        if let Some(new) = new {
            for rule in &new.rules {
                let owners = self.table.ports.entry(rule.port).or_default();
                owners.all.insert(new.id.clone());
                if new.running.is_some() {
                    owners.running.insert(new.id.clone());
                }
            }
        }
    }
}

fn new_run(run: RunSpec) -> Running {
    Running {
        address: run.address,
        ssh_host_key: run.ssh_host_key.map(Into::into),
        start: run.start,
        fact: Fact::new(),
        origin: shared(run.origin),
    }
}

fn shared(origin: Origin) -> Arc<Origin> {
    Arc::new(origin)
}
