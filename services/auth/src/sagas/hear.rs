//! The consumer of `compute.user.>`: what compute knows of users, and no longer
//! has of them.

use edd_events::{
    consumer::{ConsumerSpec, Handler, Unavailable, Verdict},
    event::{Delivery, Payload},
    stream,
};

use crate::store::Store;

/// What is consumed.
pub(crate) const SPEC: ConsumerSpec = ConsumerSpec {
    stream: stream::COMPUTE,
    durable: "auth-service",
    filter: "compute.user.>",
    batch_max: 64,
};

/// Hands confirmations to the sagas that wait for them.
pub(crate) struct Confirmations {
    pub(crate) store: Store,
}

impl Handler for Confirmations {
    async fn handle(&mut self, batch: &[Delivery]) -> Result<Vec<Verdict>, Unavailable> {
        let mut verdicts = Vec::with_capacity(batch.len());
        for delivery in batch {
            let event = &delivery.event;
            let heard = match &event.payload {
                Payload::UserCached(user) => {
                    self.store.user_known(&event.event_id, user.user_id).await
                }
                Payload::UserPurged(user) => {
                    self.store.user_purged(&event.event_id, user.user_id).await
                }
                // The filter lets nothing else through.
                _ => Ok(false),
            };
            verdicts.push(match heard {
                Ok(true) => Verdict::Applied,
                Ok(false) => Verdict::Stale,
                Err(error) => self.store.database().failed_on(&error).await?,
            });
        }
        Ok(verdicts)
    }
}
