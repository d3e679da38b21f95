//! The consumer of `gateway.ingress.>`: which requested rules are in force.

use edd_events::{
    consumer::{ConsumerSpec, Handler, Unavailable, Verdict},
    event::{Delivery, Event, Payload},
    stream,
};

use crate::{
    input::ContainerId,
    store::{RuleNews, Store},
};

/// What is consumed.
pub(crate) const SPEC: ConsumerSpec = ConsumerSpec {
    stream: stream::GATEWAY,
    durable: "compute-service",
    filter: "gateway.ingress.>",
    batch_max: 64,
};

/// Applies the gateway's confirmations.
pub(crate) struct Confirmations {
    pub(crate) store: Store,
}

impl Handler for Confirmations {
    async fn handle(&mut self, batch: &[Delivery]) -> Result<Vec<Verdict>, Unavailable> {
        let mut verdicts = Vec::with_capacity(batch.len());
        for delivery in batch {
            verdicts.push(self.one(&delivery.event).await?);
        }
        Ok(verdicts)
    }
}

impl Confirmations {
    async fn one(&self, event: &Event) -> Result<Verdict, Unavailable> {
        let (container_id, port, target_port) = match &event.payload {
            Payload::IngressRuleCreated(rule) => {
                (&rule.container_id, rule.port, Some(rule.target_port))
            }
            Payload::IngressRuleDeleted(rule) => (&rule.container_id, rule.port, None),
            // The filter lets nothing else through.
            _ => return Ok(Verdict::Stale),
        };
        let Ok(port) = u16::try_from(port) else {
            return Ok(Verdict::Reject(format!("port {port}")));
        };
        let target_port = match target_port.map(u16::try_from) {
            None => None,
            Some(Ok(target_port)) => Some(target_port),
            Some(Err(_)) => return Ok(Verdict::Reject("target port out of range".to_owned())),
        };
        // An id of another grammar is none that this service ever gave.
        let Some(id) = ContainerId::parse(container_id) else {
            return Ok(Verdict::Stale);
        };
        let news = RuleNews {
            port,
            target_port,
            version: event.version,
        };
        match self.store.apply_rule(&event.event_id, &id, &news).await {
            Ok(true) => Ok(Verdict::Applied),
            Ok(false) => Ok(Verdict::Stale),
            Err(error) => self.store.database().failed_on(&error).await,
        }
    }
}
