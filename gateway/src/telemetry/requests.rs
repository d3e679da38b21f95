//! The families of requests, counted without a lock and without sharing.
//!
//! Each thread keeps the counters of the series it has met, found again by the
//! route's label object (the same for all requests of a route until the routes
//! change), and adds to its own; the sum is made when somebody asks. A series
//! that a thread meets for the first time takes a lock.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::access::HttpRecord;
use super::durations::Durations;
use super::tally::{Parts, Tally};

#[derive(Clone, Debug, EncodeLabelSet, Eq, Ord, PartialEq, PartialOrd)]
struct RequestLabels {
    route: Arc<str>,
    method: &'static str,
    status: Status,
}

/// A status with a meaning; of the others, which are the upstreams' to invent, only the class.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Status(u16);

impl From<u16> for Status {
    fn from(status: u16) -> Self {
        let known =
            StatusCode::from_u16(status).is_ok_and(|status| status.canonical_reason().is_some());
        // nginx's for a client that left.
        Self(if known || status == 499 {
            status
        } else {
            status / 100
        })
    }
}

impl EncodeLabelValue for Status {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self.0 {
            class @ ..10 => write!(encoder, "{class}xx"),
            status => write!(encoder, "{status}"),
        }
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Ord, PartialEq, PartialOrd)]
struct RouteLabels {
    route: Arc<str>,
}

/// Requests by route, method and status, and how long they took by route. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    /// Tells whose counters a thread keeps, since a process may count for several (tests do).
    id: u64,
    series: Arc<Mutex<Series>>,
}

#[derive(Debug, Default)]
struct Series {
    counts: BTreeMap<RequestLabels, Parts<Tally>>,
    durations: BTreeMap<RouteLabels, Parts<Durations>>,
}

impl Requests {
    /// Nothing counted, registered under their names.
    pub(super) fn register(registry: &mut Registry) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let requests = Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            series: Arc::default(),
        };
        registry.register_collector(Box::new(requests.clone()));
        requests
    }

    /// Counts an answered request.
    pub(super) fn done(&self, record: &HttpRecord) {
        // Fails only while the thread ends, when nobody asks any more.
        let _ = KNOWN.try_with(|known| known.borrow_mut().count(self, record));
    }

    fn series(&self) -> MutexGuard<'_, Series> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut series = self.series();
        let mut counts = encoder.encode_descriptor(
            "http_requests",
            "Requests answered.",
            None,
            MetricType::Counter,
        )?;
        for (labels, parts) in &mut series.counts {
            counts
                .encode_family(labels)?
                .encode_counter::<NoLabelSet, _, u64>(&parts.sum().get(), None)?;
        }
        let mut durations = encoder.encode_descriptor(
            "http_request_duration_seconds",
            "Head to end of answer.",
            None,
            MetricType::Histogram,
        )?;
        for (labels, parts) in &mut series.durations {
            parts.sum().encode(durations.encode_family(labels)?)?;
        }
        Ok(())
    }
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// The counters that a thread keeps.
#[derive(Debug, Default)]
struct Known {
    owner: u64,
    routes: Vec<Route>,
    /// Where in `routes` the last request was counted.
    last: usize,
    /// By address; the label is held, so that no other gets its address.
    by_label: HashMap<usize, (Arc<str>, usize)>,
    by_name: HashMap<Arc<str>, usize>,
    /// Counters of all routes together.
    len: usize,
}

#[derive(Debug)]
struct Route {
    /// The label object that was met last.
    label: Arc<str>,
    durations: Arc<Durations>,
    counts: Vec<Count>,
    /// Where in `counts` the last request was counted.
    last: usize,
    by_kind: HashMap<(&'static str, u16), usize>,
}

#[derive(Debug)]
struct Count {
    method: &'static str,
    status: u16,
    tally: Arc<Tally>,
}

/// Statuses are the upstreams' to choose, and routes change: a thread begins anew beyond this.
const KNOWN_MAX: usize = 4096;

impl Known {
    fn count(&mut self, requests: &Requests, record: &HttpRecord) {
        if self.owner != requests.id || self.len.max(self.by_label.len()) >= KNOWN_MAX {
            *self = Self {
                owner: requests.id,
                ..Self::default()
            };
        }
        let is_last = |route: &Route| Arc::ptr_eq(&route.label, &record.route);
        if !self.routes.get(self.last).is_some_and(is_last) {
            self.last = self.find(requests, &record.route);
        }
        let Some(route) = self.routes.get_mut(self.last) else {
            return;
        };
        self.len += usize::from(route.count(requests, record));
    }

    /// The route with this label, made if it is new.
    fn find(&mut self, requests: &Requests, label: &Arc<str>) -> usize {
        let address = label.as_ptr().addr();
        if let Some((_, index)) = self.by_label.get(&address) {
            return *index;
        }
        let index = match self.by_name.get(label) {
            Some(index) => *index,
            None => {
                self.by_name.insert(Arc::clone(label), self.routes.len());
                self.routes.push(Route::new(requests, label));
                self.routes.len() - 1
            }
        };
        self.by_label.insert(address, (Arc::clone(label), index));
        if let Some(route) = self.routes.get_mut(index) {
            route.label = Arc::clone(label);
        }
        index
    }
}

impl Route {
    fn new(requests: &Requests, label: &Arc<str>) -> Self {
        let route = Arc::clone(label);
        let durations = &mut requests.series().durations;
        Self {
            label: Arc::clone(label),
            durations: durations.entry(RouteLabels { route }).or_default().begin(),
            counts: Vec::new(),
            last: 0,
            by_kind: HashMap::new(),
        }
    }

    /// Counts; whether it took a new counter.
    fn count(&mut self, requests: &Requests, record: &HttpRecord) -> bool {
        self.durations.observe(record.duration);
        let is_last =
            |count: &Count| count.status == record.status && count.method == record.method;
        if let Some(count) = self.counts.get(self.last).filter(|count| is_last(count)) {
            count.tally.add(1);
            return false;
        }
        let kind = (record.method, record.status);
        let known = self.by_kind.get(&kind).copied();
        self.last = known.unwrap_or(self.counts.len());
        if known.is_none() {
            let labels = RequestLabels {
                route: Arc::clone(&self.label),
                method: record.method,
                status: record.status.into(),
            };
            self.counts.push(Count {
                method: record.method,
                status: record.status,
                tally: requests.series().counts.entry(labels).or_default().begin(),
            });
            self.by_kind.insert(kind, self.last);
        }
        if let Some(count) = self.counts.get(self.last) {
            count.tally.add(1);
        }
        known.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use prometheus_client::encoding::text::encode;

    use super::*;

    fn record(route: &str, status: u16) -> HttpRecord {
        HttpRecord {
            request_id: "".into(),
            revision: 0,
            peer: "192.0.2.1:1".parse().unwrap(),
            version: "1.1",
            method: "GET",
            host: "".into(),
            path: "".into(),
            route: route.into(),
            upstream: None,
            status,
            grpc_status: None,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::from_millis(2),
            ended: Instant::now(),
            note: None,
        }
    }

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn all_threads_count_into_the_same_series() {
        let mut registry = Registry::default();
        let requests = Requests::register(&mut registry);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        requests.done(&record("a", 200));
                        requests.done(&record("a", 404));
                        requests.done(&record("b", 200));
                    }
                });
            }
        });
        let text = text(&registry);
        for line in [
            r#"http_requests_total{route="a",method="GET",status="200"} 300"#,
            r#"http_requests_total{route="a",method="GET",status="404"} 300"#,
            r#"http_requests_total{route="b",method="GET",status="200"} 300"#,
            r#"http_request_duration_seconds_count{route="a"} 600"#,
            r#"http_request_duration_seconds_bucket{le="0.001",route="a"} 0"#,
            r#"http_request_duration_seconds_bucket{le="0.0025",route="a"} 600"#,
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}:\n{text}");
        }
    }

    #[test]
    fn a_series_that_a_thread_has_met_is_counted_without_the_lock() {
        let mut registry = Registry::default();
        let requests = Requests::register(&mut registry);
        let (get, lost) = (record("a", 200), record("a", 404));
        requests.done(&get);
        requests.done(&lost);
        let held = requests.series();
        for _ in 0..3 {
            requests.done(&get);
            requests.done(&lost);
        }
        drop(held);
        let text = text(&registry);
        assert!(text.contains("status=\"200\"} 4\n") && text.contains("status=\"404\"} 4\n"));
    }

    #[test]
    fn a_route_keeps_its_series_when_its_label_is_made_anew() {
        let mut registry = Registry::default();
        let requests = Requests::register(&mut registry);
        for _ in 0..3 * KNOWN_MAX {
            requests.done(&record("a", 200));
            KNOWN.with_borrow(|known| assert!(known.by_label.len() <= KNOWN_MAX));
        }
        let text = text(&registry);
        let expected = format!("status=\"200\"}} {}\n", 3 * KNOWN_MAX);
        assert!(text.contains(&expected), "{text}");
    }

    #[test]
    fn two_gateways_on_one_thread_count_apart() {
        let registries = [(); 2].map(|()| {
            let mut registry = Registry::default();
            (Requests::register(&mut registry), registry)
        });
        for (requests, _) in [&registries[0], &registries[1], &registries[0]] {
            requests.done(&record("a", 200));
        }
        for ((_, registry), count) in registries.iter().zip([2, 1]) {
            let text = text(registry);
            assert!(
                text.contains(&format!("status=\"200\"}} {count}\n")),
                "{text}"
            );
        }
    }

    #[test]
    fn what_a_thread_keeps_is_bounded_and_no_count_is_lost() {
        let mut registry = Registry::default();
        let requests = Requests::register(&mut registry);
        let routes = KNOWN_MAX / 900 + 2;
        for _ in 0..2 {
            for route in 0..routes {
                for status in 100..1000 {
                    requests.done(&record(&route.to_string(), status));
                    KNOWN.with_borrow(|known| assert!(known.len <= KNOWN_MAX));
                }
            }
        }
        // 62 statuses have names, 499 is ours, the rest of each class is one.
        let text = text(&registry);
        let series: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("http_requests_total{")?.rsplit_once(' '))
            .collect();
        assert!(series.len() < routes * 75, "{}", series.len());
        let counted: usize = series
            .iter()
            .map(|(_, n)| n.parse::<usize>().unwrap())
            .sum();
        assert_eq!(counted, 2 * routes * 900);
        for one in [
            "status=\"499\"} 2",
            "status=\"404\"} 2",
            "status=\"9xx\"} 200",
        ] {
            assert!(text.contains(one), "{one}");
        }
    }
}
