//! Binding to the durable consumer, within bounds.

use std::time::Duration;

use tokio::time::{error::Elapsed, timeout};
use tracing::warn;

use super::{Consumer, Durable};
use crate::{
    bus::{AnySubscription, BindError, Binding, Bus as _},
    stream::ADVISORIES,
};

/// All of it together.
const BIND_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a client may take to be connected before that is worth a line.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
const CONNECT_POLL: Duration = Duration::from_millis(20);

impl Consumer {
    /// Stream, consumer and subscription are there afterwards, whatever was
    /// missing before.
    ///
    /// Cancel safe: what was created stays and is found the next time.
    pub(super) async fn bind(&self) -> Result<Binding<AnySubscription>, BindError> {
        let durable = Durable {
            ack_wait: self.ack_wait,
            ..Durable::from(&self.spec)
        };
        self.bind_to(&durable, async {
            // Before anything can be delivered, else the server's word about it
            // is kept by nobody.
            if let Err(error) = self.bus.ensure(&ADVISORIES, self.replicas).await {
                warn!(%error, "events whose handlers die with them will leave no dead letter");
            }
        })
        .await
    }

    /// Binds to `durable` after `before`.
    pub(super) async fn bind_to(
        &self,
        durable: &Durable,
        before: impl Future<Output = ()>,
    ) -> Result<Binding<AnySubscription>, BindError> {
        self.connected()
            .await
            .map_err(|_| BindError::Disconnected)?;
        let connects = self.bus.connects();
        let binding = async {
            before.await;
            self.bus.bind(durable, self.replicas).await
        };
        tokio::select! {
            bound = timeout(BIND_TIMEOUT, binding) => bound.unwrap_or(Err(BindError::TimedOut)),
            () = self.bus.lost(connects) => Err(BindError::Disconnected),
        }
    }

    /// Waits until the client is connected, for a while.
    async fn connected(&self) -> Result<(), Elapsed> {
        let connected = async {
            while !self.bus.is_connected() {
                tokio::time::sleep(CONNECT_POLL).await;
            }
        };
        timeout(CONNECT_WAIT, connected).await
    }
}
