//! What must be so at the end of a run.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

use edd_events::dead_letter::{DLQ_STREAM_SEQ, DLQ_SUBJECT};
use edd_events::envelope::CAUSATION_ID;
use edd_proto::gateway::{IngressRuleCreated, IngressRuleDeleted, RouterRefreshed};
use edd_store::{Database, query};
use prost::Message as _;
use serde_json::Value;
use tokio::time::sleep;

use crate::oracle::{Container, Expected, Stored, What};
use crate::rig::{DEADLINE, Rig};
use crate::script::{Kind, Route};

/// The table in force is the model's.
pub(crate) async fn table(rig: &Rig, expected: &Expected, routes: &[Route]) {
    let (_, body) = rig.get("/api/v1/containers").await.expect("an answer");
    let found: BTreeMap<String, Container> = array(&body["containers"])
        .map(|container| (text(&container["id"]), shown(container)))
        .collect();
    for id in found.keys().chain(expected.containers.keys()) {
        let facts = || {
            let facts = expected.facts.values().filter(|fact| fact.id == *id);
            let mut facts: Vec<_> = facts.collect();
            facts.sort_by_key(|fact| fact.sequence);
            facts
                .into_iter()
                .map(|fact| format!("\n  {fact:?}"))
                .collect::<String>()
        };
        assert_eq!(
            found.get(id),
            expected.containers.get(id),
            "{id}, the gateway's and the model's; all on it:{}\n{}",
            facts(),
            rig.log(),
        );
    }
    // The file's last content is in force a moment later.
    let wanted: BTreeSet<_> = routes.iter().cloned().collect();
    let begun = Instant::now();
    loop {
        let (_, body) = rig.get("/api/v1/routes").await.expect("an answer");
        let found: BTreeSet<Route> = array(&body["routes"])
            .map(|route| {
                (
                    text(&route["host"]),
                    text(&route["path"]),
                    text(&route["target"]),
                )
            })
            .collect();
        if found == wanted {
            return;
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "routes {found:?}, wanted {wanted:?}\n{}",
            rig.log()
        );
        sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn shown(container: &Value) -> Container {
    let rules = array(&container["rules"]).map(|rule| {
        let number = |name: &str| rule[name].as_i64().and_then(|n| i32::try_from(n).ok());
        (
            number("port").expect("a port"),
            number("target_port").expect("a port"),
        )
    });
    assert_eq!(
        container["running"].as_bool(),
        Some(container["address"].is_string())
    );
    Container {
        owner: container["owner"].as_i64().expect("a number"),
        name: text(&container["name"]),
        address: container["address"].as_str().map(str::to_owned),
        ssh: container["ssh_enabled"].as_bool().expect("a truth"),
        https: container["https_enabled"].as_bool().expect("a truth"),
        rules: rules.collect(),
        keys: array(&container["ssh_keys"]).map(text).collect(),
    }
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("an array").iter()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// Everything that was to be said is said.
pub(crate) async fn outbox(rig: &Rig) {
    let database = Database::open(&rig.database).await.expect("the database");
    let begun = Instant::now();
    loop {
        let waiting = edd_events::outbox::pending(&database)
            .await
            .expect("a count");
        if waiting == 0 {
            break;
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "{waiting} wait in the outbox\n{}",
            rig.log()
        );
        sleep(std::time::Duration::from_millis(20)).await;
    }
    database.close().await;
}

/// What no table shows: users.
pub(crate) async fn users(rig: &Rig, expected: &Expected) {
    let database = Database::open(&rig.database).await.expect("the database");
    let users: Vec<(i64, String)> = query("SELECT id, username FROM users ORDER BY id")
        .all(&database)
        .await
        .expect("rows");
    database.close().await;
    assert_eq!(
        users.into_iter().collect::<BTreeMap<_, _>>(),
        expected.users
    );
}

/// Each bad event once, as it was, and nothing else.
pub(crate) async fn dead_letters(rig: &Rig, expected: &Expected) {
    for stream in ["AUTH", "COMPUTE"] {
        let messages = rig.read(stream).await;
        let mut buried = BTreeSet::new();
        for letter in &messages {
            let Some(sequence) = letter.header(DLQ_STREAM_SEQ) else {
                continue;
            };
            let sequence: u64 = sequence.parse().expect("a sequence");
            let original = messages.iter().find(|message| message.sequence == sequence);
            let original = original.expect("the original");
            assert!(
                buried.insert(sequence),
                "{original:?} twice in the dead letters"
            );
            assert_eq!(
                original.kind(),
                Some(Kind::Poison),
                "{original:?}: {letter:?}"
            );
            assert_eq!(letter.payload, original.payload);
            assert_eq!(letter.header(DLQ_SUBJECT), Some(original.subject.as_str()));
            let parts: Vec<_> = original.subject.split('.').collect();
            assert_eq!(
                letter.subject,
                format!("{}.{}.{}.dlq", parts[0], parts[1], parts[3])
            );
        }
        let poison = expected.poison.iter().filter(|(of, _)| *of == stream);
        let poison: BTreeSet<u64> = poison.map(|(_, sequence)| *sequence).collect();
        assert_eq!(
            buried, poison,
            "{stream}: sequences in the dead letters and of bad events"
        );
    }
}

/// `gateway.ingress.*`, in the order in which it was said.
#[derive(Clone, Debug)]
struct Said {
    container: String,
    port: i32,
    /// None: the rule ended.
    target: Option<i32>,
    version: i64,
    cause: String,
}

/// Every rule that came into force was announced once, and so was its end.
pub(crate) async fn announcements(rig: &Rig, expected: &Expected, in_order: bool) {
    let mut ids = HashSet::new();
    let (mut said, mut revisions) = (Vec::new(), Vec::new());
    for message in rig.read("GATEWAY").await {
        let id = message
            .header("Nats-Msg-Id")
            .expect("a message id")
            .to_owned();
        // Published again after a crash: consumers know it by its id.
        if !ids.insert(id) {
            continue;
        }
        if message.subject == "gateway.router.refreshed" {
            let m = RouterRefreshed::decode(&*message.payload).expect("a message");
            revisions.push(m.metadata.expect("metadata").version);
        } else if message.subject.starts_with("gateway.ingress.") {
            said.push(self::said(&message));
        }
    }
    assert!(
        revisions.is_sorted_by(|a, b| a < b),
        "revisions are told once and in order: {revisions:?}"
    );
    if in_order {
        let said: Vec<_> = said
            .iter()
            .map(|s| (s.container.clone(), s.port, s.target))
            .collect();
        assert_eq!(
            said,
            in_streams_order(expected),
            "announcements, one by one"
        );
    }
    let mut by_rule: BTreeMap<(String, i32), Vec<Said>> = BTreeMap::new();
    for said in said {
        let rule = (said.container.clone(), said.port);
        by_rule.entry(rule).or_default().push(said);
    }
    let rules: BTreeSet<_> = by_rule
        .keys()
        .chain(expected.rules.keys())
        .cloned()
        .collect();
    for rule in rules {
        let said = by_rule.remove(&rule).unwrap_or_default();
        let facts = expected.facts.values().filter(|fact| fact.id == rule.0);
        let mut facts: Vec<_> = facts.collect();
        facts.sort_by_key(|fact| fact.sequence);
        let all = format!("{rule:?}: {said:#?}\nof {facts:#?}");
        one_rule(&rule, &said, expected, &all);
    }
}

fn one_rule((id, port): &(String, i32), said: &[Said], expected: &Expected, all: &str) {
    let last = said.last().and_then(|said| said.target);
    let wanted = expected.rules.get(&(id.clone(), *port)).copied();
    assert_eq!(last, wanted, "the last word on {all}");
    let mut causes = HashSet::new();
    let mut before: Option<&Said> = None;
    for said in said {
        assert!(
            causes.insert(&said.cause),
            "two answers to {}: {all}",
            said.cause
        );
        let cause = expected.facts.get(&said.cause);
        let cause = cause.unwrap_or_else(|| panic!("no cause {}: {all}", said.cause));
        match (&cause.what, said.target) {
            // What asks for it or ends it.
            (What::Rule { port, target }, _) => {
                assert_eq!((*port, *target), (said.port, said.target), "{all}");
                assert_eq!(
                    (&cause.id, cause.version),
                    (&said.container, said.version),
                    "{all}"
                );
            }
            // What ends the container ends it, for good.
            (What::Deleted | What::Created { .. } | What::UserDeleted, None) => {
                assert!(expected.dead.contains(id), "{all}");
            }
            (what, _) => panic!("{what:?} is no cause: {all}"),
        }
        let ended = before.is_none_or(|before| before.target.is_none());
        match said.target {
            None => assert!(!ended, "the end of what was not: {all}"),
            Some(target) if !ended => {
                let before = before.expect("not ended");
                let overtook = before.version > 0 && said.version > before.version + 1;
                assert!(
                    before.target != Some(target) || overtook,
                    "said again: {all}"
                );
            }
            Some(_) => {}
        }
        before = Some(said);
    }
}

fn said(message: &Stored) -> Said {
    let cause = message.header(CAUSATION_ID).expect("a cause").to_owned();
    let (metadata, container, port, target) = if message.subject.ends_with(".created") {
        let m = IngressRuleCreated::decode(&*message.payload).expect("a message");
        (m.metadata, m.container_id, m.port, Some(m.target_port))
    } else {
        let m = IngressRuleDeleted::decode(&*message.payload).expect("a message");
        (m.metadata, m.container_id, m.port, None)
    };
    Said {
        container,
        port,
        target,
        version: metadata.expect("metadata").version,
        cause,
    }
}

/// What is to be announced when every event comes in its stream's order.
fn in_streams_order(expected: &Expected) -> Vec<(String, i32, Option<i32>)> {
    let mut rules: BTreeMap<(String, i32), (i64, Option<i32>)> = BTreeMap::new();
    let mut dead = HashSet::new();
    let mut said = Vec::new();
    for event_id in &expected.order {
        let fact = &expected.facts[event_id];
        if dead.contains(&fact.id) {
            continue;
        }
        match fact.what {
            What::Rule { port, target } => {
                let known = rules.get(&(fact.id.clone(), port)).copied();
                let (version, before) = known.unwrap_or((0, None));
                if known.is_some() && fact.version > 0 && fact.version <= version {
                    continue;
                }
                let overtook = version > 0 && fact.version > version + 1 && target.is_some();
                rules.insert((fact.id.clone(), port), (fact.version, target));
                if before != target || overtook {
                    said.push((fact.id.clone(), port, target));
                }
            }
            What::Deleted => {
                dead.insert(fact.id.clone());
                for ((id, port), (_, target)) in &rules {
                    if *id == fact.id && target.is_some() {
                        said.push((id.clone(), *port, None));
                    }
                }
            }
            _ => {}
        }
    }
    said
}
