//! What the gateway tells others: rules that came into force or ended, and each
//! new table.

use edd_events::envelope::{Cause, seal, seal_fact};
use edd_events::outbox::OutboxEntry;
use edd_events::subject::EntityId;
use edd_proto::gateway;

use crate::control::reconcile::Announcement;
use crate::control::store::rule_id;

/// Who says so, in the events of this service.
pub(in crate::control) const SOURCE: &str = "edd-gateway";

/// `gateway.ingress.{id}.created` or `.deleted`.
pub(super) fn rule(told: &Announcement, cause: &Cause) -> Option<OutboxEntry> {
    let container_id = told.container.as_str().to_owned();
    // The grammar of container ids lies inside that of entity ids.
    let entity = EntityId::try_from(told.container.as_str()).ok()?;
    let rule_id = rule_id(&container_id, told.port);
    let port = i32::from(told.port);
    Some(match told.target {
        Some(target) => {
            let message = gateway::IngressRuleCreated {
                metadata: None,
                rule_id,
                container_id,
                port,
                target_port: i32::from(target),
            };
            seal_fact(SOURCE, &entity, told.version, message, cause)
        }
        None => {
            let message = gateway::IngressRuleDeleted {
                metadata: None,
                rule_id,
                container_id,
                port,
            };
            seal_fact(SOURCE, &entity, told.version, message, cause)
        }
    })
}

/// `gateway.router.refreshed`.
pub(super) fn refreshed(
    revision: u64,
    containers: i64,
    routes: usize,
    cause: &Cause,
) -> OutboxEntry {
    let message = gateway::RouterRefreshed {
        metadata: None,
        container_count: i32::try_from(containers).unwrap_or(i32::MAX),
        route_count: i32::try_from(routes).unwrap_or(i32::MAX),
    };
    let version = i64::try_from(revision).unwrap_or(i64::MAX);
    seal(SOURCE, &EntityId::router(), version, message, cause)
}
