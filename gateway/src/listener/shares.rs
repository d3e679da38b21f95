//! How many connections to containers each owner may have at once, whatever they are for.
//!
//! All of the gateway share one cap on connections to upstreams, and nobody may
//! take the last ones: an owner gets another while it has less than
//! [`GREED`] times what is free. One alone comes to four fifths, two of them to
//! four ninths each, and so on; who has none gets one while any is free.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edd_route::UserId;

/// How many times what is free one owner may hold.
const GREED: usize = 4;

/// Counts by owner. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares(Arc<Mutex<HashMap<UserId, usize>>>);

/// One connection of an owner.
#[derive(Debug)]
pub(super) struct Share {
    shares: Shares,
    owner: UserId,
}

impl Shares {
    /// Counts another one, if the owner may have it while `free` more can be made in all.
    pub(super) fn take(&self, owner: UserId, free: usize) -> Option<Share> {
        let mut held = self.lock();
        let count = held.get(&owner).copied().unwrap_or(0);
        // With none free somebody may yet make room: that is the cap's own affair.
        if count > 0 && count >= free.saturating_mul(GREED) {
            return None;
        }
        held.insert(owner, count + 1);
        Some(Share {
            shares: self.clone(),
            owner,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Whose it is.
    pub(super) fn owner(&self) -> UserId {
        self.owner
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.lock();
        if let Some(count) = held.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each owner takes what it gets in turn; how many each has in the end.
    fn taken(owners: u64, max: usize) -> Vec<usize> {
        let (shares, mut held) = (Shares::default(), Vec::new());
        let mut counts = vec![0; owners as usize];
        loop {
            let before = held.len();
            for owner in 0..owners {
                if let Some(share) = shares.take(UserId(owner as _), max - held.len()) {
                    counts[owner as usize] += 1;
                    held.push(share);
                }
            }
            if held.len() == before {
                break;
            }
        }
        drop(held);
        assert!(shares.lock().is_empty());
        counts
    }

    #[test]
    fn nobody_takes_the_last_ones() {
        assert_eq!(taken(1, 100), [80]);
        let two = taken(2, 100);
        assert!(two.iter().all(|count| (43..=46).contains(count)), "{two:?}");
        let four = taken(4, 100);
        assert!(
            four.iter().all(|count| (21..=25).contains(count)),
            "{four:?}"
        );
        assert!(four.iter().sum::<usize>() < 100);
    }

    #[test]
    fn a_newcomer_gets_one_whatever_others_hold() {
        let shares = Shares::default();
        let greedy: Vec<_> = (0..10)
            .map_while(|held| shares.take(UserId(1), 10 - held))
            .collect();
        assert_eq!(greedy.len(), 8);
        assert!(shares.take(UserId(2), 2).is_some());
        drop(greedy);
        assert!(shares.take(UserId(1), 1).is_some());
    }
}
