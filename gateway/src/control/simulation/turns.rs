//! Turns of the writers: one at a time has the database's lock.
//!
//! As PostgreSQL has it: who waits gives up after a while, and who does nothing in its turn
//! loses it. A turn that is dropped is over at once, unless its gateway is cut off.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::world::World;
use crate::control::store::StoreError;

/// Longest wait for a turn.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A turn in which nothing is done is over after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// Whose turn it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    number: u64,
    /// Since when nothing is done; none: something is.
    idle_since: Option<Instant>,
}

impl Held {
    fn is_lost(&self) -> bool {
        self.idle_since
            .is_some_and(|since| since + IDLE_TIMEOUT <= Instant::now())
    }
}

/// A transaction in which nobody else writes.
pub(super) struct Turn {
    world: Arc<World>,
    seat: usize,
    number: u64,
}

impl Turn {
    /// Waits for it.
    pub(super) async fn take(world: &Arc<World>, seat: usize) -> Result<Self, StoreError> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            let over = world.turn_over.notified();
            let look_again = {
                let inner = &mut *world.lock();
                let held = inner.turn;
                match held {
                    Some(held) if !held.is_lost() => match held.idle_since {
                        Some(since) => deadline.min(since + IDLE_TIMEOUT),
                        None => deadline,
                    },
                    lost => {
                        if lost.is_some() {
                            inner.counts.turns_lost += 1;
                            world.note(inner, || format!("{seat}: takes the turn of another"));
                        }
                        inner.turns += 1;
                        let number = inner.turns;
                        inner.turn = Some(Held {
                            number,
                            idle_since: None,
                        });
                        return Ok(Self {
                            world: Arc::clone(world),
                            seat,
                            number,
                        });
                    }
                }
            };
            if Instant::now() >= deadline {
                world.lock().counts.turns_missed += 1;
                return Err(StoreError::TimedOut);
            }
            // Either way it is looked at again.
            let _ = timeout_at(look_again, over).await;
        }
    }

    /// Its client has the answer, and says nothing.
    pub(super) fn idle(&self) {
        self.with(|held| held.idle_since = Some(Instant::now()));
    }

    /// Its client says what to do; an error when the turn is somebody else's by now.
    pub(super) fn go_on(&self) -> Result<(), StoreError> {
        let mut is_ours = false;
        self.with(|held| {
            is_ours = !held.is_lost();
            held.idle_since = None;
        });
        match is_ours {
            true => Ok(()),
            false => Err(StoreError::TimedOut),
        }
    }

    fn with(&self, then: impl FnOnce(&mut Held)) {
        if let Some(held) = &mut self.world.lock().turn
            && held.number == self.number
        {
            then(held);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let inner = &mut *self.world.lock();
        let is_ours = inner.turn.is_some_and(|held| held.number == self.number);
        if !is_ours {
            return;
        }
        if inner.seats[self.seat].has_database() {
            inner.turn = None;
            self.world.turn_over.notify_waiters();
        } else if let Some(held) = &mut inner.turn {
            // The server does not hear of the end.
            held.idle_since.get_or_insert_with(Instant::now);
        }
    }
}
