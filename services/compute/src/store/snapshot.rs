//! The whole state at one instant, in the words of events.

use std::collections::BTreeMap;

use edd_events::{envelope::Cause, outbox::OutboxEntry};
use edd_store::query;

use super::{Container, IngressRule, SshKey, Start, Store};
use crate::events::outgoing;

#[derive(sqlx::FromRow)]
struct Rule {
    container_id: String,
    #[sqlx(flatten)]
    rule: IngressRule,
}

#[derive(sqlx::FromRow)]
struct User {
    user_id: i64,
    username: String,
    display_name: String,
    version: i64,
    deleted_at: Option<i64>,
}

impl Store {
    /// What would have to be said to somebody who has heard nothing yet. Each
    /// fact of a container has the container's version: those who know it at
    /// another one know an older one.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn facts(&self) -> sqlx::Result<Vec<OutboxEntry>> {
        let mut tx = self.database().sql().begin_read().await?;
        let containers: Vec<Container> = query("SELECT * FROM containers ORDER BY id")
            .all(&mut tx)
            .await?;
        let rules: Vec<Rule> = query(
            "SELECT container_id, port, target_port, confirmed, version FROM ingress_requests",
        )
        .all(&mut tx)
        .await?;
        let keys: Vec<SshKey> = query("SELECT * FROM ssh_keys").all(&mut tx).await?;
        let users: Vec<User> =
            query("SELECT user_id, username, display_name, version, deleted_at FROM user_cache")
                .all(&mut tx)
                .await?;
        drop(tx);

        let cause = Cause::default();
        let mut facts = Vec::new();
        for user in &users {
            facts.push(if user.deleted_at.is_some() {
                outgoing::user_is_gone(user.user_id, user.version)
            } else {
                let (name, shown) = (&user.username, &user.display_name);
                outgoing::user_is_called(user.user_id, user.version, name, shown)
            });
        }
        let mut rules_of: BTreeMap<&str, Vec<&IngressRule>> = BTreeMap::new();
        for found in &rules {
            rules_of
                .entry(&found.container_id)
                .or_default()
                .push(&found.rule);
        }
        for container in &containers {
            facts.push(outgoing::container_created(container, &cause)?);
            facts.push(match started(container) {
                Some(start) => outgoing::container_started(container, &start, &cause)?,
                None => outgoing::container_stopped(&container.id, container.version, &cause)?,
            });
            facts.push(outgoing::ssh_toggled(container, &cause)?);
            facts.push(outgoing::https_toggled(container, &cause)?);
            for rule in rules_of.remove(container.id.as_str()).unwrap_or_default() {
                facts.push(outgoing::ingress_requested(&container.id, rule, &cause)?);
            }
        }
        facts.extend(keys.iter().map(|key| outgoing::key_created(key, &cause)));
        Ok(facts)
    }
}

/// What others were last told of it.
fn started(container: &Container) -> Option<Start> {
    if !container.announced {
        return None;
    }
    Some(Start {
        external_ip: container.external_ip.as_deref()?.parse().ok()?,
        ssh_host_key: container.ssh_host_key.clone(),
    })
}
