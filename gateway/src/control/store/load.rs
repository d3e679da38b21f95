//! Reading the whole database back, or an error.

use std::collections::HashMap;

use edd_route::{ContainerId, Origin, UserId};
use edd_store::{Database, query};

use super::{StoreError, Stored};
use crate::control::reconcile::entity::Running;
use crate::control::reconcile::{
    ContainerEntity, Created, Flag, KeyEntity, RuleEntity, Run, Stamp, State, UserEntity,
};

#[derive(sqlx::FromRow)]
struct ContainerRow {
    id: String,
    owner_id: Option<i64>,
    name: Option<String>,
    created_sequence: Option<i64>,
    created_origin: Option<String>,
    run_version: i64,
    run_sequence: i64,
    address: Option<String>,
    ssh_host_key: Option<String>,
    run_origin: Option<String>,
    ssh_version: i64,
    ssh_sequence: i64,
    ssh_enabled: bool,
    https_version: i64,
    https_sequence: i64,
    https_enabled: bool,
}

#[derive(sqlx::FromRow)]
struct RuleRow {
    container_id: String,
    port: i64,
    target_port: Option<i64>,
    version: i64,
    sequence: i64,
    origin: String,
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    id: i64,
    user_id: i64,
    fingerprint: String,
    version: i64,
    sequence: i64,
    origin: String,
}

#[derive(sqlx::FromRow)]
struct UserRow {
    id: i64,
    username: String,
    display_name: String,
    version: i64,
    sequence: i64,
}

/// Reads everything in one transaction.
pub(super) async fn load(database: &Database) -> Result<Stored, StoreError> {
    let mut tx = database.begin_read().await?;
    let containers: Vec<ContainerRow> = query("SELECT * FROM containers").all(&mut tx).await?;
    let rules: Vec<RuleRow> = query("SELECT * FROM ingress_rules").all(&mut tx).await?;
    let keys: Vec<KeyRow> = query("SELECT * FROM ssh_keys").all(&mut tx).await?;
    let users: Vec<UserRow> = query("SELECT * FROM users").all(&mut tx).await?;
    let tombstones: Vec<(String, String, i64)> = query("SELECT kind, id, at FROM tombstones")
        .all(&mut tx)
        .await?;
    let meta: Vec<(String, i64)> = query("SELECT key, value FROM meta").all(&mut tx).await?;
    tx.commit().await?;

    let mut stored = Stored::default();
    restore_containers(&mut stored.state, containers, rules)?;
    for row in keys {
        let key = KeyEntity {
            stamp: stamp(row.version, row.sequence),
            user: UserId(row.user_id),
            fingerprint: row.fingerprint,
            origin: origin("ssh_keys", &row.id.to_string(), &row.origin)?,
        };
        stored.state.restore_key(row.id, key);
    }
    for row in users {
        let user = UserEntity {
            stamp: stamp(row.version, row.sequence),
            username: row.username,
            display_name: row.display_name,
        };
        stored.state.restore_user(UserId(row.id), user);
    }
    for (kind, id, at) in tombstones {
        restore_tombstone(&mut stored.state, &kind, &id, number(at))?;
    }
    for (key, value) in meta {
        match key.as_str() {
            "born" => stored.born = true,
            "revision" => stored.revision = number(value),
            "rebuilding" => stored.rebuilding = value != 0,
            key => {
                if let Some(stream) = key.strip_prefix("position:") {
                    stored.positions.insert(stream.to_owned(), number(value));
                }
            }
        }
    }
    Ok(stored)
}

fn restore_containers(
    state: &mut State,
    containers: Vec<ContainerRow>,
    rules: Vec<RuleRow>,
) -> Result<(), StoreError> {
    let mut entities: HashMap<ContainerId, ContainerEntity> = HashMap::new();
    for row in containers {
        let id = container_id("containers", &row.id)?;
        entities.insert(id, container(row)?);
    }
    for row in rules {
        let table = "ingress_rules";
        let key = format!("{} {}", row.container_id, row.port);
        let port = |port: i64| {
            u16::try_from(port).map_err(|_| corrupt(table, &key, format!("port {port}")))
        };
        let rule = RuleEntity {
            stamp: stamp(row.version, row.sequence),
            target: row.target_port.map(port).transpose()?,
            origin: origin(table, &key, &row.origin)?,
        };
        let number = port(row.port)?;
        let id = container_id(table, &row.container_id)?;
        entities.entry(id).or_default().rules.insert(number, rule);
    }
    for (id, entity) in entities {
        state.restore_container(id, entity);
    }
    Ok(())
}

fn container(row: ContainerRow) -> Result<ContainerEntity, StoreError> {
    let table = "containers";
    let created = match (row.owner_id, row.name, &row.created_origin) {
        (Some(owner), Some(name), Some(text)) => Some(Created {
            owner: UserId(owner),
            name,
            sequence: number(row.created_sequence.unwrap_or_default()),
            origin: origin(table, &row.id, text)?,
        }),
        (None, None, None) => None,
        _ => return Err(corrupt(table, &row.id, "half created".into())),
    };
    let running = match (row.address, &row.run_origin) {
        (Some(address), Some(text)) => Some(Running {
            address: address
                .parse()
                .map_err(|_| corrupt(table, &row.id, format!("address {address:?}")))?,
            ssh_host_key: row.ssh_host_key,
            origin: origin(table, &row.id, text)?,
        }),
        (None, None) => None,
        _ => return Err(corrupt(table, &row.id, "half running".into())),
    };
    Ok(ContainerEntity {
        created,
        run: Run {
            stamp: stamp(row.run_version, row.run_sequence),
            running,
        },
        ssh: Flag {
            stamp: stamp(row.ssh_version, row.ssh_sequence),
            on: row.ssh_enabled,
        },
        https: Flag {
            stamp: stamp(row.https_version, row.https_sequence),
            on: row.https_enabled,
        },
        rules: Default::default(),
    })
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

fn container_id(table: &'static str, id: &str) -> Result<ContainerId, StoreError> {
    ContainerId::new(id).map_err(|error| corrupt(table, id, error.to_string()))
}

fn origin(table: &'static str, row: &str, text: &str) -> Result<Origin, StoreError> {
    serde_json::from_str(text).map_err(|error| corrupt(table, row, format!("origin: {error}")))
}

fn stamp(version: i64, sequence: i64) -> Stamp {
    Stamp {
        version,
        sequence: number(sequence),
    }
}

fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn corrupt(table: &'static str, row: &str, reason: String) -> StoreError {
    StoreError::Corrupt {
        table,
        row: row.to_owned(),
        reason,
    }
}
