//! Pauses between attempts: doubling, capped, with jitter so that many clients
//! that lost the same server do not come back in one instant.

use std::time::Duration;

use rand::RngExt;

/// Doubles from `first` to `max`; each pause is a random part (at least half)
/// of the step, and [`Backoff::reset`] starts over after a success.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    step: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            step: first,
        }
    }

    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(self.max);
        jittered(step)
    }

    pub(crate) fn reset(&mut self) {
        self.step = self.first;
    }
}

/// Between half of `step` and all of it.
pub(crate) fn jittered(step: Duration) -> Duration {
    step.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_starts_over_after_a_reset() {
        let (first, max) = (Duration::from_millis(100), Duration::from_millis(350));
        let mut backoff = Backoff::new(first, max);
        for step in [100, 200, 350, 350] {
            let pause = backoff.next().as_millis();
            assert!(
                (step / 2..=step).contains(&pause),
                "{pause} ms at step {step}"
            );
        }
        backoff.reset();
        assert!(backoff.next() <= first);
    }
}
