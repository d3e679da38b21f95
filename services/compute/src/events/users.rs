//! The consumer of `auth.user.>`: the cache of names, and the end of all that a
//! deleted user had.

use edd_events::{
    consumer::{ConsumerSpec, Handler, Unavailable, Verdict},
    event::{Delivery, Event},
    outbox::Waker,
    stream,
};

use crate::{
    lifecycle::Lifecycle,
    store::{Store, UserChange, UserNews},
};

/// What is consumed.
pub(crate) const SPEC: ConsumerSpec = ConsumerSpec {
    stream: stream::AUTH,
    durable: "compute-service",
    filter: "auth.user.>",
    batch_max: 64,
};

/// Applies news about users.
pub(crate) struct Users {
    pub(crate) store: Store,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) waker: Option<Waker>,
}

impl Handler for Users {
    async fn handle(&mut self, batch: &[Delivery]) -> Result<Vec<Verdict>, Unavailable> {
        let mut verdicts = Vec::with_capacity(batch.len());
        for delivery in batch {
            // Each in a transaction of its own: a failure in between leaves the
            // first ones done, and the inbox makes their repetition harmless.
            verdicts.push(self.one(&delivery.event).await?);
        }
        Ok(verdicts)
    }
}

impl Users {
    async fn one(&self, event: &Event) -> Result<Verdict, Unavailable> {
        let Some((user_id, change)) = UserChange::of(event) else {
            // The filter lets nothing else through.
            return Ok(Verdict::Stale);
        };
        let news = match self.store.apply_user(event, user_id, &change).await {
            Ok(news) => news,
            Err(error) => return self.store.database().failed_on(&error).await,
        };
        if let Some(waker) = &self.waker {
            waker.wake();
        }
        Ok(match news {
            UserNews::Stale => Verdict::Stale,
            UserNews::Applied(ended) => {
                if matches!(change, UserChange::Deleted { .. }) {
                    tracing::info!(user_id, containers = ended.len(), "all of a user removed");
                }
                for id in ended {
                    self.lifecycle.settle(id);
                }
                Verdict::Applied
            }
        })
    }
}
