//! Shares the keys of TLS session tickets with other replicas and the next process.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::control::store::GatewayStore;
use crate::tls::TicketKeys;

/// The next slot's key is there hours before it is needed; this is how long a new database waits.
const EVERY: Duration = Duration::from_secs(60);

/// Offers keys to an open database and takes what it keeps, until `over`.
///
/// What goes wrong is tried again; the keys that are in force serve on.
pub(super) async fn share(store: &impl GatewayStore, keys: &TicketKeys, over: &CancellationToken) {
    loop {
        let slot = TicketKeys::slot_now();
        let offered = keys.offer(slot);
        let oldest = slot.saturating_sub(1);
        match store.share_ticket_keys(&offered, oldest).await {
            Ok(shared) => keys.adopt(shared, slot),
            Err(error) => debug!(%error, "ticket keys are not shared"),
        }
        let pause = tokio::time::timeout(EVERY, over.cancelled());
        if pause.await.is_ok() {
            return;
        }
    }
}
