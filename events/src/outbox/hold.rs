//! Old rows that wait a moment, because another relay may know that the stream has them.

use std::time::Duration;

use tokio::time::Instant;

use super::FRESH_MAX;

/// So long after the database is there, whoever has published a row before it failed, and lives,
/// has deleted it: databases are opened anew after 5 s at the latest, and passes tried again.
const HOLD: Duration = Duration::from_secs(15);

/// Since when this relay reads the outbox.
///
/// Relays of several processes may share it, and what one of them has published it alone
/// remembers ([`Published`](super::Published)). After a database was away for longer than the
/// stream remembers message ids, another one that reads first would publish it once more.
#[derive(Debug, Default)]
pub(super) struct Hold {
    reads_since: Option<Instant>,
}

impl Hold {
    pub(super) fn database_answered(&mut self) {
        self.reads_since.get_or_insert_with(Instant::now);
    }

    pub(super) fn database_failed(&mut self) {
        self.reads_since = None;
    }

    /// Whether a row waits that was written then, in milliseconds since 1970. Of newer ones the
    /// stream knows the ids in any case.
    pub(super) fn keeps(&self, created_at: i64, now_ms: i64) -> bool {
        let fresh_max = i64::try_from(FRESH_MAX.as_millis()).unwrap_or(i64::MAX);
        let reads = self.reads_since.map(|since| since.elapsed());
        reads.is_none_or(|reads| reads < HOLD) && now_ms.saturating_sub(created_at) > fresh_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn old_rows_wait_for_a_while_each_time_the_database_comes_back() {
        let (old, new, now) = (1_000, 170_000, 180_000);
        let mut hold = Hold::default();
        assert!(hold.keeps(old, now));
        hold.database_answered();
        tokio::time::advance(HOLD - Duration::from_secs(1)).await;
        hold.database_answered();
        assert!(hold.keeps(old, now) && !hold.keeps(new, now));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!hold.keeps(old, now), "nobody lives who knows it");
        hold.database_failed();
        hold.database_answered();
        assert!(hold.keeps(old, now) && !hold.keeps(new, now));
    }
}
