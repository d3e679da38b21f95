//! How many requests of a route may be sent again: a share of those that came
//! lately, so that an upstream in trouble does not get twice the load.

use std::time::Duration;

use tokio::time::Instant;

/// Of a hundred requests so many may be sent again.
const PERCENT: u64 = 20;

/// So many in any window, however few requests there are.
const RETRIES_MIN: u64 = 10;

/// Two of these are what "lately" means.
const HALF: Duration = Duration::from_secs(5);

/// The budget of one route on one thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// When the present half began.
    began: Instant,
    now: Count,
    before: Count,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    requests: u64,
    retries: u64,
}

impl Budget {
    /// A budget nothing was taken from.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            began: now,
            now: Count::default(),
            before: Count::default(),
        }
    }

    /// Counts a request that came.
    pub(crate) fn request(&mut self, now: Instant) {
        self.turn(now);
        self.now.requests += 1;
    }

    /// Takes one retry, if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.turn(now);
        let requests = self.now.requests + self.before.requests;
        let retries = self.now.retries + self.before.retries;
        let may = retries < RETRIES_MIN.max(requests * PERCENT / 100);
        self.now.retries += u64::from(may);
        may
    }

    fn turn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.began);
        if passed < HALF {
            return;
        }
        self.before = match passed < 2 * HALF {
            true => self.now,
            false => Count::default(),
        };
        self.now = Count::default();
        self.began = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_traffic_may_retry_a_little() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        budget.request(now);
        let taken = (0..100).filter(|_| budget.take(now)).count();
        assert_eq!(taken, 10);
    }

    #[test]
    fn a_fifth_of_the_requests_may_be_sent_again_and_no_more() {
        let begun = Instant::now();
        let mut budget = Budget::new(begun);
        let mut taken = 0;
        // All of them fail, 1000 in a second, for a minute.
        for millis in 0..60_000 {
            let now = begun + Duration::from_millis(millis);
            budget.request(now);
            taken += u64::from(budget.take(now));
        }
        assert!((10_000..=12_000).contains(&taken), "{taken}");
    }

    #[test]
    fn what_is_long_past_does_not_count() {
        let begun = Instant::now();
        let mut budget = Budget::new(begun);
        for _ in 0..1000 {
            budget.request(begun);
        }
        // Still lately, in the second half of the window.
        let soon = begun + HALF;
        budget.request(soon);
        assert_eq!((0..1000).filter(|_| budget.take(soon)).count(), 200);
        let later = soon + 3 * HALF;
        assert_eq!((0..1000).filter(|_| budget.take(later)).count(), 10);
    }
}
