//! What publishing and consuming looks like in numbers.
//!
//! The families of the contract, without prefix: the daemon's registry adds its
//! own (`edd_gateway`, `edd_auth`). In labels a subject's id is `*`; subjects
//! that nobody knows are all `unknown`, so that no publisher can grow them.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::subject::{Parsed, parse};

type Histograms = Family<Subject, Histogram, fn() -> Histogram>;

/// Handles to the families; clones share them. `default()` counts without being
/// registered anywhere.
#[derive(Clone, Debug)]
pub struct Metrics {
    events: Family<SubjectResult, Counter>,
    published: Family<SubjectResult, Counter>,
    acks: Family<StreamKind, Counter>,
    handler_seconds: Histograms,
    apply_seconds: Histograms,
    pending: Family<Stream, Gauge>,
    breaker: Family<Stream, Gauge>,
    dlq_messages: Family<Stream, Gauge>,
    outbox_pending: Gauge<u64, AtomicU64>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct SubjectResult {
    subject: &'static str,
    result: &'static str,
}

const LOST: SubjectResult = SubjectResult {
    subject: "unknown",
    result: "lost",
};

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct Subject {
    subject: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct Stream {
    stream: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct StreamKind {
    stream: &'static str,
    kind: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            events: Family::default(),
            published: Family::default(),
            acks: Family::default(),
            handler_seconds: Family::new_with_constructor(seconds),
            apply_seconds: Family::new_with_constructor(seconds),
            pending: Family::default(),
            breaker: Family::default(),
            dlq_messages: Family::default(),
            outbox_pending: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Makes the families and registers them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let new = Self::default();
        // An alert sees a counter grow only from a value that it has seen before.
        drop(new.events.get_or_create(&LOST));
        registry.register("events", "Events received, by result", new.events.clone());
        registry.register(
            "events_published",
            "Events published",
            new.published.clone(),
        );
        registry.register("event_acks", "Acknowledgements sent", new.acks.clone());
        registry.register(
            "event_handler_seconds",
            "Time in the handler, of the batch an event was in",
            new.handler_seconds.clone(),
        );
        registry.register(
            "event_apply_seconds",
            "From an event's publication until it is in effect",
            new.apply_seconds.clone(),
        );
        registry.register(
            "consumer_pending",
            "Events in the stream not yet delivered to this consumer",
            new.pending.clone(),
        );
        registry.register(
            "consumer_breaker",
            "Whether consumption pauses: 0 closed (it does not), 1 half open, 2 open",
            new.breaker.clone(),
        );
        registry.register(
            "dlq_messages",
            "Dead letters in the stream",
            new.dlq_messages.clone(),
        );
        registry.register(
            "outbox_pending",
            "Events waiting to be published",
            new.outbox_pending.clone(),
        );
        new
    }

    /// An event that expired before anyone could handle or bury it; not even its subject is known.
    pub(crate) fn lost(&self) {
        self.events.get_or_create(&LOST).inc();
    }

    pub(crate) fn event(&self, subject: &'static str, result: &'static str) {
        self.events
            .get_or_create(&SubjectResult { subject, result })
            .inc();
    }

    pub(crate) fn published(&self, subject: &str, result: &'static str) {
        let subject = match parse(subject) {
            Parsed::DeadLetter => "dlq",
            Parsed::Event(kind, _) => kind.label(),
            Parsed::Unknown => "unknown",
        };
        self.published
            .get_or_create(&SubjectResult { subject, result })
            .inc();
    }

    pub(crate) fn ack(&self, stream: &'static str, kind: &'static str) {
        self.acks.get_or_create(&StreamKind { stream, kind }).inc();
    }

    pub(crate) fn handled(&self, subject: &'static str, took: Duration) {
        self.handler_seconds
            .get_or_create(&Subject { subject })
            .observe(took.as_secs_f64());
    }

    pub(crate) fn applied(&self, subject: &'static str, latency: Duration) {
        self.apply_seconds
            .get_or_create(&Subject { subject })
            .observe(latency.as_secs_f64());
    }

    pub(crate) fn pending(&self, stream: &'static str, pending: u64) {
        self.pending
            .get_or_create(&Stream { stream })
            .set(gauge(pending));
    }

    pub(crate) fn breaker(&self, stream: &'static str, state: i64) {
        self.breaker.get_or_create(&Stream { stream }).set(state);
    }

    pub(crate) fn dlq_messages(&self, stream: &'static str, messages: u64) {
        self.dlq_messages
            .get_or_create(&Stream { stream })
            .set(gauge(messages));
    }

    pub(crate) fn dead_lettered(&self, stream: &'static str) {
        self.dlq_messages.get_or_create(&Stream { stream }).inc();
    }

    /// One less, unless none is known of: it may never have been counted here.
    pub(crate) fn letter_removed(&self, stream: &'static str) {
        let letters = self.dlq_messages.get_or_create(&Stream { stream });
        if letters.get() > 0 {
            letters.dec();
        }
    }

    pub(crate) fn outbox_pending(&self, pending: u64) {
        self.outbox_pending.set(pending);
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// From half a millisecond (an event's usual way) to half a minute.
fn seconds() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ])
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn families_carry_the_contracts_names() {
        let mut registry = Registry::with_prefix("edd_test");
        let metrics = Metrics::register(&mut registry);
        metrics.event("auth.user.*.created", "applied");
        metrics.published("auth.user.7.created", "ok");
        metrics.published("what.is.this", "ok");
        metrics.ack("AUTH", "ack");
        metrics.handled("auth.user.*.created", Duration::from_millis(1));
        metrics.applied("auth.user.*.created", Duration::from_millis(1));
        metrics.pending("AUTH", 3);
        metrics.breaker("AUTH", 2);
        metrics.dlq_messages("AUTH", 1);
        metrics.dead_lettered("AUTH");
        metrics.outbox_pending(4);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            r#"edd_test_events_total{subject="auth.user.*.created",result="applied"} 1"#,
            r#"edd_test_events_published_total{subject="auth.user.*.created",result="ok"} 1"#,
            r#"edd_test_events_published_total{subject="unknown",result="ok"} 1"#,
            r#"edd_test_event_acks_total{stream="AUTH",kind="ack"} 1"#,
            r#"edd_test_event_handler_seconds_count{subject="auth.user.*.created"} 1"#,
            r#"edd_test_event_apply_seconds_count{subject="auth.user.*.created"} 1"#,
            r#"edd_test_consumer_pending{stream="AUTH"} 3"#,
            r#"edd_test_consumer_breaker{stream="AUTH"} 2"#,
            r#"edd_test_dlq_messages{stream="AUTH"} 2"#,
            "edd_test_outbox_pending 4",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
