//! Containers that fare badly: only those have a state, so that a hundred
//! thousand that are well cost nothing.
//!
//! Known by their start: the next start of a container begins with a clean
//! slate. The data threads read the map without a lock; it changes only when a
//! container begins or ceases to fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::UpstreamKey;
use super::breaker::{Breaker, Millis};
use super::fleet::Fleet;

/// The containers that fail now.
pub(crate) type Troubled = imbl::HashMap<UpstreamKey, Arc<Trouble>>;

/// The state of one.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    pub(crate) breaker: Breaker,
    /// When it last failed.
    last: AtomicU64,
}

/// More are not kept: whoever can make so many fail gains nothing by it.
const TROUBLED_MAX: usize = 4096;

/// What did not fail for so long is forgotten when room is needed.
const FORGOTTEN_MS: u64 = 60_000;

impl Fleet {
    /// The state of a container that failed lately.
    pub(super) fn trouble(&self, key: &UpstreamKey) -> Option<Arc<Trouble>> {
        let troubled = self.troubled().load();
        if troubled.is_empty() {
            return None;
        }
        troubled.get(key).cloned()
    }

    /// The state of a container that fails now; none if too many do.
    pub(super) fn in_trouble(&self, key: &UpstreamKey, now: Millis) -> Option<Arc<Trouble>> {
        let trouble = match self.trouble(key) {
            Some(trouble) => trouble,
            None => {
                self.troubled().rcu(|troubled| {
                    let mut next = Troubled::clone(troubled);
                    if next.len() >= TROUBLED_MAX {
                        next.retain(|_, trouble| {
                            let last = trouble.last.load(Ordering::Relaxed);
                            now.saturating_sub(last) < FORGOTTEN_MS
                        });
                    }
                    if next.len() < TROUBLED_MAX {
                        next.entry(key.clone()).or_insert_with(|| {
                            let trouble = Trouble::default();
                            trouble.last.store(now, Ordering::Relaxed);
                            Arc::new(trouble)
                        });
                    }
                    next
                });
                self.trouble(key)?
            }
        };
        trouble.last.store(now, Ordering::Relaxed);
        Some(trouble)
    }

    /// The container answers again.
    pub(super) fn out_of_trouble(&self, key: &UpstreamKey) {
        self.troubled().rcu(|troubled| {
            let mut next = Troubled::clone(troubled);
            next.remove(key);
            next
        });
    }
}
