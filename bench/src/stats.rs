//! Percentiles of measured durations, and how noisy the machine is.

use std::fmt;
use std::time::{Duration, Instant};

/// How many wake-ups measure the machine's noise.
const NOISE_SAMPLES: usize = 200;

/// Measured durations.
#[derive(Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// Adds all of another.
    pub(crate) fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// The duration that `per_mille` of a thousand samples do not exceed (nearest rank); zero
    /// without samples.
    pub(crate) fn percentile(&self, per_mille: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [500, 990, 1000].map(|per_mille| millis(self.percentile(per_mille)));
        write!(
            f,
            "n {:>5}   p50 {p50}   p99 {p99}   max {max}",
            self.0.len()
        )
    }
}

/// Milliseconds with two places.
pub(crate) fn millis(duration: Duration) -> String {
    format!("{:>8.2} ms", duration.as_secs_f64() * 1000.0)
}

/// How late the machine wakes a thread that asked for one millisecond: what no program on it
/// can undercut.
pub(crate) fn machine_noise() -> Samples {
    let wanted = Duration::from_millis(1);
    let mut late = Samples::default();
    for _ in 0..NOISE_SAMPLES {
        let started = Instant::now();
        std::thread::sleep(wanted);
        late.push(started.elapsed().saturating_sub(wanted));
    }
    late
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let mut samples = Samples::default();
        (1..=200)
            .rev()
            .for_each(|n| samples.push(Duration::from_millis(n)));
        let [p50, p99, max] = [500, 990, 1000].map(|p| samples.percentile(p).as_millis());
        assert_eq!((p50, p99, max), (100, 198, 200));
        assert_eq!(Samples::default().percentile(990), Duration::ZERO);
    }
}
