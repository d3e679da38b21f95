//! What is known of each thing, with the stamps that order the events on it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use edd_route::{ContainerId, ContainerSpec, KeySpec, Origin, RuleSpec, RunSpec, UserId};

/// Orders the events on one fact.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stamp {
    /// The publisher's version; 0: none.
    pub version: i64,
    /// The sequence in the stream.
    pub sequence: u64,
}

impl Stamp {
    /// A stamp that only knows the stream's order.
    pub fn unversioned(sequence: u64) -> Self {
        Self {
            version: 0,
            sequence,
        }
    }

    /// Whether an event stamped `newer` is newer than this: by version, and by
    /// the stream's order as soon as one of both has no version. A fact that came
    /// from a table learns its version from its own event.
    pub fn is_before(self, newer: Self) -> bool {
        let versioned = self.version > 0 && newer.version > 0;
        if versioned || self.sequence == newer.sequence {
            self.version < newer.version
        } else {
            self.sequence < newer.sequence
        }
    }
}

/// The facts that a container's creation fixes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Created {
    /// Whose it is.
    pub owner: UserId,
    /// Its name, for people.
    pub name: String,
    /// Where the event stands in the stream.
    pub sequence: u64,
    /// The event.
    pub origin: Origin,
}

/// Whether a container runs, and where.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Run {
    /// The newest event on it.
    pub stamp: Stamp,
    /// Set while it runs.
    pub running: Option<Running>,
}

/// One run of a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Running {
    /// Where it answers.
    pub address: IpAddr,
    /// Its SSH host key, an OpenSSH public key line.
    pub ssh_host_key: Option<String>,
    /// The event.
    pub origin: Origin,
}

/// A switch of a container.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flag {
    /// The newest event on it.
    pub stamp: Stamp,
    /// On or off.
    pub on: bool,
}

/// An ingress rule, or what is left of one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuleEntity {
    /// The newest event on it.
    pub stamp: Stamp,
    /// The container's port; none once deleted, kept to order late events.
    pub target: Option<u16>,
    /// The event.
    pub origin: Origin,
}

/// What is known of a container; perhaps not yet that it was created.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ContainerEntity {
    /// Set once created; only then it is served.
    pub created: Option<Created>,
    /// Whether it runs.
    pub run: Run,
    /// SSH; off until switched.
    pub ssh: Flag,
    /// The public HTTPS port; on until switched.
    pub https: Flag,
    /// Its rules by public port.
    pub rules: BTreeMap<u16, RuleEntity>,
}

impl Default for ContainerEntity {
    fn default() -> Self {
        let flag = |on| Flag {
            stamp: Stamp::default(),
            on,
        };
        Self {
            created: None,
            run: Run::default(),
            ssh: flag(false),
            https: flag(true),
            rules: BTreeMap::new(),
        }
    }
}

/// Where an entry's event stands in its stream.
pub(super) fn sequence_of(origin: &Origin) -> u64 {
    match origin {
        Origin::Event { sequence, .. } => *sequence,
        Origin::File { .. } => 0,
    }
}

impl ContainerEntity {
    /// What a table tells; any event may tell better what has none of its own there.
    pub(super) fn of_spec(spec: ContainerSpec) -> Self {
        let flag = |on| Flag {
            stamp: Stamp::default(),
            on,
        };
        let rule = |rule: RuleSpec| {
            let entity = RuleEntity {
                stamp: Stamp::unversioned(sequence_of(&rule.origin)),
                target: Some(rule.target_port),
                origin: rule.origin,
            };
            (rule.port, entity)
        };
        Self {
            run: match spec.running {
                Some(run) => Run {
                    stamp: Stamp::unversioned(run.start),
                    running: Some(Running {
                        address: run.address,
                        ssh_host_key: run.ssh_host_key,
                        origin: run.origin,
                    }),
                },
                None => Run::default(),
            },
            ssh: flag(spec.ssh_enabled),
            https: flag(spec.https_enabled),
            rules: spec.rules.into_iter().map(rule).collect(),
            created: Some(Created {
                owner: spec.owner,
                name: spec.name,
                sequence: sequence_of(&spec.origin),
                origin: spec.origin,
            }),
        }
    }

    pub(super) fn origins_of(spec: &ContainerSpec) -> impl Iterator<Item = &Origin> {
        let run = spec.running.iter().map(|run| &run.origin);
        let rules = spec.rules.iter().map(|rule| &rule.origin);
        std::iter::once(&spec.origin).chain(run).chain(rules)
    }

    /// Forgets where events stand in their stream, keeps their versions.
    pub fn forget_sequences(&mut self) {
        for stamp in [
            &mut self.run.stamp,
            &mut self.ssh.stamp,
            &mut self.https.stamp,
        ] {
            stamp.sequence = 0;
        }
        for rule in self.rules.values_mut() {
            rule.stamp.sequence = 0;
        }
        if let Some(created) = &mut self.created {
            created.sequence = 0;
        }
    }

    /// What should be in force; nothing before its creation.
    pub fn spec(&self, id: &ContainerId) -> Option<ContainerSpec> {
        let created = self.created.as_ref()?;
        Some(ContainerSpec {
            id: id.clone(),
            owner: created.owner,
            name: created.name.clone(),
            running: self.run.running.as_ref().map(|running| RunSpec {
                address: running.address,
                ssh_host_key: running.ssh_host_key.clone(),
                // Not the stamp's, which is forgotten when the stream is made anew: it is
                // still the same start.
                start: sequence_of(&running.origin),
                origin: running.origin.clone(),
            }),
            ssh_enabled: self.ssh.on,
            https_enabled: self.https.on,
            rules: self
                .rules
                .iter()
                .filter_map(|(port, rule)| {
                    Some(RuleSpec {
                        port: *port,
                        target_port: rule.target?,
                        origin: rule.origin.clone(),
                    })
                })
                .collect(),
            origin: created.origin.clone(),
        })
    }
}

/// A user's SSH key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyEntity {
    /// The newest event on it.
    pub stamp: Stamp,
    /// Whose it is.
    pub user: UserId,
    /// OpenSSH's `SHA256:…`.
    pub fingerprint: String,
    /// The event.
    pub origin: Origin,
}

impl KeyEntity {
    /// What should be in force.
    pub fn spec(&self, id: i64) -> KeySpec {
        KeySpec {
            id,
            fingerprint: self.fingerprint.clone(),
            origin: self.origin.clone(),
        }
    }
}

/// What is known of a user.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UserEntity {
    /// The newest event on it.
    pub stamp: Stamp,
    /// His log-in name; not unique here.
    pub username: String,
    /// His name for people.
    pub display_name: String,
}
