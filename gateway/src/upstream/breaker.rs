//! Whether a target is well, by what became of the requests it got: one state
//! machine that both ejects a target of several and breaks the circuit of a
//! single one.
//!
//! ```text
//! closed --(failures in a row)--> open --(pause over)--> half-open: one probe
//!   ^                              ^                       |
//!   |                              +-------(failed)--------+
//!   +------------------------------(succeeded)-------------+
//! ```
//!
//! Where other targets can take over, few failures suffice and the pause grows
//! long: nobody misses the target. Where none can, it takes more of them and
//! the pause stays short: meanwhile clients are refused. Atomics only; two
//! threads that fail at once may count one failure twice or lose one, which
//! moves a threshold by one and nothing else.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Failures in a row that take a target out while others can take over.
const FAILURES_EJECT: u32 = 3;

/// Failures in a row that break the circuit when no other can.
const FAILURES_BREAK: u32 = 10;

/// The first pause, with others and alone; each further one is twice as long.
const PAUSE_MS: (u64, u64) = (1_000, 250);

/// The longest pause, with others and alone.
const PAUSE_MAX_MS: (u64, u64) = (60_000, 5_000);

/// A probe that says nothing for so long is followed by another.
const PROBE_MS: u64 = 5_000;

/// After being well for so long the pauses start small again.
const FORGOTTEN_MS: u64 = 60_000;

/// Milliseconds of the process's clock; never 0.
pub(crate) type Millis = u64;

/// Whether others can take over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Standing {
    /// No other target can.
    Alone,
    /// Another can.
    WithOthers,
}

/// The three states.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum State {
    /// Requests go through.
    Closed,
    /// One request is on trial.
    HalfOpen,
    /// None goes through before the pause is over.
    Open,
}

impl State {
    /// As metrics and people name it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// The state of one target. One per process.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// Failures since the last success.
    failures: AtomicU32,
    /// 0: closed. Else a time, doubled: until when it is open, or (odd) until when the probe may take.
    word: AtomicU64,
    /// How often it opened without being well for a while in between.
    trips: AtomicU32,
    /// When it last closed.
    closed_at: AtomicU64,
}

/// What a failure did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Tripped {
    /// Failures in a row.
    pub(crate) failures: u32,
    /// How long nothing goes through.
    pub(crate) pause: Duration,
    /// Whether it was closed before.
    pub(crate) first: bool,
}

impl Breaker {
    /// Whether requests go through without more ado.
    pub(crate) fn is_closed(&self) -> bool {
        self.word.load(Ordering::Relaxed) == 0
    }

    /// Its state now.
    pub(crate) fn state(&self) -> State {
        match self.word.load(Ordering::Relaxed) {
            0 => State::Closed,
            word if word & 1 == 1 => State::HalfOpen,
            _ => State::Open,
        }
    }

    /// Failures in a row so far.
    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// When the next probe may be sent; none when closed.
    pub(crate) fn due(&self) -> Option<Millis> {
        match self.word.load(Ordering::Relaxed) {
            0 => None,
            word => Some(word >> 1),
        }
    }

    /// Takes the place of the one probe, if it is free and its time has come.
    pub(crate) fn try_probe(&self, now: Millis) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        if word == 0 || word >> 1 > now {
            return false;
        }
        let lease = ((now + PROBE_MS) << 1) | 1;
        let order = Ordering::Relaxed;
        self.word
            .compare_exchange(word, lease, order, order)
            .is_ok()
    }

    /// The probe came to nothing by no fault of the target: another may follow at once.
    pub(crate) fn give_up_probe(&self, now: Millis) {
        let free = |word: u64| (word & 1 == 1).then_some(now << 1);
        let _ = self
            .word
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, free);
    }

    /// The target answered. True if that closed the circuit.
    pub(crate) fn succeeded(&self, probe: bool, now: Millis) -> bool {
        // Most often there is nothing to write: the line stays shared by all threads.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        // An answer from before the trouble says nothing about now.
        if !probe || self.is_closed() {
            return false;
        }
        self.closed_at.store(now, Ordering::Relaxed);
        self.word.store(0, Ordering::Relaxed);
        true
    }

    /// The target failed. `jitter` from 0 to 1 spreads the pauses.
    pub(crate) fn failed(
        &self,
        probe: bool,
        standing: Standing,
        now: Millis,
        jitter: f64,
    ) -> Option<Tripped> {
        let failures = self
            .failures
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        let word = self.word.load(Ordering::Relaxed);
        let limit = match standing {
            Standing::Alone => FAILURES_BREAK,
            Standing::WithOthers => FAILURES_EJECT,
        };
        let trips = if word != 0 { probe } else { failures >= limit };
        if !trips {
            return None;
        }
        if word == 0 && now.saturating_sub(self.closed_at.load(Ordering::Relaxed)) > FORGOTTEN_MS {
            self.trips.store(0, Ordering::Relaxed);
        }
        let trips = self.trips.load(Ordering::Relaxed);
        let pause = pause(standing, trips, jitter);
        let next = (now + pause) << 1;
        let order = Ordering::Relaxed;
        // Whoever was faster has opened it.
        self.word.compare_exchange(word, next, order, order).ok()?;
        self.trips.store(trips.saturating_add(1), Ordering::Relaxed);
        Some(Tripped {
            failures,
            pause: Duration::from_millis(pause),
            first: word == 0,
        })
    }

    /// Forgets everything: the target is another than it was.
    pub(crate) fn reset(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.trips.store(0, Ordering::Relaxed);
        self.word.store(0, Ordering::Relaxed);
    }
}

/// Grows twofold up to its limit; 75 to 125 % of that by `jitter`.
fn pause(standing: Standing, trips: u32, jitter: f64) -> Millis {
    let (first, max) = match standing {
        Standing::WithOthers => (PAUSE_MS.0, PAUSE_MAX_MS.0),
        Standing::Alone => (PAUSE_MS.1, PAUSE_MAX_MS.1),
    };
    let pause = first.saturating_mul(1 << trips.min(16)).min(max);
    let share = 0.75 + 0.5 * jitter.clamp(0.0, 1.0);
    Duration::from_millis(pause)
        .mul_f64(share)
        .as_millis()
        .try_into()
        .unwrap_or(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails until it opens; how many failures that took.
    fn trip(breaker: &Breaker, standing: Standing, now: Millis) -> (u32, Duration) {
        for count in 1..100 {
            if let Some(tripped) = breaker.failed(false, standing, now, 0.5) {
                assert_eq!(tripped.failures, count);
                return (count, tripped.pause);
            }
        }
        panic!("never opened");
    }

    #[test]
    fn few_failures_eject_one_of_several_and_more_break_the_circuit_of_one() {
        for (standing, failures, millis) in
            [(Standing::WithOthers, 3, 1_000), (Standing::Alone, 10, 250)]
        {
            let breaker = Breaker::default();
            let pause = Duration::from_millis(millis);
            assert_eq!(trip(&breaker, standing, 1), (failures, pause));
            assert_eq!(breaker.state(), State::Open);
        }
    }

    #[test]
    fn a_success_in_between_starts_the_count_anew() {
        let breaker = Breaker::default();
        for _ in 0..50 {
            assert!(
                breaker
                    .failed(false, Standing::WithOthers, 1, 0.5)
                    .is_none()
            );
            assert!(
                breaker
                    .failed(false, Standing::WithOthers, 1, 0.5)
                    .is_none()
            );
            assert!(!breaker.succeeded(false, 1));
        }
        assert!(breaker.is_closed());
    }

    #[test]
    fn half_open_lets_exactly_one_probe_through_and_its_success_closes() {
        let breaker = Breaker::default();
        trip(&breaker, Standing::Alone, 1_000);
        assert!(!breaker.try_probe(1_249));
        assert!(breaker.try_probe(1_250));
        assert_eq!(breaker.state(), State::HalfOpen);
        assert!(!breaker.try_probe(1_250), "one probe");
        // A request from before the trouble ends well or badly: that is no news.
        assert!(!breaker.succeeded(false, 1_251));
        assert!(breaker.failed(false, Standing::Alone, 1_251, 0.5).is_none());
        assert_eq!(breaker.state(), State::HalfOpen);
        assert!(breaker.succeeded(true, 1_252));
        assert_eq!(breaker.state(), State::Closed);
        assert_eq!(breaker.failures(), 0);
    }

    #[test]
    fn a_failed_probe_opens_for_twice_as_long_up_to_the_limit() {
        for (standing, expected) in [
            (
                Standing::WithOthers,
                vec![2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000],
            ),
            (
                Standing::Alone,
                vec![500, 1_000, 2_000, 4_000, 5_000, 5_000],
            ),
        ] {
            let breaker = Breaker::default();
            trip(&breaker, standing, 1);
            for millis in expected {
                let now = breaker.due().unwrap();
                assert!(breaker.try_probe(now));
                let tripped = breaker
                    .failed(true, standing, now, 0.5)
                    .expect("open again");
                assert_eq!(tripped.pause, Duration::from_millis(millis));
                assert!(!tripped.first);
            }
        }
    }

    #[test]
    fn a_probe_that_is_given_up_or_lost_makes_way_for_another() {
        let breaker = Breaker::default();
        trip(&breaker, Standing::Alone, 1);
        let now = breaker.due().unwrap();
        assert!(breaker.try_probe(now));
        breaker.give_up_probe(now + 1);
        assert!(breaker.try_probe(now + 1));
        assert!(!breaker.try_probe(now + PROBE_MS));
        assert!(
            breaker.try_probe(now + 1 + PROBE_MS),
            "the first one is lost"
        );
    }

    #[test]
    fn pauses_stay_long_for_a_target_that_is_well_only_now_and_then() {
        let breaker = Breaker::default();
        let standing = Standing::WithOthers;
        trip(&breaker, standing, 1);
        let mut now = breaker.due().unwrap();
        assert!(breaker.try_probe(now) && breaker.succeeded(true, now));
        assert_eq!(
            trip(&breaker, standing, now + 10).1,
            Duration::from_millis(2_000)
        );
        now = breaker.due().unwrap();
        assert!(breaker.try_probe(now) && breaker.succeeded(true, now));
        let later = now + FORGOTTEN_MS + 1;
        assert_eq!(
            trip(&breaker, standing, later).1,
            Duration::from_millis(1_000)
        );
    }

    #[test]
    fn jitter_spreads_the_pauses_by_a_quarter() {
        for (jitter, millis) in [(0.0, 750), (0.5, 1_000), (1.0, 1_250), (7.0, 1_250)] {
            assert_eq!(pause(Standing::WithOthers, 0, jitter), millis);
        }
    }

    #[test]
    fn threads_that_probe_at_once_are_one_probe() {
        for _ in 0..50 {
            let breaker = Breaker::default();
            trip(&breaker, Standing::Alone, 1);
            let now = breaker.due().unwrap();
            let probes: usize = std::thread::scope(|scope| {
                let tries: Vec<_> = (0..4)
                    .map(|_| scope.spawn(|| usize::from(breaker.try_probe(now))))
                    .collect();
                tries.into_iter().map(|tried| tried.join().unwrap()).sum()
            });
            assert_eq!(probes, 1);
        }
    }
}
