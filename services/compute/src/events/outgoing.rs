//! Outbox entries for what happens to containers, rules and keys.

use edd_events::{
    envelope::{Cause, seal},
    outbox::OutboxEntry,
    subject::EntityId,
};
use edd_proto::{auth, compute};

use crate::store::{Container, IngressRule, SshKey, Start};

/// The `source` of this service's events.
const SOURCE: &str = "edd-compute";

/// Versions of a key's first event and of its end.
const KEY_CREATED: i64 = 1;
const KEY_DELETED: i64 = 2;

pub(crate) fn container_created(container: &Container, cause: &Cause) -> sqlx::Result<OutboxEntry> {
    let message = compute::ContainerCreated {
        metadata: None,
        container_id: container.id.clone(),
        user_id: container.user_id,
        owner_username: container.owner_username.clone(),
        name: container.name.clone(),
        namespace: format!("compute-{}-{}", container.user_id, container.id),
        memory_mb: container.memory_mb,
        storage_gb: container.storage_gb,
        image: container.image.clone(),
    };
    Ok(seal(
        SOURCE,
        &entity(&container.id)?,
        container.version,
        message,
        cause,
    ))
}

pub(crate) fn container_started(
    container: &Container,
    start: &Start,
    cause: &Cause,
) -> sqlx::Result<OutboxEntry> {
    let message = compute::ContainerStarted {
        metadata: None,
        container_id: container.id.clone(),
        external_ip: start.external_ip.to_string(),
        ssh_host_key: start.ssh_host_key.clone().unwrap_or_default(),
    };
    Ok(seal(
        SOURCE,
        &entity(&container.id)?,
        container.version,
        message,
        cause,
    ))
}

pub(crate) fn container_stopped(
    id: &str,
    version: i64,
    cause: &Cause,
) -> sqlx::Result<OutboxEntry> {
    let message = compute::ContainerStopped {
        metadata: None,
        container_id: id.to_owned(),
    };
    Ok(seal(SOURCE, &entity(id)?, version, message, cause))
}

pub(crate) fn container_deleted(
    container: &Container,
    version: i64,
    cause: &Cause,
) -> sqlx::Result<OutboxEntry> {
    let message = compute::ContainerDeleted {
        metadata: None,
        container_id: container.id.clone(),
        user_id: container.user_id,
    };
    Ok(seal(
        SOURCE,
        &entity(&container.id)?,
        version,
        message,
        cause,
    ))
}

pub(crate) fn ssh_toggled(container: &Container, cause: &Cause) -> sqlx::Result<OutboxEntry> {
    let message = compute::ContainerSshToggled {
        metadata: None,
        container_id: container.id.clone(),
        ssh_enabled: container.ssh_enabled,
    };
    Ok(seal(
        SOURCE,
        &entity(&container.id)?,
        container.version,
        message,
        cause,
    ))
}

pub(crate) fn https_toggled(container: &Container, cause: &Cause) -> sqlx::Result<OutboxEntry> {
    let message = compute::ContainerHttpsToggled {
        metadata: None,
        container_id: container.id.clone(),
        https_enabled: container.https_enabled,
    };
    Ok(seal(
        SOURCE,
        &entity(&container.id)?,
        container.version,
        message,
        cause,
    ))
}

pub(crate) fn ingress_requested(
    container_id: &str,
    rule: &IngressRule,
    cause: &Cause,
) -> sqlx::Result<OutboxEntry> {
    let message = compute::IngressRuleRequested {
        metadata: None,
        container_id: container_id.to_owned(),
        port: i32::from(rule.port),
        target_port: i32::from(rule.target_port),
    };
    Ok(seal(
        SOURCE,
        &entity(container_id)?,
        rule.version,
        message,
        cause,
    ))
}

pub(crate) fn ingress_delete_requested(
    container_id: &str,
    port: u16,
    version: i64,
    cause: &Cause,
) -> sqlx::Result<OutboxEntry> {
    let message = compute::IngressRuleDeleteRequested {
        metadata: None,
        container_id: container_id.to_owned(),
        port: i32::from(port),
    };
    Ok(seal(
        SOURCE,
        &entity(container_id)?,
        version,
        message,
        cause,
    ))
}

pub(crate) fn key_created(key: &SshKey, cause: &Cause) -> OutboxEntry {
    let message = compute::SshKeyCreated {
        metadata: None,
        key_id: key.id,
        user_id: key.user_id,
        name: key.name.clone(),
        fingerprint: key.fingerprint.clone(),
        public_key: key.public_key.clone(),
    };
    seal(SOURCE, &EntityId::from(key.id), KEY_CREATED, message, cause)
}

pub(crate) fn key_deleted(id: i64, user_id: i64, cause: &Cause) -> OutboxEntry {
    let message = compute::SshKeyDeleted {
        metadata: None,
        key_id: id,
        user_id,
    };
    seal(SOURCE, &EntityId::from(id), KEY_DELETED, message, cause)
}

/// A user's name is known here; `version` is that of what was heard.
pub(crate) fn user_cached(user_id: i64, version: i64, cause: &Cause) -> OutboxEntry {
    let message = compute::UserCached {
        metadata: None,
        user_id,
    };
    seal(SOURCE, &EntityId::from(user_id), version, message, cause)
}

/// Nothing of a deleted user is left here, and all of it was announced.
pub(crate) fn user_purged(user_id: i64, version: i64, cause: &Cause) -> OutboxEntry {
    let message = compute::UserPurged {
        metadata: None,
        user_id,
    };
    seal(SOURCE, &EntityId::from(user_id), version, message, cause)
}

/// What auth told about a user, for a snapshot.
pub(crate) fn user_is_called(
    id: i64,
    version: i64,
    username: &str,
    display_name: &str,
) -> OutboxEntry {
    let message = auth::UserUpdated {
        metadata: None,
        user_id: id,
        username: username.to_owned(),
        display_name: display_name.to_owned(),
    };
    let cause = Cause::default();
    seal(SOURCE, &EntityId::from(id), version, message, &cause)
}

/// That auth told of a user's end, for a snapshot.
pub(crate) fn user_is_gone(id: i64, version: i64) -> OutboxEntry {
    let message = auth::UserDeleted {
        metadata: None,
        user_id: id,
        username: String::new(),
    };
    let cause = Cause::default();
    seal(SOURCE, &EntityId::from(id), version, message, &cause)
}

/// Container ids are made by this service; one that does not fit was damaged in
/// the database.
fn entity(id: &str) -> sqlx::Result<EntityId> {
    EntityId::try_from(id).map_err(|_| sqlx::Error::Decode("a damaged container id".into()))
}
