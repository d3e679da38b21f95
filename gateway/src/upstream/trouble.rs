//! Containers that fare badly: only those have a state, so that a hundred
//! thousand that are well cost nothing.
//!
//! Known by their start: the next start of a container begins with a clean
//! slate. The data threads read the map without a lock; it changes only when a
//! container begins or ceases to fail.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::UpstreamKey;
use super::breaker::{Breaker, Millis};
use super::fleet::Fleet;

/// The containers that fail now.
#[derive(Debug, Default)]
pub(crate) struct Map {
    /// Whether there are any: all that most requests ask.
    any: AtomicBool,
    by_key: ArcSwap<ByKey>,
    // A plain lock: taken when a container begins or ceases to fail.
    writing: Mutex<()>,
}

type ByKey = imbl::HashMap<UpstreamKey, Arc<Trouble>>;

impl Map {
    /// Whether no container fails.
    pub(crate) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    fn get(&self, key: &UpstreamKey) -> Option<Arc<Trouble>> {
        if self.is_empty() {
            return None;
        }
        self.by_key.load().get(key).cloned()
    }

    fn change(&self, change: impl FnOnce(&mut ByKey)) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = ByKey::clone(&self.by_key.load());
        change(&mut next);
        let any = !next.is_empty();
        self.by_key.store(Arc::new(next));
        self.any.store(any, Ordering::Release);
    }
}

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
        self.troubled().get(key)
    }

    /// The state of a container that fails now; none if too many do.
    pub(super) fn in_trouble(&self, key: &UpstreamKey, now: Millis) -> Option<Arc<Trouble>> {
        let trouble = match self.trouble(key) {
            Some(trouble) => trouble,
            None => {
                self.troubled().change(|troubled| {
                    if troubled.len() >= TROUBLED_MAX {
                        troubled.retain(|_, trouble| {
                            let last = trouble.last.load(Ordering::Relaxed);
                            now.saturating_sub(last) < FORGOTTEN_MS
                        });
                    }
                    if troubled.len() < TROUBLED_MAX {
                        troubled.entry(key.clone()).or_insert_with(|| {
                            let trouble = Trouble::default();
                            trouble.last.store(now, Ordering::Relaxed);
                            Arc::new(trouble)
                        });
                    }
                });
                self.trouble(key)?
            }
        };
        trouble.last.store(now, Ordering::Relaxed);
        Some(trouble)
    }

    /// The container answers again.
    pub(super) fn out_of_trouble(&self, key: &UpstreamKey) {
        self.troubled().change(|troubled| {
            troubled.remove(key);
        });
    }
}
