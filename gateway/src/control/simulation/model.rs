//! What must be so, found without the code that is judged.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use edd_events::envelope::{CAUSATION_ID, Cause};
use edd_proto::gateway::{IngressRuleCreated, IngressRuleDeleted, RouterRefreshed};
use edd_route::{Fact, RouteTable};
use prost::Message as _;

use super::process::routes;
use super::streams::{Logged, Message};
use super::world::{Inner, World};
use crate::control::reconcile::What;

/// A container as others see it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Seen {
    owner: i64,
    address: Option<String>,
    ssh: bool,
    https: bool,
    rules: BTreeMap<u16, u16>,
    keys: BTreeMap<i64, String>,
}

type Table = BTreeMap<String, Seen>;

/// Everything that was ever published, once each.
struct Log<'a> {
    facts: Vec<(&'a Logged, &'a What)>,
}

impl<'a> Log<'a> {
    fn of(inner: &'a Inner) -> Self {
        let mut ids = HashSet::new();
        let good = inner
            .all
            .iter()
            .filter_map(|logged| Some((logged, logged.message.what.as_ref()?)));
        let facts = good.filter(|(logged, _)| ids.insert(&logged.message.event_id));
        Self {
            facts: facts.collect(),
        }
    }

    /// The newest message on a fact.
    fn newest<T>(&self, of: impl Fn(&'a What) -> Option<T>) -> Option<T> {
        let mut newest: Option<(&Logged, T)> = None;
        for (logged, what) in &self.facts {
            let Some(value) = of(what) else { continue };
            let is_newer = newest.as_ref().is_none_or(|(known, _)| {
                assert_eq!(known.message.version > 0, logged.message.version > 0);
                (known.message.version, known.position) < (logged.message.version, logged.position)
            });
            if is_newer {
                newest = Some((logged, value));
            }
        }
        newest.map(|(_, value)| value)
    }

    fn any(&self, is: impl Fn(&What) -> bool) -> bool {
        self.facts.iter().any(|(_, what)| is(what))
    }

    fn is_dead_user(&self, user: i64) -> bool {
        self.any(|what| matches!(what, What::UserDeleted { id } if id.0 == user))
    }

    /// The first creation's owner.
    fn owner(&self, container: &str) -> Option<i64> {
        self.facts.iter().find_map(|(_, what)| match what {
            What::ContainerCreated { id, owner, .. } if id.as_str() == container => Some(owner.0),
            _ => None,
        })
    }

    fn is_dead(&self, container: &str) -> bool {
        let deleted =
            |what: &What| matches!(what, What::ContainerDeleted { id } if id.as_str() == container);
        self.any(deleted)
            || self
                .owner(container)
                .is_some_and(|owner| self.is_dead_user(owner))
    }

    /// Rules in force, of containers that are not dead.
    fn rules(&self) -> BTreeMap<(String, u16), u16> {
        let mut all = BTreeSet::new();
        for (_, what) in &self.facts {
            if let What::RuleRequested { id, port, .. } | What::RuleDeleted { id, port } = what {
                all.insert((id.to_string(), *port));
            }
        }
        let mut rules = BTreeMap::new();
        for (container, at) in all {
            let newest = self.newest(|what| match what {
                What::RuleRequested { id, port, target }
                    if id.as_str() == container && *port == at =>
                {
                    Some(Some(*target))
                }
                What::RuleDeleted { id, port } if id.as_str() == container && *port == at => {
                    Some(None)
                }
                _ => None,
            });
            if let Some(Some(target)) = newest
                && !self.is_dead(&container)
            {
                rules.insert((container, at), target);
            }
        }
        rules
    }

    fn keys(&self, owner: i64) -> BTreeMap<i64, String> {
        let mut keys = BTreeMap::new();
        if self.is_dead_user(owner) {
            return keys;
        }
        for (_, what) in &self.facts {
            let What::KeyCreated { id: key, user, .. } = what else {
                continue;
            };
            let gone = self.any(|what| matches!(what, What::KeyDeleted { id } if id == key));
            if user.0 == owner && !gone {
                let newest = self.newest(|what| match what {
                    What::KeyCreated {
                        id, fingerprint, ..
                    } if id == key => Some(fingerprint),
                    _ => None,
                });
                keys.insert(*key, newest.expect("at least this one").clone());
            }
        }
        keys
    }

    fn table(&self) -> Table {
        let rules = self.rules();
        let mut table = Table::new();
        for (_, what) in &self.facts {
            let What::ContainerCreated { id: container, .. } = what else {
                continue;
            };
            let name = container.to_string();
            if self.is_dead(&name) || table.contains_key(&name) {
                continue;
            }
            let owner = self.owner(&name).expect("created");
            let address = self.newest(|what| match what {
                What::ContainerStarted { id, address, .. } if id == container => {
                    Some(Some(address.to_string()))
                }
                What::ContainerStopped { id } if id == container => Some(None),
                _ => None,
            });
            let ssh = self.newest(|what| match what {
                What::SshToggled { id, on } if id == container => Some(*on),
                _ => None,
            });
            let https = self.newest(|what| match what {
                What::HttpsToggled { id, on } if id == container => Some(*on),
                _ => None,
            });
            let mine = rules.iter().filter(|((id, _), _)| *id == name);
            let seen = Seen {
                owner,
                address: address.flatten(),
                ssh: ssh.unwrap_or(false),
                https: https.unwrap_or(true),
                rules: mine.map(|((_, port), target)| (*port, *target)).collect(),
                keys: self.keys(owner),
            };
            table.insert(name, seen);
        }
        table
    }
}

fn shown(table: &RouteTable) -> Table {
    let containers = table.containers().map(|found| {
        let spec = found.to_spec();
        let keys = table.keys(spec.owner).iter();
        let seen = Seen {
            owner: spec.owner.0,
            address: spec.running.map(|run| run.address.to_string()),
            ssh: spec.ssh_enabled,
            https: spec.https_enabled,
            rules: spec
                .rules
                .iter()
                .map(|rule| (rule.port, rule.target_port))
                .collect(),
            keys: keys
                .map(|key| (key.spec.id, key.spec.fingerprint.clone()))
                .collect(),
        };
        (spec.id.to_string(), seen)
    });
    containers.collect()
}

/// What is committed, as a table would show it.
fn committed(inner: &Inner) -> Table {
    let state = inner.rows.load().state;
    let keys: BTreeMap<_, _> = state.all_key_specs().into_iter().collect();
    let containers = state.container_specs().into_iter().map(|spec| {
        let mine = keys.get(&spec.owner).into_iter().flatten();
        let seen = Seen {
            owner: spec.owner.0,
            address: spec.running.map(|run| run.address.to_string()),
            ssh: spec.ssh_enabled,
            https: spec.https_enabled,
            rules: spec
                .rules
                .iter()
                .map(|rule| (rule.port, rule.target_port))
                .collect(),
            keys: mine.map(|key| (key.id, key.fingerprint.clone())).collect(),
        };
        (spec.id.to_string(), seen)
    });
    containers.collect()
}

/// Right before each commit: the table of who commits tells what the database has.
pub(super) fn in_force_is_committed(world: &World, seat: usize) {
    let inner = world.lock();
    let seat = &inner.seats[seat];
    let Some(shared) = seat
        .shared
        .as_ref()
        .filter(|_| seat.whole && !inner.was_behind)
    else {
        return;
    };
    assert_eq!(
        shown(&shared.table()),
        committed(&inner),
        "in force and committed"
    );
}

/// What is about to be acknowledged is in the database.
pub(super) fn is_durable(world: &World, message: &Message) {
    let inner = world.lock();
    // Else it may have been lost in between.
    if !inner.was_behind {
        let known = inner.rows.inbox.contains(&message.event_id);
        assert!(known, "acknowledged before it is stored: {message:?}");
    }
}

/// What somebody says to be caught up with is in the database, whoever was given it.
pub(super) fn are_durable(world: &World, of: (usize, u32), all: RangeInclusive<u64>) {
    let inner = world.lock();
    // Else it may have been lost in between, or left to the durable consumer.
    if inner.was_behind || inner.counts.left_out > 0 {
        return;
    }
    let logged = inner.all.iter().filter(|logged| {
        let (making, sequence) = logged.position;
        (logged.stream, making) == of && all.contains(&sequence)
    });
    for Logged { message, .. } in logged {
        let known = inner.rows.inbox.contains(&message.event_id);
        assert!(
            known || message.what.is_none(),
            "caught up without {message:?}"
        );
    }
}

/// Everything, once all is handled.
pub(super) fn check(world: &World) {
    let mut inner = world.lock();
    inner.counts.checks += 1;
    let inner = &*inner;
    let log = Log::of(inner);
    let wanted = log.table();
    assert_eq!(committed(inner), wanted, "the database and the model");
    let file = routes(inner.routes);
    assert_eq!(inner.rows.statics, file, "the file is stored");
    for (number, seat) in inner.seats.iter().enumerate() {
        let table = seat.shared.as_ref().expect("a process").table();
        assert_eq!(shown(&table), wanted, "{number}'s table and the model");
        assert!(
            table.static_specs().eq(file.iter()),
            "{number}'s static routes are the file's"
        );
        assert!(
            table.revision <= inner.rows.revision,
            "{number} has a revision that is not stored"
        );
    }
    let poison = inner
        .all
        .iter()
        .filter(|logged| logged.message.what.is_none());
    let poison: BTreeSet<_> = poison
        .map(|l| (l.stream, l.position.0, l.position.1))
        .collect();
    assert_eq!(inner.dead_letters, poison, "dead letters");
    announcements(inner, &log);
}

struct Said {
    target: Option<u16>,
    version: i64,
    cause: String,
}

/// Every rule that came into force was announced once, and so was its end.
fn announcements(inner: &Inner, log: &Log<'_>) {
    let mut by_rule: BTreeMap<(String, u16), Vec<Said>> = BTreeMap::new();
    let mut revisions = Vec::new();
    for entry in &inner.rows.outbox {
        let Cause { causation_id, .. } = &entry.cause;
        let bytes = entry.payload.as_slice();
        if entry.subject == "gateway.router.refreshed" {
            let m = RouterRefreshed::decode(bytes).expect("a message");
            revisions.push(m.metadata.expect("metadata").version);
            continue;
        }
        if !entry.subject.starts_with("gateway.ingress.") {
            continue;
        }
        let (metadata, container, port, target) = if entry.subject.ends_with(".created") {
            let m = IngressRuleCreated::decode(bytes).expect("a message");
            (m.metadata, m.container_id, m.port, Some(m.target_port))
        } else {
            let m = IngressRuleDeleted::decode(bytes).expect("a message");
            (m.metadata, m.container_id, m.port, None)
        };
        let number = |port: i32| u16::try_from(port).expect("a port");
        let said = Said {
            target: target.map(number),
            version: metadata.expect("metadata").version,
            cause: causation_id
                .clone()
                .unwrap_or_else(|| panic!("no {CAUSATION_ID}: {entry:?}")),
        };
        by_rule
            .entry((container, number(port)))
            .or_default()
            .push(said);
    }
    assert!(
        revisions.is_sorted_by(|a, b| a < b),
        "revisions {revisions:?}"
    );
    let rules = log.rules();
    for rule in by_rule.keys().chain(rules.keys()) {
        let said = by_rule.get(rule).map(Vec::as_slice).unwrap_or_default();
        let last = said.last().and_then(|said| said.target);
        let told = || {
            said.iter()
                .map(|s| (s.target, s.version, &s.cause))
                .collect::<Vec<_>>()
        };
        // What a lost database had announced, its successor cannot know.
        if inner.was_lost {
            continue;
        }
        assert_eq!(
            last,
            rules.get(rule).copied(),
            "the last word on {rule:?}: {:?}",
            told()
        );
        let mut causes = HashSet::new();
        let mut before: Option<&Said> = None;
        for said in said {
            assert!(
                causes.insert(&said.cause),
                "two answers to one on {rule:?}: {:?}",
                told()
            );
            let is_again = before.is_some_and(|before| {
                let overtook = before.version > 0 && said.version > before.version + 1;
                before.target == said.target && !(overtook && said.target.is_some())
            });
            let is_end_of_nothing = said.target.is_none() && before.is_none();
            assert!(!is_again && !is_end_of_nothing, "{rule:?}: {:?}", told());
            before = Some(said);
        }
    }
}

/// Looks at the tables of a process as they come in force.
pub(super) struct Watched {
    before: Arc<RouteTable>,
}

impl Watched {
    pub(super) fn new(table: Arc<RouteTable>) -> Self {
        Self { before: table }
    }

    /// Revisions only grow; what is no longer in the table is revoked, the rest is not.
    pub(super) fn look(&mut self, table: Arc<RouteTable>) {
        let before = std::mem::replace(&mut self.before, Arc::clone(&table));
        assert!(
            table.revision > before.revision,
            "revision {} after {}",
            table.revision,
            before.revision
        );
        let now = facts(&table);
        assert!(
            now.iter().all(|fact| !fact.is_revoked()),
            "a fact in force is revoked"
        );
        for fact in facts(&before) {
            let kept = now.iter().any(|other| other.is(&fact));
            assert_eq!(fact.is_revoked(), !kept, "revoked and no longer in force");
        }
    }
}

fn facts(table: &RouteTable) -> Vec<Fact> {
    let mut facts = Vec::new();
    for container in table.containers() {
        facts.extend(container.running.iter().map(|run| run.fact.clone()));
        facts.extend(container.ssh.iter().cloned());
        facts.extend(container.https.iter().cloned());
        facts.extend(container.rules.iter().map(|rule| rule.fact.clone()));
    }
    for (_, keys) in table.key_owners() {
        facts.extend(keys.iter().map(|key| key.fact.clone()));
    }
    facts
}
