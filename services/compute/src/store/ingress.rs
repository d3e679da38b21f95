//! Ingress rules as users asked for them, and whether the gateway confirmed.
//!
//! What is in force is the gateway's to know; here a rule is pending until
//! `gateway.ingress.*.created` tells of it with the same target.

use edd_events::{envelope::Cause, inbox};
use edd_store::{Transaction, query};

use super::{
    Store,
    containers::{bump, owned},
};
use crate::{
    events::outgoing,
    input::{ContainerId, Port, PortPair},
};

/// A rule that was asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, sqlx::FromRow)]
pub struct IngressRule {
    /// The public port.
    #[sqlx(try_from = "i32")]
    pub port: u16,
    /// The container's port.
    #[sqlx(try_from = "i32")]
    pub target_port: u16,
    /// Whether the gateway confirmed exactly this.
    pub confirmed: bool,
    /// The container's version when it was asked for.
    pub version: i64,
}

impl IngressRule {
    pub(super) fn wanted(pair: PortPair, version: i64) -> Self {
        Self {
            port: pair.port.get(),
            target_port: pair.target_port,
            confirmed: false,
            version,
        }
    }
}

/// What the gateway tells about a rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RuleNews {
    /// The public port.
    pub port: u16,
    /// The target that is in force; `None`: nothing is any more.
    pub target_port: Option<u16>,
    /// The rule's version.
    pub version: i64,
}

/// How a request for a rule ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RuleChange {
    /// A new rule.
    Created(IngressRule),
    /// The port had another target.
    Replaced(IngressRule),
    /// It was asked for before.
    Unchanged(IngressRule),
}

impl Store {
    /// The rules of a container, by port.
    pub async fn rules_of(&self, container_id: &str) -> sqlx::Result<Vec<IngressRule>> {
        query(
            "SELECT port, target_port, confirmed, version FROM ingress_requests \
             WHERE container_id = $1 ORDER BY port",
        )
        .bind(container_id)
        .all(self.database.sql())
        .await
    }

    /// Asks for a rule. `None` for no such container.
    pub async fn request_rule(
        &self,
        user_id: i64,
        container_id: &str,
        pair: PortPair,
        cause: &Cause,
    ) -> sqlx::Result<Option<RuleChange>> {
        let mut tx = self.database.begin().await?;
        if owned(&mut tx, user_id, container_id).await?.is_none() {
            return Ok(None);
        }
        let before: Option<IngressRule> = query(
            "SELECT port, target_port, confirmed, version FROM ingress_requests \
             WHERE container_id = $1 AND port = $2",
        )
        .bind(container_id)
        .bind(pair.port.get())
        .optional(&mut tx)
        .await?;
        if let Some(rule) = before.filter(|rule| rule.target_port == pair.target_port) {
            return Ok(Some(RuleChange::Unchanged(rule)));
        }
        let rule = IngressRule::wanted(pair, bump(&mut tx, container_id).await?);
        self.insert_rule(&mut tx, container_id, &rule, cause)
            .await?;
        tx.commit().await?;
        Ok(Some(match before {
            None => RuleChange::Created(rule),
            Some(_) => RuleChange::Replaced(rule),
        }))
    }

    /// Takes a request back; false if there is no such container or rule.
    pub async fn withdraw_rule(
        &self,
        user_id: i64,
        container_id: &str,
        port: Port,
        cause: &Cause,
    ) -> sqlx::Result<bool> {
        let mut tx = self.database.begin().await?;
        if owned(&mut tx, user_id, container_id).await?.is_none() {
            return Ok(false);
        }
        let removed = query("DELETE FROM ingress_requests WHERE container_id = $1 AND port = $2")
            .bind(container_id)
            .bind(port.get())
            .run(&mut tx)
            .await?;
        if removed == 0 {
            return Ok(false);
        }
        let version = bump(&mut tx, container_id).await?;
        let entry = outgoing::ingress_delete_requested(container_id, port.get(), version, cause)?;
        self.database.announce(&mut tx, &entry).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Writes a rule over what its port had, with its `requested`.
    pub(super) async fn insert_rule(
        &self,
        tx: &mut Transaction,
        container_id: &str,
        rule: &IngressRule,
        cause: &Cause,
    ) -> sqlx::Result<()> {
        query(
            "INSERT INTO ingress_requests (container_id, port, target_port, confirmed, version) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (container_id, port) DO UPDATE SET \
             target_port = excluded.target_port, confirmed = excluded.confirmed, \
             version = excluded.version",
        )
        .bind(container_id)
        .bind(rule.port)
        .bind(rule.target_port)
        .bind(rule.confirmed)
        .bind(rule.version)
        .run(&mut *tx)
        .await?;
        let entry = outgoing::ingress_requested(container_id, rule, cause)?;
        self.database.announce(tx, &entry).await
    }

    /// Applies one event of the gateway, once, in one transaction; false if it
    /// is known or not about what is asked for now. Version 0 says nothing about
    /// order.
    pub async fn apply_rule(
        &self,
        event_id: &str,
        container_id: &ContainerId,
        news: &RuleNews,
    ) -> sqlx::Result<bool> {
        let mut tx = self.database.begin().await?;
        if !inbox::first_time(&mut tx, event_id).await? {
            return Ok(false);
        }
        let changed = match news.target_port {
            Some(target_port) => {
                query(
                    "UPDATE ingress_requests SET confirmed = TRUE \
                     WHERE container_id = $1 AND port = $2 AND ($3 = 0 OR $3 >= version) \
                     AND target_port = $4",
                )
                .bind(container_id.as_str())
                .bind(news.port)
                .bind(news.version)
                .bind(target_port)
                .run(&mut tx)
                .await?
            }
            None => {
                query(
                    "UPDATE ingress_requests SET confirmed = FALSE \
                     WHERE container_id = $1 AND port = $2 AND ($3 = 0 OR $3 >= version)",
                )
                .bind(container_id.as_str())
                .bind(news.port)
                .bind(news.version)
                .run(&mut tx)
                .await?
            }
        };
        tx.commit().await?;
        Ok(changed > 0)
    }
}
