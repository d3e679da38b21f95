//! The gateway's own account of the time from publish to effect.
//!
//! `event_apply_seconds` has it from the broker's time stamp to the swap, without those who look
//! from outside: their requests, and their share of the cores.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result};

/// How many events were in effect within how many microseconds, ever or in some time.
pub(super) struct Applied(BTreeMap<u64, u64>);

impl Applied {
    /// From what `/metrics` says, over all subjects.
    pub(super) fn of(metrics: &str) -> Result<Self> {
        let mut within = BTreeMap::new();
        for line in metrics.lines() {
            let Some(labels) = line.strip_prefix("edd_gateway_event_apply_seconds_bucket{") else {
                continue;
            };
            let (_, bound) = labels.split_once("le=\"").context("no bound")?;
            let (bound, count) = bound.split_once("\"").context("no end of the bound")?;
            let count = count.split_whitespace().last().context("no count")?;
            let micros = match bound.parse::<f64>()? {
                seconds if seconds.is_finite() => (seconds * 1e6).round() as u64,
                _ => u64::MAX,
            };
            *within.entry(micros).or_default() += count.parse::<u64>()?;
        }
        Ok(Self(within))
    }

    /// Those since then.
    pub(super) fn since(mut self, before: &Self) -> Self {
        for (bound, count) in &mut self.0 {
            *count -= before.0.get(bound).copied().unwrap_or_default();
        }
        self
    }

    fn all(&self) -> u64 {
        self.0.values().last().copied().unwrap_or_default()
    }
}

/// The share within each of the bounds that matter.
impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n {:>5}", self.all())?;
        for millis in [2, 5, 10, 20, 50] {
            let within = self.0.get(&(millis * 1000)).copied().unwrap_or_default();
            let share = 100.0 * within as f64 / self.all().max(1) as f64;
            write!(f, "   {millis} ms {share:.2} %")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "\
edd_gateway_event_apply_seconds_sum{subject=\"a\"} 0.1
edd_gateway_event_apply_seconds_bucket{le=\"0.005\",subject=\"a\"} 1
edd_gateway_event_apply_seconds_bucket{le=\"0.01\",subject=\"a\"} 2
edd_gateway_event_apply_seconds_bucket{le=\"+Inf\",subject=\"a\"} 2
";

    const AFTER: &str = "\
edd_gateway_event_apply_seconds_bucket{subject=\"a\",le=\"0.005\"} 2
edd_gateway_event_apply_seconds_bucket{subject=\"a\",le=\"0.01\"} 5
edd_gateway_event_apply_seconds_bucket{subject=\"a\",le=\"+Inf\"} 6
edd_gateway_event_apply_seconds_bucket{subject=\"b\",le=\"0.005\"} 0
edd_gateway_event_apply_seconds_bucket{subject=\"b\",le=\"0.01\"} 0
edd_gateway_event_apply_seconds_bucket{subject=\"b\",le=\"+Inf\"} 1
";

    #[test]
    fn what_was_before_does_not_count() {
        let before = Applied::of(BEFORE).unwrap();
        let since = Applied::of(AFTER).unwrap().since(&before);
        assert_eq!(
            since.0,
            BTreeMap::from([(5_000, 1), (10_000, 3), (u64::MAX, 5)])
        );
        let text = since.to_string();
        assert!(text.starts_with("n     5"), "{text}");
        assert!(text.contains("5 ms 20.00 %   10 ms 60.00 %"), "{text}");
    }

    #[test]
    fn nothing_known_is_nothing_said() {
        assert_eq!(Applied::of("").unwrap().all(), 0);
        assert!(Applied::of("edd_gateway_event_apply_seconds_bucket{} 1").is_err());
    }
}
