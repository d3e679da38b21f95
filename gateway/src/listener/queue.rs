//! Who waits for a connection to an upstream until another one goes.
//!
//! At the cap for all, whichever idle connection goes makes room. Whoever has come to his owner's
//! share (see `shares`) is helped by that owner's connections only: the others' are none of his
//! business, and a place that gets free is not for him.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edd_route::UserId;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Everybody who waits.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// For any place.
    any: Arc<Line>,
    /// For one of an owner's own. Only those in which somebody stands.
    owners: Mutex<HashMap<UserId, Arc<Line>>>,
    /// How many stand in those.
    of_owners: AtomicUsize,
    /// Tells those who keep idle connections that somebody waits.
    pressed: Notify,
    /// How many times that was told.
    presses: AtomicUsize,
}

/// Those who wait for the same.
#[derive(Debug, Default)]
struct Line {
    waiting: AtomicUsize,
    released: Notify,
}

/// Somebody who waits.
pub(super) struct Waiting<'q> {
    queue: &'q Queue,
    line: Arc<Line>,
    owner: Option<UserId>,
}

impl Queue {
    /// Waits from now on: for any place, or for one of `owner`.
    pub(super) fn enter(&self, owner: Option<UserId>) -> Waiting<'_> {
        let line = match owner {
            None => {
                self.any.waiting.fetch_add(1, Ordering::Relaxed);
                Arc::clone(&self.any)
            }
            Some(owner) => {
                let mut owners = self.owners();
                let line = owners.entry(owner).or_default();
                line.waiting.fetch_add(1, Ordering::Relaxed);
                self.of_owners.fetch_add(1, Ordering::Relaxed);
                Arc::clone(line)
            }
        };
        // Whoever gives a place back from here on sees this, or we see the place.
        fence(Ordering::SeqCst);
        Waiting {
            queue: self,
            line,
            owner,
        }
    }

    /// A place of `owner` is free.
    pub(super) fn release(&self, owner: Option<UserId>) {
        fence(Ordering::SeqCst);
        if self.waiting() > 0 {
            self.any.released.notify_one();
        }
        if let Some(owner) = owner
            && self.of_owners.load(Ordering::Relaxed) > 0
            && let Some(line) = self.owners().get(&owner)
        {
            line.released.notify_one();
        }
    }

    /// How many wait for any place.
    pub(super) fn waiting(&self) -> usize {
        self.any.waiting.load(Ordering::Relaxed)
    }

    /// How many wait for a place of each owner.
    pub(super) fn waiting_of_owners(&self) -> HashMap<UserId, usize> {
        if self.of_owners.load(Ordering::Relaxed) == 0 {
            return HashMap::new();
        }
        let waiting = |line: &Arc<Line>| line.waiting.load(Ordering::Relaxed);
        let owners = self.owners();
        let lines = owners.iter();
        lines.map(|(owner, line)| (*owner, waiting(line))).collect()
    }

    /// Whether somebody waits for the place of a connection of `owner`.
    pub(super) fn wants(&self, owner: Option<UserId>) -> bool {
        let is_awaited = |owner| {
            self.of_owners.load(Ordering::Relaxed) > 0 && self.owners().contains_key(&owner)
        };
        self.waiting() > 0 || owner.is_some_and(is_awaited)
    }

    /// Tells those who keep idle connections.
    pub(super) fn press(&self) {
        self.presses.fetch_add(1, Ordering::Relaxed);
        self.pressed.notify_waiters();
    }

    /// How many times they were told.
    pub(super) fn presses(&self) -> usize {
        self.presses.load(Ordering::Relaxed)
    }

    /// Ready when they are told the next time.
    pub(super) fn pressed(&self) -> Notified<'_> {
        self.pressed.notified()
    }

    fn owners(&self) -> MutexGuard<'_, HashMap<UserId, Arc<Line>>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting<'_> {
    /// For whose place.
    pub(super) fn owner(&self) -> Option<UserId> {
        self.owner
    }

    /// Ready when there may be one.
    pub(super) fn released(&self) -> Notified<'_> {
        self.line.released.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let others = match self.owner {
            None => self.line.waiting.fetch_sub(1, Ordering::Relaxed) - 1,
            Some(owner) => {
                let mut owners = self.queue.owners();
                let others = self.line.waiting.fetch_sub(1, Ordering::Relaxed) - 1;
                self.queue.of_owners.fetch_sub(1, Ordering::Relaxed);
                if others == 0
                    && let Entry::Occupied(line) = owners.entry(owner)
                {
                    line.remove();
                }
                others
            }
        };
        // Whoever was told that there is room and left tells the next.
        if others > 0 {
            self.line.released.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_for_those_who_can_have_it() {
        let queue = Queue::default();
        let (one, two) = (UserId(1), UserId(2));
        assert!(!queue.wants(None) && !queue.wants(Some(one)));
        let of_one = [queue.enter(Some(one)), queue.enter(Some(one))];
        assert!(queue.wants(Some(one)));
        assert!(!queue.wants(Some(two)) && !queue.wants(None));
        assert_eq!(queue.waiting(), 0);
        assert_eq!(queue.waiting_of_owners(), HashMap::from([(one, 2)]));
        let any = queue.enter(None);
        assert!(queue.wants(Some(two)) && queue.wants(None));
        drop(any);
        drop(of_one);
        assert!(!queue.wants(Some(one)) && queue.waiting_of_owners().is_empty());
        assert!(queue.owners().is_empty());
    }

    #[tokio::test]
    async fn whoever_leaves_after_he_was_told_tells_the_next() {
        let queue = Queue::default();
        for owner in [None, Some(UserId(1))] {
            let (first, second) = (queue.enter(owner), queue.enter(owner));
            queue.release(owner);
            first.released().await;
            drop(first);
            second.released().await;
        }
        // Nobody of another owner is told.
        let waiting = queue.enter(Some(UserId(1)));
        queue.release(Some(UserId(2)));
        queue.release(None);
        let told = tokio::time::timeout(std::time::Duration::ZERO, waiting.released());
        assert!(told.await.is_err());
    }
}
