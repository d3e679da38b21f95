//! What a service forgets in time: handled event ids, archived events, letters.

use std::time::Duration;

use edd_events::{event_store, inbox};
use tokio::time::{MissedTickBehavior, interval};

use crate::store::Database;

/// How often.
const INTERVAL: Duration = Duration::from_secs(3600);

/// How long stays what is in an archive that was switched off: as long as by default. Whoever
/// switches it off wants no more of it, and can want back what there was; for ever is for nobody.
const LEFT_DAYS: u32 = 90;

/// Forgets, at once and every hour, what is older than it has to be. Archived
/// events and letters stay `event_store_days`; 0: nothing comes, the rest stays [`LEFT_DAYS`].
pub async fn run(database: Database, event_store_days: u32) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let days = match event_store_days {
        0 => LEFT_DAYS,
        days => days,
    };
    let keep = Duration::from_secs(u64::from(days) * 24 * 3600);
    loop {
        ticks.tick().await;
        if let Err(error) = inbox::purge(database.sql()).await {
            tracing::warn!(%error, "cannot forget handled events");
        }
        match event_store::prune(database.sql(), keep).await {
            Ok(0) => {}
            Ok(events) => tracing::info!(events, "archived events forgotten"),
            Err(error) => tracing::warn!(%error, "cannot forget archived events"),
        }
    }
}
