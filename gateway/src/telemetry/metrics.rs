//! The metric families of the gateway itself, prefix `edd_gateway_`.
//!
//! Label values come from fixed lists or from the operator's own routes, never
//! from clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use edd_route::RouteTable;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::access::HttpRecord;

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

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ListenerLabels {
    listener: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct HandshakeLabels {
    result: &'static str,
    version: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    reason: &'static str,
}

type Level = Gauge<i64, AtomicI64>;

/// All counters of the gateway; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<RouteLabels, Histogram>,
    connections: Family<ListenerLabels, Level>,
    refused: Family<ReasonLabels, Counter>,
    handshakes: Family<HandshakeLabels, Counter>,
    upstream: Family<StateLabels, Level>,
    ssh_sessions: Level,
    ssh_auth: Family<ResultLabels, Counter>,
    revision: Gauge<u64, AtomicU64>,
    entries: Family<KindLabels, Level>,
    reload_failures: Family<KindLabels, Counter>,
    panics: Counter,
}

/// Counts one live thing for as long as it is held.
#[derive(Debug)]
pub struct ConnectionGauge(Level);

impl ConnectionGauge {
    fn new(level: &Level) -> Self {
        level.inc();
        Self(level.clone())
    }
}

impl Drop for ConnectionGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Families with nothing counted, registered under their names.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS)),
            connections: Family::default(),
            refused: Family::default(),
            handshakes: Family::default(),
            upstream: Family::default(),
            ssh_sessions: Level::default(),
            ssh_auth: Family::default(),
            revision: Gauge::default(),
            entries: Family::default(),
            reload_failures: Family::default(),
            panics: Counter::default(),
        };
        let m = metrics.clone();
        registry.register("http_requests", "Requests answered", m.requests);
        registry.register(
            "http_request_duration_seconds",
            "Head to end of answer",
            m.request_seconds,
        );
        registry.register("connections", "Open client connections", m.connections);
        registry.register(
            "connections_refused",
            "Client connections refused",
            m.refused,
        );
        registry.register("tls_handshakes", "TLS handshakes", m.handshakes);
        registry.register(
            "upstream_connections",
            "Connections to upstreams",
            m.upstream,
        );
        registry.register(
            "ssh_sessions",
            "SSH client connections logged in",
            m.ssh_sessions,
        );
        registry.register("ssh_auth", "SSH authentication attempts", m.ssh_auth);
        registry.register(
            "route_table_revision",
            "Revision of the table in force",
            m.revision,
        );
        registry.register(
            "route_table_entries",
            "Entries of the table in force",
            m.entries,
        );
        registry.register(
            "reload_failures",
            "Refused files, the old ones stay",
            m.reload_failures,
        );
        registry.register("panics", "Connections lost to a bug", m.panics);
        metrics
    }

    /// Counts an answered request.
    pub fn request_done(&self, record: &HttpRecord) {
        let labels = RequestLabels {
            route: Arc::clone(&record.route),
            method: record.method,
            status: record.status,
        };
        self.requests.get_or_create(&labels).inc();
        let labels = RouteLabels {
            route: Arc::clone(&record.route),
        };
        self.request_seconds
            .get_or_create(&labels)
            .observe(record.duration.as_secs_f64());
    }

    /// Counts a client connection of a listener (`http`, `https`, `ssh`, `dynamic`) while it is held.
    pub fn connection(&self, listener: &'static str) -> ConnectionGauge {
        ConnectionGauge::new(&self.connections.get_or_create(&ListenerLabels { listener }))
    }

    /// Counts a client connection that was refused: `limit`, `address_limit`, `loop`, `no_rule`, ….
    pub fn connection_refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts a TLS handshake: result `ok`, `failed`, `timeout`; version `1.2`, `1.3` or `none`.
    pub fn tls_handshake(&self, result: &'static str, version: &'static str) {
        self.handshakes
            .get_or_create(&HandshakeLabels { result, version })
            .inc();
    }

    /// Counts an upstream connection in a state (`active`, `idle`) while it is held.
    pub fn upstream_connection(&self, state: &'static str) -> ConnectionGauge {
        ConnectionGauge::new(&self.upstream.get_or_create(&StateLabels { state }))
    }

    /// Counts an SSH session while it is held.
    pub fn ssh_session(&self) -> ConnectionGauge {
        ConnectionGauge::new(&self.ssh_sessions)
    }

    /// Counts an SSH authentication: `accepted`, `refused`, `timeout`, ….
    pub fn ssh_auth(&self, result: &'static str) {
        self.ssh_auth.get_or_create(&ResultLabels { result }).inc();
    }

    /// Records the table that is now in force.
    pub fn table_published(&self, table: &RouteTable) {
        self.revision.set(table.revision);
        let kinds = [
            ("static_routes", table.statics().iter().len()),
            ("containers", table.containers().len()),
            ("key_owners", table.key_owners().len()),
        ];
        for (kind, count) in kinds {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.entries.get_or_create(&KindLabels { kind }).set(count);
        }
    }

    /// Counts a file that was refused: `routes` or `certificate`.
    pub fn reload_failed(&self, kind: &'static str) {
        self.reload_failures
            .get_or_create(&KindLabels { kind })
            .inc();
    }

    /// Counts a connection lost to a panic.
    pub fn panicked(&self) {
        self.panics.inc();
    }
}

const REQUEST_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];
