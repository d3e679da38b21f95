//! What the control path says about itself, for `/readyz`.

use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::watch;

/// The database as seen from here.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DatabaseStatus {
    /// It was there once and is empty now; being rebuilt by replay.
    Lost,
    /// In use.
    Ok,
    /// It cannot be opened, read or written; no events are consumed.
    Unavailable,
}

/// NATS as seen from here.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NatsStatus {
    /// The connection stands.
    Connected,
    /// It does not, or not yet.
    Disconnected,
    /// No `--nats-url`.
    Off,
}

/// One look at the control path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// Until the first full catch-up, or two seconds without NATS, its streams or
    /// the database.
    pub starting: bool,
    /// NATS.
    pub nats: NatsStatus,
    /// The database.
    pub database: DatabaseStatus,
    /// Whether the streams are there and are consumed.
    pub consuming: bool,
    /// Whether a consumer's circuit breaker is open: events wait for the world.
    pub paused: bool,
    /// Whether everything that was in the streams when NATS was last connected
    /// is in effect.
    pub caught_up: bool,
    /// The last opening of the database, by its number, that found it older than
    /// it was: what it lacks was acknowledged. 0: none did.
    pub set_back: u64,
    /// What COMPUTE lost before it was read ended before this sequence: a snapshot
    /// is wanted that reaches so far. None: nothing is missing.
    pub snapshot_wanted: Option<u64>,
    /// Since when the table may be behind the events.
    pub stale_since: Option<SystemTime>,
}

impl Status {
    /// What is known at the very start.
    pub fn at_start(events: bool) -> Self {
        Self {
            starting: true,
            nats: if events {
                NatsStatus::Disconnected
            } else {
                NatsStatus::Off
            },
            database: DatabaseStatus::Unavailable,
            consuming: !events,
            paused: false,
            caught_up: !events,
            set_back: 0,
            snapshot_wanted: None,
            stale_since: Some(SystemTime::now()),
        }
    }

    /// Nothing is known any more: the control path begins, perhaps not for the first time, with a
    /// table that was written at `last_good_at`.
    pub(super) fn begin(&mut self, last_good_at: Option<SystemTime>) {
        let first = Self::at_start(self.nats != NatsStatus::Off);
        let stale_since = self.stale_since.map(|since| {
            // A clock that was set back is no reason to be from the future.
            last_good_at.map_or(since, |at| at.min(since))
        });
        *self = Self {
            starting: self.starting,
            stale_since,
            ..first
        };
    }

    /// Whether changes come in and are kept, and none is missing for good.
    pub fn is_whole(&self) -> bool {
        self.is_through() && !self.paused && self.snapshot_wanted.is_none()
    }

    /// Whether all is in effect that can be without a snapshot.
    fn is_through(&self) -> bool {
        self.nats != NatsStatus::Disconnected
            && self.database == DatabaseStatus::Ok
            && self.caught_up
    }
}

/// The one place where the status changes; clones share it.
#[derive(Clone, Debug)]
pub struct StatusBoard(watch::Sender<Status>);

impl StatusBoard {
    /// A board for a gateway with or without events.
    pub fn new(events: bool) -> Self {
        Self(watch::Sender::new(Status::at_start(events)))
    }

    /// Changes the status; what follows from it is kept up to date here.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        self.0.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            // Whoever can answer may need this gateway to start.
            status.starting &= !status.is_through();
            if status.is_whole() {
                status.stale_since = None;
            } else if status.stale_since.is_none() {
                status.stale_since = Some(SystemTime::now());
            }
            *status != before
        });
    }

    /// Follows the status.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.0.subscribe()
    }

    /// The status now.
    pub fn now(&self) -> Status {
        self.0.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starting_ends_with_the_first_catch_up_and_does_not_come_back() {
        let board = StatusBoard::new(true);
        assert!(board.now().starting);
        board.update(|status| status.nats = NatsStatus::Connected);
        board.update(|status| status.database = DatabaseStatus::Ok);
        assert!(board.now().starting, "not caught up");
        board.update(|status| status.caught_up = true);
        assert!(!board.now().starting && board.now().stale_since.is_none());
        board.update(|status| status.nats = NatsStatus::Disconnected);
        let status = board.now();
        assert!(!status.starting && !status.is_whole() && status.stale_since.is_some());
    }

    /// It serves what it has: with compute away nothing else would ever end the start.
    #[test]
    fn a_wanted_snapshot_is_no_reason_to_be_starting_and_none_to_be_whole() {
        let board = StatusBoard::new(true);
        board.update(|status| {
            status.nats = NatsStatus::Connected;
            status.database = DatabaseStatus::Ok;
            status.caught_up = true;
            status.snapshot_wanted = Some(7);
        });
        let status = board.now();
        assert!(!status.starting && !status.is_whole() && status.stale_since.is_some());
        board.update(|status| status.snapshot_wanted = None);
        assert!(board.now().is_whole() && board.now().stale_since.is_none());
    }

    /// Whatever they wait for: the table may be older than they are.
    #[test]
    fn while_events_wait_it_is_not_whole() {
        let board = StatusBoard::new(true);
        board.update(|status| {
            status.nats = NatsStatus::Connected;
            status.database = DatabaseStatus::Ok;
            status.caught_up = true;
        });
        board.update(|status| status.paused = true);
        let status = board.now();
        assert!(!status.starting && !status.is_whole() && status.stale_since.is_some());
        board.update(|status| status.paused = false);
        assert!(board.now().is_whole() && board.now().stale_since.is_none());
    }

    #[test]
    fn without_events_the_database_is_enough() {
        let board = StatusBoard::new(false);
        assert!(board.now().starting);
        board.update(|status| status.database = DatabaseStatus::Ok);
        assert!(board.now().is_whole());
    }
}
