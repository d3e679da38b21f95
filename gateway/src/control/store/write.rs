//! One transaction, written: a batch costs the same few statements whatever its size.

use std::collections::BTreeMap;

use edd_events::outbox;
use edd_store::{Rows, Transaction, query};
use serde_json::json;

use super::{Commit, Place, StoreError, cells, int, journal, routes, rule_id};
use crate::control::reconcile::{Effects, State};

/// Writes all of it; the journal's last line then.
pub(super) async fn write(tx: &mut Transaction, commit: &Commit<'_>) -> Result<Place, StoreError> {
    let now = int(commit.now_ms);
    let handled: Rows = commit.event_ids.iter().map(|id| json!([id, now])).collect();
    let sql = "INSERT INTO inbox (event_id, at) SELECT value ->> 0, CAST(value ->> 1 AS BIGINT) \
               FROM {rows} WHERE true ON CONFLICT DO NOTHING";
    run(tx, handled, sql).await?;
    if let Some((state, effects)) = commit.changes {
        containers(tx, state, effects).await?;
        rules(tx, state, effects).await?;
        keys(tx, state, effects).await?;
        users(tx, state, effects).await?;
        tombstones(tx, state, effects).await?;
    }
    let mut lines = Vec::new();
    if let Some(statics) = &commit.statics {
        lines = routes::replace(tx, statics, int(commit.statics_revision)).await?;
    }
    outbox::insert_all(tx, &commit.outbox).await?;
    lines.extend_from_slice(&commit.journal);
    let revision = commit.revision.unwrap_or(commit.revision_before);
    journal::write(tx, &lines, revision, commit.now_ms).await?;
    meta(tx, commit).await?;
    match lines.is_empty() {
        true => Ok(commit.position),
        false => journal::last(tx).await,
    }
}

async fn run(tx: &mut Transaction, rows: Rows, sql: &'static str) -> Result<(), StoreError> {
    if !rows.is_empty() {
        rows.query(tx.engine(), sql).run(tx).await?;
    }
    Ok(())
}

async fn containers(
    tx: &mut Transaction,
    state: &State,
    effects: &Effects,
) -> Result<(), StoreError> {
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
    run(tx, rows, sql).await?;
    let sql = "DELETE FROM containers WHERE id IN (SELECT value ->> 0 FROM {rows})";
    run(tx, gone, sql).await
}

async fn rules(tx: &mut Transaction, state: &State, effects: &Effects) -> Result<(), StoreError> {
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
    run(tx, rows, sql).await?;
    let sql = "DELETE FROM ingress_rules WHERE (container_id, port) IN \
               (SELECT value ->> 0, CAST(value ->> 1 AS BIGINT) FROM {rows})";
    run(tx, gone, sql).await
}

async fn keys(tx: &mut Transaction, state: &State, effects: &Effects) -> Result<(), StoreError> {
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
    run(tx, rows, sql).await?;
    let sql = "DELETE FROM ssh_keys WHERE id IN (SELECT CAST(value ->> 0 AS BIGINT) FROM {rows})";
    run(tx, gone, sql).await
}

async fn users(tx: &mut Transaction, state: &State, effects: &Effects) -> Result<(), StoreError> {
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
    run(tx, rows, sql).await?;
    let sql = "DELETE FROM users WHERE id IN (SELECT CAST(value ->> 0 AS BIGINT) FROM {rows})";
    run(tx, gone, sql).await
}

async fn tombstones(
    tx: &mut Transaction,
    state: &State,
    effects: &Effects,
) -> Result<(), StoreError> {
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
    run(tx, rows, sql).await
}

async fn meta(tx: &mut Transaction, commit: &Commit<'_>) -> Result<(), StoreError> {
    let positions = commit.positions.iter().map(|of| ("position", of));
    let floors = commit.floors.iter().map(|of| ("floor", of));
    for (what, (stream, sequence)) in positions.chain(floors) {
        query(
            "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET \
             value = CASE WHEN meta.value > excluded.value THEN meta.value \
             ELSE excluded.value END",
        )
        .bind(format!("{what}:{stream}"))
        .bind(int(*sequence))
        .run(&mut *tx)
        .await?;
    }
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
    for (key, value) in values {
        query(
            "INSERT INTO meta (key, value) VALUES ($1, $2) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )
        .bind(key)
        .bind(value)
        .run(&mut *tx)
        .await?;
    }
    Ok(())
}
