//! An entity as the cells of its row: one form for the tables and for the journal.
//!
//! A journal row holds the cells as a JSON array, in the order of the fields here.

use edd_route::{ContainerId, Origin, UserId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{StoreError, int};
use crate::control::reconcile::entity::Running;
use crate::control::reconcile::{
    ContainerEntity, Created, Flag, KeyEntity, RuleEntity, Run, Stamp, UserEntity,
};

/// A container without its rules.
#[derive(Deserialize, sqlx::FromRow)]
pub(super) struct ContainerRow {
    pub(super) id: String,
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

/// An ingress rule.
#[derive(Deserialize, sqlx::FromRow)]
pub(super) struct RuleRow {
    pub(super) container_id: String,
    pub(super) port: i64,
    target_port: Option<i64>,
    version: i64,
    sequence: i64,
    origin: String,
}

/// An SSH key.
#[derive(Deserialize, sqlx::FromRow)]
pub(super) struct KeyRow {
    pub(super) id: i64,
    user_id: i64,
    fingerprint: String,
    version: i64,
    sequence: i64,
    origin: String,
}

/// A user.
#[derive(Deserialize, sqlx::FromRow)]
pub(super) struct UserRow {
    pub(super) id: i64,
    username: String,
    display_name: String,
    version: i64,
    sequence: i64,
}

/// The cells of a [`ContainerRow`].
pub(super) fn container(id: &ContainerId, entity: &ContainerEntity) -> Value {
    let created = entity.created.as_ref();
    let running = entity.run.running.as_ref();
    json!([
        id.as_str(),
        created.map(|created| created.owner.0),
        created.map(|created| created.name.as_str()),
        created.map(|created| int(created.sequence)),
        created.map(|created| text(&created.origin)),
        entity.run.stamp.version,
        int(entity.run.stamp.sequence),
        running.map(|running| running.address.to_string()),
        running.and_then(|running| running.ssh_host_key.as_deref()),
        running.map(|running| text(&running.origin)),
        entity.ssh.stamp.version,
        int(entity.ssh.stamp.sequence),
        entity.ssh.on,
        entity.https.stamp.version,
        int(entity.https.stamp.sequence),
        entity.https.on,
    ])
}

/// The cells of a [`RuleRow`].
pub(super) fn rule(id: &ContainerId, port: u16, rule: &RuleEntity) -> Value {
    json!([
        id.as_str(),
        port,
        rule.target,
        rule.stamp.version,
        int(rule.stamp.sequence),
        text(&rule.origin),
    ])
}

/// The cells of a [`KeyRow`].
pub(super) fn key(id: i64, key: &KeyEntity) -> Value {
    json!([
        id,
        key.user.0,
        key.fingerprint,
        key.stamp.version,
        int(key.stamp.sequence),
        text(&key.origin),
    ])
}

/// The cells of a [`UserRow`].
pub(super) fn user(id: UserId, user: &UserEntity) -> Value {
    json!([
        id.0,
        user.username,
        user.display_name,
        user.stamp.version,
        int(user.stamp.sequence),
    ])
}

impl ContainerRow {
    /// The entity, without rules.
    pub(super) fn entity(self) -> Result<ContainerEntity, StoreError> {
        let table = "containers";
        let created = match (self.owner_id, self.name, &self.created_origin) {
            (Some(owner), Some(name), Some(text)) => Some(Created {
                owner: UserId(owner),
                name,
                sequence: number(self.created_sequence.unwrap_or_default()),
                origin: origin(table, &self.id, text)?,
            }),
            (None, None, None) => None,
            _ => return Err(corrupt(table, &self.id, "half created".into())),
        };
        let running = match (self.address, &self.run_origin) {
            (Some(address), Some(text)) => Some(Running {
                address: address
                    .parse()
                    .map_err(|_| corrupt(table, &self.id, format!("address {address:?}")))?,
                ssh_host_key: self.ssh_host_key,
                origin: origin(table, &self.id, text)?,
            }),
            (None, None) => None,
            _ => return Err(corrupt(table, &self.id, "half running".into())),
        };
        Ok(ContainerEntity {
            created,
            run: Run {
                stamp: stamp(self.run_version, self.run_sequence),
                running,
            },
            ssh: Flag {
                stamp: stamp(self.ssh_version, self.ssh_sequence),
                on: self.ssh_enabled,
            },
            https: Flag {
                stamp: stamp(self.https_version, self.https_sequence),
                on: self.https_enabled,
            },
            rules: Default::default(),
        })
    }
}

impl RuleRow {
    /// The public port and the rule.
    pub(super) fn entity(self) -> Result<(u16, RuleEntity), StoreError> {
        let table = "ingress_rules";
        let key = format!("{} {}", self.container_id, self.port);
        let port = |port: i64| {
            u16::try_from(port).map_err(|_| corrupt(table, &key, format!("port {port}")))
        };
        let rule = RuleEntity {
            stamp: stamp(self.version, self.sequence),
            target: self.target_port.map(port).transpose()?,
            origin: origin(table, &key, &self.origin)?,
        };
        Ok((port(self.port)?, rule))
    }
}

impl KeyRow {
    /// The key.
    pub(super) fn entity(self) -> Result<KeyEntity, StoreError> {
        Ok(KeyEntity {
            stamp: stamp(self.version, self.sequence),
            user: UserId(self.user_id),
            fingerprint: self.fingerprint,
            origin: origin("ssh_keys", &self.id.to_string(), &self.origin)?,
        })
    }
}

impl UserRow {
    /// The user.
    pub(super) fn entity(self) -> UserEntity {
        UserEntity {
            stamp: stamp(self.version, self.sequence),
            username: self.username,
            display_name: self.display_name,
        }
    }
}

pub(super) fn container_id(table: &'static str, id: &str) -> Result<ContainerId, StoreError> {
    ContainerId::new(id).map_err(|error| corrupt(table, id, error.to_string()))
}

pub(super) fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

pub(super) fn corrupt(table: &'static str, row: &str, reason: String) -> StoreError {
    StoreError::Corrupt {
        table,
        row: row.to_owned(),
        reason,
    }
}

fn origin(table: &'static str, row: &str, text: &str) -> Result<Origin, StoreError> {
    serde_json::from_str(text).map_err(|error| corrupt(table, row, format!("origin: {error}")))
}

fn text(origin: &Origin) -> String {
    serde_json::to_string(origin).unwrap_or_default()
}

fn stamp(version: i64, sequence: i64) -> Stamp {
    Stamp {
        version,
        sequence: number(sequence),
    }
}
