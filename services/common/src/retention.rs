//! What a service forgets in time: handled event ids, archived events, letters.

use std::time::Duration;

use edd_events::{event_store, inbox};
use tokio::time::{MissedTickBehavior, interval};

use crate::store::Database;

/// How often.
const INTERVAL: Duration = Duration::from_secs(3600);

/// Forgets, at once and every hour, what is older than it has to be. Archived
/// events stay `event_store_days`; 0: those that there are stay.
pub async fn run(database: Database, event_store_days: u32) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let keep = Duration::from_secs(u64::from(event_store_days) * 24 * 3600);
    loop {
        ticks.tick().await;
        if let Err(error) = inbox::purge(database.sql()).await {
            tracing::warn!(%error, "cannot forget handled events");
        }
        if keep.is_zero() {
            continue;
        }
        match event_store::prune(database.sql(), keep).await {
            Ok(0) => {}
            Ok(events) => tracing::info!(events, "archived events forgotten"),
            Err(error) => tracing::warn!(%error, "cannot forget archived events"),
        }
    }
}
