//! A histogram of durations that each thread counts for itself.
//!
//! `prometheus_client`'s own takes a mutex for each observation, which the
//! data threads would share.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

use super::tally::{Fold, Tally};

/// Counts durations by [`BOUNDS`]. Only one thread may observe.
#[derive(Debug, Default)]
pub(super) struct Durations {
    /// One per bound, not cumulative, and one for what is longer than all.
    buckets: [Tally; BOUNDS.len() + 1],
    nanos: Tally,
}

impl Durations {
    /// Counts one.
    pub(super) fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let index = BOUNDS.partition_point(|bound| *bound < nanos);
        if let Some(bucket) = self.buckets.get(index) {
            bucket.add(1);
        }
        self.nanos.add(nanos);
    }

    /// Writes it as a histogram.
    pub(super) fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let seconds = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64();
        let bounds = BOUNDS.into_iter().map(seconds).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(self.buckets.iter().map(Tally::get)).collect();
        // The sum of what is shown, not a count of its own that may be ahead of it.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = seconds(self.nanos.get());
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

impl Fold for Durations {
    fn fold(&self, other: &Self) {
        let pairs = self.buckets.iter().zip(&other.buckets);
        pairs.for_each(|(own, other)| own.fold(other));
        self.nanos.fold(&other.nanos);
    }
}

/// Upper bounds in nanoseconds.
const BOUNDS: [u64; 14] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
    60_000_000_000,
];

#[cfg(test)]
mod tests {
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::DescriptorEncoder;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::MetricType;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::registry::Registry;

    use super::*;

    #[derive(Debug)]
    struct Ours(Durations);

    impl Collector for Ours {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let kind = MetricType::Histogram;
            self.0
                .encode(encoder.encode_descriptor("took", "Time.", None, kind)?)
        }
    }

    #[test]
    fn it_reads_as_the_librarys_histogram_does() {
        let seconds = |nanos| Duration::from_nanos(nanos).as_secs_f64();
        let (ours, theirs) = (Durations::default(), Histogram::new(BOUNDS.map(seconds)));
        // Sums of these are exact in floating point.
        for millis in [0, 250, 500, 750, 60_000, 61_000] {
            let duration = Duration::from_millis(millis);
            ours.observe(duration);
            theirs.observe(duration.as_secs_f64());
        }
        let mut registries = [Registry::default(), Registry::default()];
        registries[0].register_collector(Box::new(Ours(ours)));
        registries[1].register("took", "Time", theirs);
        let texts = registries.map(|registry| {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        });
        assert_eq!(texts[0], texts[1]);
        assert!(texts[0].contains("took_count 6"), "{}", texts[0]);
    }
}
