//! One transaction, written: a batch costs the same few statements whatever its size.
//!
//! What changes everything (a stream made anew, a snapshot) goes in parts, of the same
//! transaction: no statement takes long.

use std::collections::BTreeMap;

use edd_events::{outbox, trial};
use edd_store::{Engine, Rows, Script, Transaction};
use serde_json::json;

use super::cells::{self, number};
use super::{Commit, Line, Place, StoreError, int, journal, routes, rule_id};
use crate::control::reconcile::{Effects, State};

/// Rows of one statement at the most.
const PART: usize = 2_000;

/// Writes all of it, and commits; the journal's last line then.
pub(super) async fn write(mut tx: Transaction, commit: &Commit<'_>) -> Result<Place, StoreError> {
    let (script, mark) = statements(&mut tx, commit).await?;
    let numbers = script.commit(tx).await?;
    let last = numbers.into_iter().max();
    Ok(last.map_or(commit.position, |last| Place {
        number: number(last),
        mark,
    }))
}

/// Writes what every event writes, and takes it back.
pub(super) async fn try_out(mut tx: Transaction) -> Result<(), StoreError> {
    let entry = trial::entry();
    let event_id = entry.event_id.clone();
    let commit = Commit {
        event_ids: vec![&event_id],
        outbox: vec![entry],
        journal: vec![Line::of_route(&event_id, "/", None)],
        ..Commit::default()
    };
    let (script, _) = statements(&mut tx, &commit).await?;
    script.run(&mut tx).await?;
    // Dropped, nothing has happened.
    Ok(())
}

/// What remains to be run for a commit, and the mark of its lines.
async fn statements(
    tx: &mut Transaction,
    commit: &Commit<'_>,
) -> Result<(Script, i64), StoreError> {
    let mut lines = Vec::new();
    if let Some(statics) = &commit.statics {
        lines = routes::replace(tx, statics, int(commit.statics_revision)).await?;
    }
    lines.extend_from_slice(&commit.journal);
    let now = int(commit.now_ms);
    let mut writing = Writing {
        engine: tx.engine(),
        script: Script::default(),
    };
    let handled = commit.event_ids.iter().map(|id| json!([id, now])).collect();
    writing.rows(
        handled,
        "INSERT INTO inbox (event_id, at) SELECT value ->> 0, CAST(value ->> 1 AS BIGINT) \
         FROM {rows} WHERE true ON CONFLICT DO NOTHING",
    );
    if let Some((state, effects)) = commit.changes {
        containers(&mut writing, state, effects);
        rules(&mut writing, state, effects);
        keys(&mut writing, state, effects);
        users(&mut writing, state, effects);
        tombstones(&mut writing, state, effects);
    }
    for part in commit.outbox.chunks(PART) {
        if let Some(inserting) = outbox::inserting(writing.engine, part)? {
            writing.script.push(inserting);
        }
    }
    meta(&mut writing, commit);
    let mark = journal::draw_mark();
    let revision = commit.revision.unwrap_or(commit.revision_before);
    for part in lines.chunks(PART) {
        let part = journal::writing(writing.engine, part, mark, revision, commit.now_ms);
        writing.script.push(part);
    }
    Ok((writing.script, mark))
}

/// What is to be written.
struct Writing {
    engine: Engine,
    script: Script,
}

impl Writing {
    /// A statement about these rows, if there are any.
    fn rows(&mut self, rows: Rows, sql: &'static str) {
        for part in rows.parts(PART) {
            self.script.push(part.query(self.engine, sql));
        }
    }
}

fn containers(writing: &mut Writing, state: &State, effects: &Effects) {
    let (mut rows, mut gone) = (Rows::default(), Rows::default());
    for id in &effects.containers {
        match state.container(id) {
            Some(container) => rows.push(cells::container(id, container)),
            None => gone.push(json!([id.as_str()])),
        }
    }
    let sql = "INSERT INTO containers (id, owner_id, name, created_sequence, created_origin, \
               run_version, run_sequence, address, ssh_host_key, run_origin, ssh_version, \
               ssh_sequence, ssh_enabled, https_version, https_sequence, https_enabled) \
               SELECT value ->> 0, CAST(value ->> 1 AS BIGINT), value ->> 2, \
               CAST(value ->> 3 AS BIGINT), value ->> 4, CAST(value ->> 5 AS BIGINT), \
               CAST(value ->> 6 AS BIGINT), value ->> 7, value ->> 8, value ->> 9, \
               CAST(value ->> 10 AS BIGINT), CAST(value ->> 11 AS BIGINT), \
               CAST(value ->> 12 AS BOOLEAN), CAST(value ->> 13 AS BIGINT), \
               CAST(value ->> 14 AS BIGINT), CAST(value ->> 15 AS BOOLEAN) \
               FROM {rows} WHERE true ON CONFLICT (id) DO UPDATE SET \
               owner_id = excluded.owner_id, name = excluded.name, \
               created_sequence = excluded.created_sequence, \
               created_origin = excluded.created_origin, run_version = excluded.run_version, \
               run_sequence = excluded.run_sequence, address = excluded.address, \
               ssh_host_key = excluded.ssh_host_key, run_origin = excluded.run_origin, \
               ssh_version = excluded.ssh_version, ssh_sequence = excluded.ssh_sequence, \
               ssh_enabled = excluded.ssh_enabled, https_version = excluded.https_version, \
               https_sequence = excluded.https_sequence, https_enabled = excluded.https_enabled";
    writing.rows(rows, sql);
    let sql = "DELETE FROM containers WHERE id IN (SELECT value ->> 0 FROM {rows})";
    writing.rows(gone, sql);
}

fn rules(writing: &mut Writing, state: &State, effects: &Effects) {
    let (mut rows, mut gone) = (Rows::default(), Rows::default());
    for (id, port) in &effects.rules {
        let rule = state.container(id).and_then(|c| c.rules.get(port));
        match rule {
            Some(rule) => {
                let mut cells = cells::rule(id, *port, rule);
                if let Some(cells) = cells.as_array_mut() {
                    cells.push(json!(rule_id(id.as_str(), *port)));
                }
                rows.push(cells);
            }
            None => gone.push(json!([id.as_str(), port])),
        }
    }
    let sql = "INSERT INTO ingress_rules (container_id, port, target_port, version, sequence, \
               origin, id) SELECT value ->> 0, CAST(value ->> 1 AS BIGINT), \
               CAST(value ->> 2 AS BIGINT), CAST(value ->> 3 AS BIGINT), \
               CAST(value ->> 4 AS BIGINT), value ->> 5, CAST(value ->> 6 AS BIGINT) \
               FROM {rows} WHERE true ON CONFLICT (container_id, port) DO UPDATE SET \
               id = excluded.id, target_port = excluded.target_port, \
               version = excluded.version, sequence = excluded.sequence, \
               origin = excluded.origin";
    writing.rows(rows, sql);
    let sql = "DELETE FROM ingress_rules WHERE (container_id, port) IN \
               (SELECT value ->> 0, CAST(value ->> 1 AS BIGINT) FROM {rows})";
    writing.rows(gone, sql);
}

fn keys(writing: &mut Writing, state: &State, effects: &Effects) {
    let (mut rows, mut gone) = (Rows::default(), Rows::default());
    for id in &effects.keys {
        match state.key(*id) {
            Some(key) => rows.push(cells::key(*id, key)),
            None => gone.push(json!([id])),
        }
    }
    let sql = "INSERT INTO ssh_keys (id, user_id, fingerprint, version, sequence, origin) \
               SELECT CAST(value ->> 0 AS BIGINT), CAST(value ->> 1 AS BIGINT), value ->> 2, \
               CAST(value ->> 3 AS BIGINT), CAST(value ->> 4 AS BIGINT), value ->> 5 \
               FROM {rows} WHERE true ON CONFLICT (id) DO UPDATE SET \
               user_id = excluded.user_id, fingerprint = excluded.fingerprint, \
               version = excluded.version, sequence = excluded.sequence, \
               origin = excluded.origin";
    writing.rows(rows, sql);
    let sql = "DELETE FROM ssh_keys WHERE id IN (SELECT CAST(value ->> 0 AS BIGINT) FROM {rows})";
    writing.rows(gone, sql);
}

fn users(writing: &mut Writing, state: &State, effects: &Effects) {
    let (mut rows, mut gone) = (Rows::default(), Rows::default());
    for id in &effects.users {
        match state.user(*id) {
            Some(user) => rows.push(cells::user(*id, user)),
            None => gone.push(json!([id.0])),
        }
    }
    let sql = "INSERT INTO users (id, username, display_name, version, sequence) \
               SELECT CAST(value ->> 0 AS BIGINT), value ->> 1, value ->> 2, \
               CAST(value ->> 3 AS BIGINT), CAST(value ->> 4 AS BIGINT) \
               FROM {rows} WHERE true ON CONFLICT (id) DO UPDATE SET \
               username = excluded.username, display_name = excluded.display_name, \
               version = excluded.version, sequence = excluded.sequence";
    writing.rows(rows, sql);
    let sql = "DELETE FROM users WHERE id IN (SELECT CAST(value ->> 0 AS BIGINT) FROM {rows})";
    writing.rows(gone, sql);
}

fn tombstones(writing: &mut Writing, state: &State, effects: &Effects) {
    let containers = effects.containers.iter().filter_map(|id| {
        let at = state.container_died(id)?;
        Some(json!(["container", id.as_str(), int(at)]))
    });
    let keys = effects.keys.iter().filter_map(|id| {
        let at = state.key_died(*id)?;
        Some(json!(["key", id.to_string(), int(at)]))
    });
    let users = effects.users.iter().filter_map(|id| {
        let at = state.user_died(*id)?;
        Some(json!(["user", id.to_string(), int(at)]))
    });
    let rows: Rows = containers.chain(keys).chain(users).collect();
    let sql = "INSERT INTO tombstones (kind, id, at) \
               SELECT value ->> 0, value ->> 1, CAST(value ->> 2 AS BIGINT) \
               FROM {rows} WHERE true ON CONFLICT DO NOTHING";
    writing.rows(rows, sql);
}

fn meta(writing: &mut Writing, commit: &Commit<'_>) {
    let positions = commit.positions.iter().map(|of| ("position", of));
    let floors = commit.floors.iter().map(|of| ("floor", of));
    let restarts = commit.restarts.map(int);
    let row = |(what, (stream, sequence)): (&str, (&String, &u64))| {
        let known = format!("restarts:{stream}");
        json!([format!("{what}:{stream}"), int(*sequence), known, restarts])
    };
    writing.rows(
        positions.chain(floors).map(row).collect(),
        "INSERT INTO meta (key, value) SELECT value ->> 0, CAST(value ->> 1 AS BIGINT) \
         FROM {rows} WHERE rows.value ->> 3 IS NULL OR CAST(rows.value ->> 3 AS BIGINT) = \
         COALESCE((SELECT known.value FROM meta AS known WHERE known.key = rows.value ->> 2), 0) \
         ON CONFLICT (key) DO UPDATE SET \
         value = CASE WHEN meta.value > excluded.value THEN meta.value \
         ELSE excluded.value END",
    );
    let mut values = BTreeMap::new();
    if let Some((stream, restarts)) = commit.restarted {
        for what in ["position", "floor", "tries"] {
            values.insert(format!("{what}:{stream}"), 0);
        }
        values.insert(format!("restarts:{stream}"), int(restarts));
    }
    if let Some((stream, gap)) = commit.gap {
        values.insert(format!("gap:{stream}"), int(gap));
    }
    if let Some((stream, tries)) = commit.tries {
        values.insert(format!("tries:{stream}"), int(tries));
    }
    if let Some((stream, created)) = commit.stream {
        values.insert(format!("stream:{stream}"), created);
    }
    if let Some(revision) = commit.revision {
        values.insert("revision".into(), int(revision));
    }
    if commit.birth {
        values.insert("born".into(), 1);
    }
    if let Some(rebuilding) = commit.rebuilding {
        values.insert("rebuilding".into(), i64::from(rebuilding));
    }
    writing.rows(
        values.into_iter().map(|value| json!(value)).collect(),
        "INSERT INTO meta (key, value) SELECT value ->> 0, CAST(value ->> 1 AS BIGINT) \
         FROM {rows} WHERE true ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    );
}
