//! Reading the whole database back, or an error.

use std::collections::HashMap;

use edd_route::{ContainerId, UserId};
use edd_store::{Database, Transaction, query};

use super::cells::{ContainerRow, KeyRow, RuleRow, UserRow, container_id, corrupt, number};
use super::{Marks, StoreError, Stored, journal};
use crate::control::reconcile::{ContainerEntity, State};

/// Reads everything as it was at one instant.
pub(super) async fn load(database: &Database) -> Result<Stored, StoreError> {
    let mut tx = database.begin_read().await?;
    let sql = "SELECT id, owner_id, name, created_sequence, created_origin, run_version, \
               run_sequence, address, ssh_host_key, run_origin, ssh_version, ssh_sequence, \
               ssh_enabled, https_version, https_sequence, https_enabled FROM containers";
    let containers: Vec<ContainerRow> = query(sql).all(&mut tx).await?;
    let sql =
        "SELECT container_id, port, target_port, version, sequence, origin FROM ingress_rules";
    let rules: Vec<RuleRow> = query(sql).all(&mut tx).await?;
    let sql = "SELECT id, user_id, fingerprint, version, sequence, origin FROM ssh_keys";
    let keys: Vec<KeyRow> = query(sql).all(&mut tx).await?;
    let sql = "SELECT id, username, display_name, version, sequence FROM users";
    let users: Vec<UserRow> = query(sql).all(&mut tx).await?;
    let sql = "SELECT kind, id, at FROM tombstones";
    let tombstones: Vec<(String, String, i64)> = query(sql).all(&mut tx).await?;
    let meta: Vec<(String, i64)> = query("SELECT key, value FROM meta").all(&mut tx).await?;
    let position = journal::last(&mut tx).await?;
    tx.commit().await?;

    let mut stored = Stored {
        position,
        ..Stored::default()
    };
    restore_containers(&mut stored.state, containers, rules)?;
    for row in keys {
        let id = row.id;
        stored.state.restore_key(id, row.entity()?);
    }
    for row in users {
        let id = UserId(row.id);
        stored.state.restore_user(id, row.entity());
    }
    for (kind, id, at) in tombstones {
        restore_tombstone(&mut stored.state, &kind, &id, number(at))?;
    }
    for (key, value) in meta {
        match key.as_str() {
            "born" => stored.born = true,
            "revision" => stored.revision = number(value),
            "pruned" => stored.position = stored.position.or_pruned(number(value)),
            "rebuilding" => stored.rebuilding = value != 0,
            key => {
                if let Some((what, stream)) = key.split_once(':') {
                    let marks = stored.streams.entry(stream.to_owned()).or_default();
                    mark(marks, what, value);
                }
            }
        }
    }
    Ok(stored)
}

/// Reads how far the database has one stream.
pub(super) async fn stream(tx: &mut Transaction, name: &str) -> Result<Marks, StoreError> {
    let sql = "SELECT key, value FROM meta WHERE key LIKE '%:' || $1";
    let meta: Vec<(String, i64)> = query(sql).bind(name).all(tx).await?;
    let mut marks = Marks::default();
    for (key, value) in meta {
        // Not all that an underscore of the name is like is that name.
        if let Some((what, of)) = key.split_once(':')
            && of == name
        {
            mark(&mut marks, what, value);
        }
    }
    Ok(marks)
}

fn mark(marks: &mut Marks, what: &str, value: i64) {
    match what {
        "stream" => marks.created = Some(value),
        "position" => marks.position = number(value),
        "floor" => marks.floor = number(value),
        "tries" => marks.tries = number(value),
        "restarts" => marks.restarts = number(value),
        "gap" => marks.gap = number(value),
        _ => {}
    }
}

fn restore_containers(
    state: &mut State,
    containers: Vec<ContainerRow>,
    rules: Vec<RuleRow>,
) -> Result<(), StoreError> {
    let mut entities: HashMap<ContainerId, ContainerEntity> = HashMap::new();
    for row in containers {
        let id = container_id("containers", &row.id)?;
        entities.insert(id, row.entity()?);
    }
    for row in rules {
        let id = container_id("ingress_rules", &row.container_id)?;
        let (port, rule) = row.entity()?;
        entities.entry(id).or_default().rules.insert(port, rule);
    }
    for (id, entity) in entities {
        state.restore_container(id, entity);
    }
    Ok(())
}

fn restore_tombstone(state: &mut State, kind: &str, id: &str, at: u64) -> Result<(), StoreError> {
    let table = "tombstones";
    let whole = || {
        id.parse::<i64>()
            .map_err(|_| corrupt(table, id, "is no number".into()))
    };
    match kind {
        "container" => state.restore_dead_container(container_id(table, id)?, at),
        "key" => state.restore_dead_key(whole()?, at),
        "user" => state.restore_dead_user(UserId(whole()?), at),
        _ => return Err(corrupt(table, id, format!("kind {kind:?}"))),
    }
    Ok(())
}
