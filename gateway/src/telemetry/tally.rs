//! Counters that each thread keeps for itself and that are added up when somebody asks.
//!
//! A counter shared by threads costs each of them the cache line of the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one thread has counted. Only that thread may add.
#[derive(Debug, Default)]
pub(super) struct Tally(AtomicU64);

impl Tally {
    /// Adds, without the price of a shared counter: nobody else writes.
    pub(super) fn add(&self, n: u64) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now.wrapping_add(n), Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What can be added up.
pub(super) trait Fold: Default {
    /// Adds what `other` has counted.
    fn fold(&self, other: &Self);
}

impl Fold for Tally {
    fn fold(&self, other: &Self) {
        self.add(other.get());
    }
}

/// The parts of all threads, and what threads that are gone have left.
#[derive(Debug, Default)]
pub(super) struct Parts<T> {
    left: T,
    live: Vec<Arc<T>>,
}

impl<T: Fold> Parts<T> {
    /// A part for a thread that begins to count.
    pub(super) fn begin(&mut self) -> Arc<T> {
        self.collect();
        let part = Arc::new(T::default());
        self.live.push(Arc::clone(&part));
        part
    }

    /// All of it together.
    pub(super) fn sum(&mut self) -> T {
        self.collect();
        let sum = T::default();
        sum.fold(&self.left);
        self.live.iter().for_each(|part| sum.fold(part));
        sum
    }

    /// Takes the parts over that no thread holds any more.
    fn collect(&mut self) {
        let left = &self.left;
        self.live.retain_mut(|part| match Arc::get_mut(part) {
            Some(part) => {
                left.fold(part);
                false
            }
            None => true,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_counted_outlives_it_and_its_part_does_not() {
        let mut parts = Parts::<Tally>::default();
        let stays = parts.begin();
        for _ in 0..10 {
            let part = parts.begin();
            std::thread::spawn(move || part.add(3)).join().unwrap();
            stays.add(1);
        }
        assert_eq!(parts.sum().get(), 40);
        assert_eq!(parts.live.len(), 1);
        assert_eq!(parts.sum().get(), 40);
    }
}
