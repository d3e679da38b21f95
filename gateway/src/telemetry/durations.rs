//! A histogram of durations that is observed without a lock.
//!
//! `prometheus_client`'s own takes a mutex for each observation, which the
//! data threads would share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Counts durations by [`BOUNDS`]; clones share the counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Durations(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// One per bound, not cumulative, and one for what is longer than all.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Durations {
    /// Counts one.
    pub(super) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let index = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(bucket) = self.0.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.0.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let counts = self.0.buckets.iter().map(|n| n.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        // The sum of what is shown, not a count of its own that may be ahead of it.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(self.0.nanos.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

/// Upper bounds in seconds.
const BOUNDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn it_reads_as_the_librarys_histogram_does() {
        let (durations, histogram) = (Durations::default(), Histogram::new(BOUNDS));
        // Sums of these are exact in floating point.
        for millis in [0, 250, 500, 750, 60_000, 61_000] {
            let duration = Duration::from_millis(millis);
            durations.observe(duration);
            histogram.observe(duration.as_secs_f64());
        }
        let texts = [true, false].map(|own| {
            let mut registry = Registry::default();
            match own {
                true => registry.register("took", "Time", durations.clone()),
                false => registry.register("took", "Time", histogram.clone()),
            }
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        });
        assert_eq!(texts[0], texts[1]);
        assert!(texts[0].contains("took_count 6"), "{}", texts[0]);
    }
}
