//! What a batch changes in the table: every step of it, in order.
//!
//! The outcome alone is not enough. What ends and begins again within one batch
//! looks the same before and after, and yet what it admitted must end: the
//! table's writer sees the end only if it is given each step.

use std::collections::HashMap;

use edd_events::envelope::Cause;
use edd_route::{
    ContainerId, ContainerSpec, KeySpec, RouteTable, StaticRouteSpec, TableWriter, UserId,
};

use super::reconcile::{Effects, State};

/// The steps from one table to the next.
#[derive(Debug, Default)]
pub struct Plan {
    containers: Vec<(ContainerId, Option<ContainerSpec>)>,
    keys: Vec<(UserId, Vec<KeySpec>)>,
    /// Where the last step of each is.
    container_at: HashMap<ContainerId, usize>,
    keys_at: HashMap<UserId, usize>,
    /// Containers that come, less those that go.
    growth: i64,
    /// All static routes, if they change.
    pub statics: Option<Vec<StaticRouteSpec>>,
    /// The last event that changes the table, for who is told of the next one.
    pub cause: Cause,
}

impl Plan {
    /// Other static routes, and nothing else.
    pub fn of_statics(specs: Vec<StaticRouteSpec>) -> Self {
        Self {
            statics: Some(specs),
            ..Self::default()
        }
    }

    /// Adds what one event touched, as `state` is right after it; whether that changes the table.
    pub fn step(&mut self, table: &RouteTable, state: &State, touched: &Effects) -> bool {
        let before = self.containers.len() + self.keys.len();
        for id in &touched.containers {
            let wanted = state.container_spec(id);
            let last = self.container_at.get(id);
            let (same, was_there) = match last.and_then(|at| self.containers.get(*at)) {
                Some((_, spec)) => (*spec == wanted, spec.is_some()),
                None => {
                    let found = table.container(id.as_str()).map(|found| found.to_spec());
                    (found == wanted, found.is_some())
                }
            };
            if !same {
                self.growth += i64::from(wanted.is_some()) - i64::from(was_there);
                self.container_at.insert(id.clone(), self.containers.len());
                self.containers.push((id.clone(), wanted));
            }
        }
        for user in &touched.key_owners {
            let wanted = state.key_specs(*user);
            let last = self.keys_at.get(user);
            let same = match last.and_then(|at| self.keys.get(*at)) {
                Some((_, specs)) => *specs == wanted,
                None => table
                    .keys(*user)
                    .iter()
                    .map(|key| &key.spec)
                    .eq(wanted.iter()),
            };
            if !same {
                self.keys_at.insert(*user, self.keys.len());
                self.keys.push((*user, wanted));
            }
        }
        self.containers.len() + self.keys.len() > before
    }

    /// Whether no new table follows.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.keys.is_empty() && self.statics.is_none()
    }

    /// Containers in the table that follows `table`.
    pub fn container_count(&self, table: &RouteTable) -> i64 {
        i64::try_from(table.containers().len())
            .unwrap_or(i64::MAX)
            .saturating_add(self.growth)
    }

    /// Takes all steps. What they change is published once, by the caller.
    pub fn take(self, table: &mut TableWriter) {
        for (id, spec) in self.containers {
            match spec {
                Some(spec) => table.put_container(spec),
                None => table.remove_container(&id),
            }
        }
        for (user, specs) in self.keys {
            table.put_keys(user, specs);
        }
        if let Some(specs) = self.statics {
            table.set_statics(specs);
        }
    }
}

#[cfg(test)]
mod tests {
    use edd_route::table::Settings;
    use edd_route::{Fact, Origin};

    use super::*;
    use crate::control::reconcile::{Change, Outcome, Stamp, What};

    fn id() -> ContainerId {
        ContainerId::new("a").unwrap()
    }

    /// A state and its table, both changed as the writer task does it.
    struct Rig {
        state: State,
        table: TableWriter,
        sequence: u64,
    }

    impl Rig {
        fn new() -> Self {
            let empty = RouteTable::empty(Settings::new("example.com", vec![443]));
            let mut rig = Self {
                state: State::default(),
                table: TableWriter::new(empty),
                sequence: 0,
            };
            rig.batch(vec![
                What::ContainerCreated {
                    id: id(),
                    owner: UserId(1),
                    name: "a".into(),
                },
                started(),
                ssh(true),
                rule(),
                key(),
            ]);
            rig
        }

        /// Applies all as one batch; how many tables followed.
        fn batch(&mut self, whats: Vec<What>) -> usize {
            let mut plan = Plan::default();
            for what in whats {
                self.sequence += 1;
                let change = Change {
                    what,
                    stamp: Stamp::unversioned(self.sequence),
                    origin: Origin::Event {
                        subject: "test".into(),
                        sequence: self.sequence,
                        event_id: format!("e{}", self.sequence),
                        at_ms: 0,
                    },
                };
                let mut touched = Effects::default();
                let outcome = self.state.apply(&change, 0, &mut touched);
                assert_eq!(outcome, Outcome::Applied);
                plan.step(self.table.table(), &self.state, &touched);
            }
            let expected = plan.container_count(self.table.table());
            let follows = !plan.is_empty();
            plan.take(&mut self.table);
            let published = self.table.publish(0);
            assert_eq!(published.is_some(), follows);
            let count = i64::try_from(self.table.table().containers().len()).unwrap();
            assert_eq!(count, expected);
            published.map_or(0, |published| {
                published.revoke();
                1
            })
        }

        /// Run, SSH, HTTPS, rule and key.
        fn facts(&self) -> [Fact; 5] {
            let table = self.table.table();
            let a = table.container("a").unwrap();
            [
                a.running.as_ref().unwrap().fact.clone(),
                a.ssh.clone().unwrap(),
                a.https.clone().unwrap(),
                a.rule(8000).unwrap().fact.clone(),
                table.keys(UserId(1))[0].fact.clone(),
            ]
        }
    }

    fn started() -> What {
        What::ContainerStarted {
            id: id(),
            address: "10.0.0.1".parse().unwrap(),
            ssh_host_key: None,
        }
    }

    fn ssh(on: bool) -> What {
        What::SshToggled { id: id(), on }
    }

    fn https(on: bool) -> What {
        What::HttpsToggled { id: id(), on }
    }

    fn rule() -> What {
        What::RuleRequested {
            id: id(),
            port: 8000,
            target: 80,
        }
    }

    fn key() -> What {
        What::KeyCreated {
            id: 7,
            user: UserId(1),
            fingerprint: "SHA256:7".into(),
        }
    }

    #[test]
    fn what_ends_and_begins_again_within_a_batch_revokes_what_it_admitted() {
        let off_and_on = [
            (0, vec![What::ContainerStopped { id: id() }, started()]),
            (1, vec![ssh(false), ssh(true)]),
            (2, vec![https(false), https(true)]),
            (
                3,
                vec![
                    What::RuleDeleted {
                        id: id(),
                        port: 8000,
                    },
                    rule(),
                ],
            ),
        ];
        for (which, whats) in off_and_on {
            let mut rig = Rig::new();
            let before = rig.facts();
            assert_eq!(rig.batch(whats), 1, "one table, {which}");
            for (n, (old, new)) in before.iter().zip(rig.facts()).enumerate() {
                assert_eq!(old.is_revoked(), n == which, "fact {n} of {which}");
                assert!(!new.is_revoked(), "fact {n} of {which}");
            }
        }
    }

    #[test]
    fn what_begins_and_ends_within_a_batch_makes_no_lasting_difference() {
        let mut rig = Rig::new();
        let specs = rig.state.key_specs(UserId(1));
        let second = What::KeyCreated {
            id: 8,
            user: UserId(1),
            fingerprint: "SHA256:8".into(),
        };
        let before = rig.facts();
        rig.batch(vec![second, What::KeyDeleted { id: 8 }]);
        assert_eq!(rig.state.key_specs(UserId(1)), specs);
        assert!(
            rig.facts()
                .iter()
                .zip(&before)
                .all(|(new, old)| new.is(old))
        );
        assert!(!before.iter().any(Fact::is_revoked));
    }

    #[test]
    fn an_event_that_changes_no_entry_makes_no_table() {
        let mut rig = Rig::new();
        let unborn = What::SshToggled {
            id: ContainerId::new("b").unwrap(),
            on: true,
        };
        assert_eq!(rig.batch(vec![unborn]), 0);
    }
}
