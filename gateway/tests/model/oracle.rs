//! What the streams say, read naively: every fact is the newest message on it.
//!
//! Shares no code with the gateway's reduction. Needs the whole streams at once and
//! no order of arrival: by the contract the end depends on nothing else.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::HeaderMap;
use edd_events::dead_letter::DLQ_STREAM_SEQ;
use edd_proto::{auth, common, compute};
use prost::Message as _;

use crate::script::{KIND, Kind};

/// A message as it stands in its stream.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) stream: &'static str,
    pub(crate) sequence: u64,
    pub(crate) subject: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) headers: HeaderMap,
}

impl Stored {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }

    /// What the script said it is; none: somebody else published it.
    pub(crate) fn kind(&self) -> Option<Kind> {
        // A dead letter keeps the headers of what it was.
        let name = self
            .header(KIND)
            .filter(|_| self.header(DLQ_STREAM_SEQ).is_none())?;
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What an event says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum What {
    Created { owner: i64, name: String },
    Deleted,
    Run(Option<String>),
    Ssh(bool),
    Https(bool),
    Rule { port: i32, target: Option<i32> },
    Key { owner: i64, fingerprint: String },
    KeyDeleted,
    User { username: String },
    UserDeleted,
}

/// A good event, once.
#[derive(Clone, Debug)]
pub(crate) struct Fact {
    pub(crate) event_id: String,
    pub(crate) sequence: u64,
    pub(crate) version: i64,
    /// Container, key or user.
    pub(crate) id: String,
    pub(crate) what: What,
}

/// A container as the table should show it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Container {
    pub(crate) owner: i64,
    pub(crate) name: String,
    pub(crate) address: Option<String>,
    pub(crate) ssh: bool,
    pub(crate) https: bool,
    pub(crate) rules: BTreeMap<i32, i32>,
    pub(crate) keys: Vec<String>,
}

/// Everything that must be so at the end.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    pub(crate) containers: BTreeMap<String, Container>,
    /// Rules in force, also of containers that are not created yet.
    pub(crate) rules: BTreeMap<(String, i32), i32>,
    pub(crate) users: BTreeMap<i64, String>,
    /// Keys of users who are there, by owner.
    pub(crate) keys: BTreeMap<i64, BTreeMap<i64, String>>,
    pub(crate) poison: BTreeSet<(&'static str, u64)>,
    /// Every fact by its event id.
    pub(crate) facts: BTreeMap<String, Fact>,
    /// Event ids in the order of COMPUTE.
    pub(crate) order: Vec<String>,
    pub(crate) dead: BTreeSet<String>,
}

pub(crate) fn read(auth: &[Stored], compute: &[Stored]) -> Expected {
    let mut expected = Expected::default();
    for message in auth.iter().chain(compute) {
        match message.kind() {
            Some(Kind::Fact) => {
                let fact = fact(message);
                let event_id = fact.event_id.clone();
                // The first message of an event counts, every other is a duplicate.
                if !expected.facts.contains_key(&event_id) {
                    if message.stream == "COMPUTE" {
                        expected.order.push(event_id.clone());
                    }
                    expected.facts.insert(event_id, fact);
                }
            }
            Some(Kind::Poison) => {
                expected.poison.insert((message.stream, message.sequence));
            }
            Some(Kind::Noise) | None => {}
        }
    }
    expected.end();
    expected
}

impl Expected {
    fn end(&mut self) {
        let dead_users: BTreeSet<i64> = self
            .all(|what| *what == What::UserDeleted)
            .map(|fact| number(&fact.id))
            .collect();
        let ids: BTreeSet<String> = self.facts.values().map(|fact| fact.id.clone()).collect();
        let mut dead: BTreeSet<String> = self
            .all(|what| *what == What::Deleted)
            .map(|fact| fact.id.clone())
            .collect();
        let mut created: BTreeMap<String, (u64, i64, String)> = BTreeMap::new();
        for fact in self.facts.values() {
            let What::Created { owner, name } = &fact.what else {
                continue;
            };
            let first = (fact.sequence, *owner, name.clone());
            if created.get(&fact.id).is_none_or(|known| first.0 < known.0) {
                created.insert(fact.id.clone(), first);
            }
        }
        for (id, (_, owner, _)) in &created {
            if dead_users.contains(owner) {
                dead.insert(id.clone());
            }
        }

        let mut keys: BTreeMap<i64, BTreeMap<i64, String>> = BTreeMap::new();
        for id in &ids {
            let gone = self
                .on(id, |what| *what == What::KeyDeleted)
                .next()
                .is_some();
            let newest = newest(self.on(id, |what| matches!(what, What::Key { .. })));
            if let Some(What::Key { owner, fingerprint }) = newest
                && !gone
                && !dead_users.contains(owner)
            {
                let keys = keys.entry(*owner).or_default();
                keys.insert(number(id), fingerprint.clone());
            }
        }

        let mut users = BTreeMap::new();
        let (mut containers, mut rules) = (BTreeMap::new(), BTreeMap::new());
        for id in &ids {
            let user = newest(self.on(id, |what| matches!(what, What::User { .. })));
            if let Some(What::User { username }) = user
                && !dead_users.contains(&number(id))
            {
                users.insert(number(id), username.clone());
            }
            if dead.contains(id) {
                continue;
            }
            let ports: BTreeSet<i32> = self
                .on(id, |what| matches!(what, What::Rule { .. }))
                .filter_map(|fact| match fact.what {
                    What::Rule { port, .. } => Some(port),
                    _ => None,
                })
                .collect();
            let mut mine = BTreeMap::new();
            for port in ports {
                let on = |what: &What| matches!(what, What::Rule { port: p, .. } if *p == port);
                if let Some(What::Rule {
                    target: Some(target),
                    ..
                }) = newest(self.on(id, on))
                {
                    mine.insert(port, *target);
                    rules.insert((id.clone(), port), *target);
                }
            }
            let Some((_, owner, name)) = created.get(id) else {
                continue;
            };
            let address = match newest(self.on(id, |what| matches!(what, What::Run(_)))) {
                Some(What::Run(address)) => address.clone(),
                _ => None,
            };
            let flag = |what: Option<&What>, default| match what {
                Some(What::Ssh(on) | What::Https(on)) => *on,
                _ => default,
            };
            let ssh = newest(self.on(id, |what| matches!(what, What::Ssh(_))));
            let https = newest(self.on(id, |what| matches!(what, What::Https(_))));
            let container = Container {
                owner: *owner,
                name: name.clone(),
                address,
                ssh: flag(ssh, false),
                https: flag(https, true),
                rules: mine,
                keys: keys
                    .get(owner)
                    .into_iter()
                    .flatten()
                    .map(|(_, f)| f.clone())
                    .collect(),
            };
            containers.insert(id.clone(), container);
        }
        self.containers = containers;
        self.rules = rules;
        self.users = users;
        self.keys = keys;
        self.dead = dead;
    }

    fn all(&self, is: impl Fn(&What) -> bool) -> impl Iterator<Item = &Fact> {
        self.facts.values().filter(move |fact| is(&fact.what))
    }

    /// Facts on one thing.
    fn on<'a>(&'a self, id: &'a str, is: impl Fn(&What) -> bool) -> impl Iterator<Item = &'a Fact> {
        self.all(is).filter(move |fact| fact.id == id)
    }
}

/// The newest by version, or by the stream where there are no versions.
fn newest<'a>(facts: impl Iterator<Item = &'a Fact>) -> Option<&'a What> {
    let facts: Vec<_> = facts.collect();
    let versioned = facts.iter().filter(|fact| fact.version > 0).count();
    let newest = match versioned {
        0 => facts.into_iter().max_by_key(|fact| fact.sequence),
        all if all == facts.len() => facts.into_iter().max_by_key(|fact| fact.version),
        _ => panic!("a fact with and without versions: {facts:?}"),
    };
    newest.map(|fact| &fact.what)
}

fn number(id: &str) -> i64 {
    id.parse().unwrap_or(0)
}

fn fact(message: &Stored) -> Fact {
    let parts: Vec<_> = message.subject.split('.').collect();
    let [service, entity, id, action] = parts[..] else {
        panic!("no fact: {message:?}");
    };
    let bytes = message.payload.as_slice();
    let good = "a good event decodes";
    let (metadata, what) = match (service, entity, action) {
        ("compute", "container", "created") => {
            let m = compute::ContainerCreated::decode(bytes).expect(good);
            let what = What::Created {
                owner: m.user_id,
                name: m.name,
            };
            (m.metadata, what)
        }
        ("compute", "container", "deleted") => {
            let m = compute::ContainerDeleted::decode(bytes).expect(good);
            (m.metadata, What::Deleted)
        }
        ("compute", "container", "started") => {
            let m = compute::ContainerStarted::decode(bytes).expect(good);
            (m.metadata, What::Run(Some(m.external_ip)))
        }
        ("compute", "container", "stopped") => {
            let m = compute::ContainerStopped::decode(bytes).expect(good);
            (m.metadata, What::Run(None))
        }
        ("compute", "container", "ssh_toggled") => {
            let m = compute::ContainerSshToggled::decode(bytes).expect(good);
            (m.metadata, What::Ssh(m.ssh_enabled))
        }
        ("compute", "container", "https_toggled") => {
            let m = compute::ContainerHttpsToggled::decode(bytes).expect(good);
            (m.metadata, What::Https(m.https_enabled))
        }
        ("compute", "ingress", "requested") => {
            let m = compute::IngressRuleRequested::decode(bytes).expect(good);
            let what = What::Rule {
                port: m.port,
                target: Some(m.target_port),
            };
            (m.metadata, what)
        }
        ("compute", "ingress", "delete_requested") => {
            let m = compute::IngressRuleDeleteRequested::decode(bytes).expect(good);
            let what = What::Rule {
                port: m.port,
                target: None,
            };
            (m.metadata, what)
        }
        ("compute", "sshkey", "created") => {
            let m = compute::SshKeyCreated::decode(bytes).expect(good);
            let what = What::Key {
                owner: m.user_id,
                fingerprint: m.fingerprint,
            };
            (m.metadata, what)
        }
        ("compute", "sshkey", "deleted") => {
            let m = compute::SshKeyDeleted::decode(bytes).expect(good);
            (m.metadata, What::KeyDeleted)
        }
        ("auth", "user", "created") => {
            let m = auth::UserCreated::decode(bytes).expect(good);
            (
                m.metadata,
                What::User {
                    username: m.username,
                },
            )
        }
        ("auth", "user", "updated") => {
            let m = auth::UserUpdated::decode(bytes).expect(good);
            (
                m.metadata,
                What::User {
                    username: m.username,
                },
            )
        }
        ("auth", "user", "deleted") => {
            let m = auth::UserDeleted::decode(bytes).expect(good);
            (m.metadata, What::UserDeleted)
        }
        _ => panic!("no fact: {message:?}"),
    };
    let common::EventMetadata {
        event_id, version, ..
    } = metadata.unwrap_or_default();
    let ids = [Some(event_id.as_str()), message.header("Nats-Msg-Id")];
    let event_id = ids.into_iter().flatten().find(|id| !id.is_empty());
    Fact {
        event_id: event_id.map_or_else(
            || format!("{}:{}", message.stream, message.sequence),
            str::to_owned,
        ),
        sequence: message.sequence,
        version,
        id: id.to_owned(),
        what,
    }
}
