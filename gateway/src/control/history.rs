//! The past, put together from the journal: the table as it was, and what happened
//! to one container or host, in words.

use edd_route::{RouteTable, Settings, TableWriter};

use super::reconcile::{ContainerEntity, Effects, Record, RuleEntity, State};
use super::store::{Entry, Log, Then};

/// The table that was in force then.
pub fn table(then: &Then, settings: Settings) -> RouteTable {
    let mut state = State::default();
    let mut routes = Vec::new();
    let mut touched = Effects::default();
    for entry in &then.entries {
        match &entry.record {
            Record::Route(_, _, Some(spec)) => routes.push((**spec).clone()),
            record => state.take_over(record, entry.at_ms, &mut touched),
        }
    }
    let mut writer = TableWriter::new(RouteTable::empty(settings));
    writer.set_statics(routes);
    writer.replace_dynamic(state.container_specs(), state.all_key_specs());
    writer.advance();
    match writer.publish(then.revision) {
        Some(published) => RouteTable::clone(&published.table),
        None => writer.table().clone(),
    }
}

/// What each of its entries changed, in words; nothing to be seen: no words.
pub fn describe(log: &Log) -> Vec<String> {
    let describe = |(n, entry): (usize, &Entry)| {
        let earlier = log.before.iter().chain(log.entries.iter().take(n)).rev();
        let change = change(earlier.map(|entry| &entry.record), &entry.record);
        match n < log.baseline && !change.is_empty() {
            true => format!("before that: {change}"),
            false => change,
        }
    };
    log.entries.iter().enumerate().map(describe).collect()
}

fn change<'e>(mut before: impl Iterator<Item = &'e Record>, after: &Record) -> String {
    match after {
        Record::Container(_, None) => "container deleted".to_owned(),
        Record::Container(_, Some(after)) => {
            let before = before.find_map(|record| match record {
                Record::Container(_, entity) => Some(entity.as_ref()),
                _ => None,
            });
            container(before.flatten(), after)
        }
        Record::Key(id, Some(key)) => {
            format!("key {id} of user {}: {}", key.user.0, key.fingerprint)
        }
        Record::Key(id, None) => format!("key {id} deleted"),
        Record::Route(host, path, Some(spec)) => {
            format!("route {host}{path} to {}", spec.targets_text())
        }
        Record::Route(host, path, None) => format!("route {host}{path} removed"),
        Record::Rule(_, port, rule) => {
            let target = |rule: &Option<RuleEntity>| rule.as_ref().and_then(|rule| rule.target);
            let before = before.find_map(|record| match record {
                Record::Rule(_, of, rule) if of == port => Some(target(rule)),
                _ => None,
            });
            match (before, target(rule)) {
                (_, Some(target)) => format!("rule {port} to port {target}"),
                (Some(None), None) => String::new(),
                (_, None) => format!("rule {port} deleted"),
            }
        }
        Record::User(id, Some(user)) => format!("user {} is {:?}", id.0, user.username),
        Record::User(id, None) => format!("user {} deleted", id.0),
    }
}

fn container(before: Option<&ContainerEntity>, after: &ContainerEntity) -> String {
    let default = ContainerEntity::default();
    let before = before.unwrap_or(&default);
    let mut words = Vec::new();
    if before.created != after.created
        && let Some(created) = &after.created
    {
        words.push(format!(
            "created {:?} for user {}",
            created.name, created.owner.0
        ));
    }
    if before.run != after.run {
        words.push(match &after.run.running {
            Some(running) => format!("started at {}", running.address),
            None => "stopped".to_owned(),
        });
    }
    for (name, before, after) in [
        ("ssh", before.ssh, after.ssh),
        ("https", before.https, after.https),
    ] {
        if before != after {
            words.push(format!("{name} {}", if after.on { "on" } else { "off" }));
        }
    }
    words.join(", ")
}
