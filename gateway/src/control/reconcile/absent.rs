//! What a snapshot of everything does not tell, and so is gone.

use std::collections::{HashMap, HashSet};

use edd_route::{ContainerId, Origin};

use super::change::{Change, What};
use super::entity::{ContainerEntity, Stamp};
use super::state::State;

/// The changes that remove from `state` what `told`, the whole truth as of the
/// stream's `sequence`, does not mention. What is newer than that stays.
pub fn absent<'c>(
    state: &State,
    told: impl Iterator<Item = &'c Change>,
    sequence: u64,
) -> Vec<Change> {
    // A container's version is that of its creation, here.
    let mut containers: HashMap<&ContainerId, i64> = HashMap::new();
    let mut rules: HashSet<(&ContainerId, u16)> = HashSet::new();
    let mut keys: HashSet<i64> = HashSet::new();
    for change in told {
        match &change.what {
            What::ContainerCreated { id, .. } => {
                containers.insert(id, change.stamp.version);
            }
            What::RuleRequested { id, port, .. } => {
                rules.insert((id, *port));
            }
            What::KeyCreated { id, .. } => {
                keys.insert(*id);
            }
            _ => {}
        }
    }
    let mut gone = Vec::new();
    let mut remove = |subject: String, version: i64, what: What| {
        gone.push(Change {
            stamp: Stamp { version, sequence },
            origin: Origin::Event {
                subject,
                sequence,
                event_id: String::new(),
                at_ms: 0,
            },
            what,
        });
    };
    for (id, container) in state.containers() {
        let Some(version) = containers.get(id) else {
            if newest(container) <= sequence {
                let what = What::ContainerDeleted { id: id.clone() };
                remove(format!("compute.container.{id}.deleted"), 0, what);
            }
            continue;
        };
        for (port, rule) in &container.rules {
            let is_told = rules.contains(&(id, *port));
            if rule.target.is_some() && !is_told && rule.stamp.sequence <= sequence {
                let (id, port) = (id.clone(), *port);
                let subject = format!("compute.ingress.{id}.delete_requested");
                remove(subject, *version, What::RuleDeleted { id, port });
            }
        }
    }
    for (id, key) in state.keys() {
        if !keys.contains(&id) && key.stamp.sequence <= sequence {
            let what = What::KeyDeleted { id };
            remove(format!("compute.sshkey.{id}.deleted"), 0, what);
        }
    }
    gone
}

/// The last event that it has of anything.
fn newest(container: &ContainerEntity) -> u64 {
    let facts = [
        container
            .created
            .as_ref()
            .map_or(0, |created| created.sequence),
        container.run.stamp.sequence,
        container.ssh.stamp.sequence,
        container.https.stamp.sequence,
    ];
    let rules = container.rules.values().map(|rule| rule.stamp.sequence);
    facts.into_iter().chain(rules).max().unwrap_or_default()
}
