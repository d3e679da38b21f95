//! The families of requests, counted without a lock.
//!
//! To find a series in its family takes a lock that all threads share. So each
//! thread keeps the handles of the series it has met and looks up new ones
//! only; counting itself is atomic.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::access::HttpRecord;
use super::durations::Durations;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    route: Arc<str>,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RouteLabels {
    route: Arc<str>,
}

/// Requests by route, method and status, and how long they took by route. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    /// Tells whose handles a thread keeps, since a process may count for several (tests do).
    id: u64,
    counts: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Durations>,
}

impl Requests {
    /// Nothing counted, registered under their names.
    pub(super) fn register(registry: &mut Registry) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let requests = Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            counts: Family::default(),
            durations: Family::default(),
        };
        let (counts, durations) = (requests.counts.clone(), requests.durations.clone());
        registry.register("http_requests", "Requests answered", counts);
        registry.register(
            "http_request_duration_seconds",
            "Head to end of answer",
            durations,
        );
        requests
    }

    /// Counts an answered request.
    pub(super) fn done(&self, record: &HttpRecord) {
        // Fails only while the thread ends, when nobody asks any more.
        let _ = KNOWN.try_with(|known| {
            let mut known = known.borrow_mut();
            if !known.count(self, record) {
                known.learn(self, record);
                known.count(self, record);
            }
        });
    }
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// The handles that a thread keeps.
#[derive(Debug, Default)]
struct Known {
    owner: u64,
    routes: HashMap<Arc<str>, Route>,
    /// Counters of all routes together.
    len: usize,
}

#[derive(Debug)]
struct Route {
    durations: Durations,
    counts: HashMap<(&'static str, u16), Counter>,
}

/// Statuses are the upstreams' to choose, so a thread begins anew beyond this.
const KNOWN_MAX: usize = 4096;

impl Known {
    /// Counts, if the series are known.
    fn count(&self, requests: &Requests, record: &HttpRecord) -> bool {
        if self.owner != requests.id {
            return false;
        }
        let Some(route) = self.routes.get(&*record.route) else {
            return false;
        };
        let Some(count) = route.counts.get(&(record.method, record.status)) else {
            return false;
        };
        count.inc();
        route.durations.observe(record.duration);
        true
    }

    /// Looks the series up and keeps them.
    fn learn(&mut self, requests: &Requests, record: &HttpRecord) {
        if self.owner != requests.id || self.len >= KNOWN_MAX {
            *self = Self {
                owner: requests.id,
                ..Self::default()
            };
        }
        let labels = RequestLabels {
            route: Arc::clone(&record.route),
            method: record.method,
            status: record.status,
        };
        let count = requests.counts.get_or_create_owned(&labels);
        let RequestLabels { route, .. } = labels;
        let of_route = self.routes.entry(Arc::clone(&route)).or_insert_with(|| {
            let labels = RouteLabels { route };
            Route {
                durations: requests.durations.get_or_create_owned(&labels),
                counts: HashMap::new(),
            }
        });
        of_route
            .counts
            .insert((record.method, record.status), count);
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text::encode;

    use super::*;

    fn record(route: &str, status: u16) -> HttpRecord {
        HttpRecord {
            request_id: String::new(),
            revision: 0,
            peer: "192.0.2.1:1".parse().unwrap(),
            version: "1.1",
            method: "GET",
            host: String::new(),
            path: String::new(),
            route: route.into(),
            upstream: None,
            status,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::from_millis(2),
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
    fn a_series_that_a_thread_has_met_is_not_looked_up_again() {
        let mut registry = Registry::default();
        let requests = Requests::register(&mut registry);
        requests.done(&record("a", 200));
        // A look-up would make them again.
        requests.counts.clear();
        requests.durations.clear();
        requests.done(&record("a", 200));
        let nothing = text(&registry);
        assert!(!nothing.contains("route"), "{nothing}");
        requests.done(&record("a", 404));
        assert!(text(&registry).contains("status=\"404\"} 1\n"));
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
        let text = text(&registry);
        let series = text
            .lines()
            .filter(|line| line.starts_with("http_requests_total{") && line.ends_with(" 2"));
        assert_eq!(series.count(), routes * 900);
    }
}
