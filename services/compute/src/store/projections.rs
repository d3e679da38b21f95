//! Rebuilding from the archive what was built from events.

use edd_events::event_store;
use edd_store::query;

use super::{
    Store, UserChange,
    users::{bury, upsert},
};

impl Store {
    /// Rebuilds the cache of users from the archived events of auth, all at once:
    /// whoever reads sees the old rows or the new ones. Users that the archive
    /// knows nothing of (it was off, or is younger than they are) stay as they
    /// are, and who is known to be gone stays gone: the archive may have been off
    /// when that was said, or have forgotten it. Nothing is announced, no container is touched. Returns how many
    /// events there were.
    ///
    /// # Errors
    /// Those of the database; nothing has changed then.
    pub async fn rebuild_users(&self) -> sqlx::Result<u64> {
        let mut tx = self.database.begin().await?;
        query(
            "DELETE FROM user_cache WHERE deleted_at IS NULL AND CAST(user_id AS TEXT) IN \
             (SELECT aggregate_id FROM event_store WHERE aggregate_type = 'auth.user')",
        )
        .run(&mut tx)
        .await?;
        let events = event_store::replay(&mut tx, "auth.user", async |tx, event| {
            match UserChange::of(&event) {
                Some((
                    id,
                    UserChange::Upserted {
                        username,
                        display_name,
                    },
                )) => drop(upsert(tx, id, event.version, &username, &display_name).await?),
                Some((id, UserChange::Deleted { username })) => {
                    bury(tx, id, event.version, &username).await?;
                }
                None => {}
            }
            Ok(())
        })
        .await?;
        tx.commit().await?;
        Ok(events)
    }
}
