//! The metric families of the gateway itself, prefix `edd_gateway_`.
//!
//! Label values come from fixed lists or from the operator's own routes, never
//! from clients.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::{SystemTime, UNIX_EPOCH};

use edd_route::RouteTable;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::access::HttpRecord;
use super::requests::Requests;

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

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TypeLabels {
    r#type: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DirectionLabels {
    direction: &'static str,
}

type Level = Gauge<i64, AtomicI64>;

/// All counters of the gateway; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Requests,
    connections: Family<ListenerLabels, Level>,
    refused: Family<ReasonLabels, Counter>,
    handshakes: Family<HandshakeLabels, Counter>,
    resumptions: Counter,
    requests_refused: Counter,
    upstream_active: Level,
    upstream_idle: Level,
    upstream_checks: Family<ResultLabels, Counter>,
    upstream_retries: Family<ResultLabels, Counter>,
    upstream_trips: Family<ReasonLabels, Counter>,
    ssh_sessions: Level,
    ssh_auth: Family<ResultLabels, Counter>,
    ssh_auth_delayed: Counter,
    ssh_channels: Family<TypeLabels, Counter>,
    ssh_open_failures: Family<ReasonLabels, Counter>,
    ssh_bytes: Family<DirectionLabels, Counter>,
    ssh_recordings: Family<ResultLabels, Counter>,
    ssh_buffer_limit_closed: Counter,
    revision: Gauge<u64, AtomicU64>,
    entries: Family<KindLabels, Level>,
    reload_failures: Family<KindLabels, Counter>,
    stale_since: Gauge<u64, AtomicU64>,
    snapshot_wanted: Gauge<u64, AtomicU64>,
    digest_drift: Counter,
    digest_equal: Gauge<u64, AtomicU64>,
    panics: Counter,
    h2_ended: Family<ReasonLabels, Counter>,
}

/// The kinds of refused files.
pub const ROUTES: &str = "routes";
/// Likewise.
pub const CERTIFICATE: &str = "certificate";

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

/// Counts one upstream connection for as long as it is held: in use, or kept for reuse.
#[derive(Debug)]
pub struct UpstreamGauge {
    active: Level,
    idle: Level,
    is_idle: bool,
}

impl UpstreamGauge {
    /// It is in use from now on.
    pub fn set_active(&mut self) {
        if std::mem::replace(&mut self.is_idle, false) {
            self.idle.dec();
            self.active.inc();
        }
    }

    /// It is kept for reuse from now on.
    pub fn set_idle(&mut self) {
        if !std::mem::replace(&mut self.is_idle, true) {
            self.active.dec();
            self.idle.inc();
        }
    }
}

impl Drop for UpstreamGauge {
    fn drop(&mut self) {
        match self.is_idle {
            true => self.idle.dec(),
            false => self.active.dec(),
        };
    }
}

/// Counts the data of SSH channels.
#[derive(Clone, Debug)]
pub struct SshBytes {
    arrived: Counter,
    sent: Counter,
}

impl SshBytes {
    /// From a client.
    pub fn arrived(&self, bytes: usize) {
        self.arrived.inc_by(bytes as u64);
    }

    /// To a client.
    pub fn sent(&self, bytes: usize) {
        self.sent.inc_by(bytes as u64);
    }
}

impl Metrics {
    /// Families with nothing counted, registered under their names.
    pub fn register(registry: &mut Registry) -> Self {
        // Series that requests change are found here, once.
        let upstream = Family::<StateLabels, Level>::default();
        let upstream_in = |state| upstream.get_or_create_owned(&StateLabels { state });
        let metrics = Self {
            requests: Requests::register(registry),
            connections: Family::default(),
            refused: Family::default(),
            handshakes: Family::default(),
            resumptions: Counter::default(),
            requests_refused: Counter::default(),
            upstream_active: upstream_in("active"),
            upstream_idle: upstream_in("idle"),
            upstream_checks: Family::default(),
            upstream_retries: Family::default(),
            upstream_trips: Family::default(),
            ssh_sessions: Level::default(),
            ssh_auth: Family::default(),
            ssh_auth_delayed: Counter::default(),
            ssh_channels: Family::default(),
            ssh_open_failures: Family::default(),
            ssh_bytes: Family::default(),
            ssh_recordings: Family::default(),
            ssh_buffer_limit_closed: Counter::default(),
            revision: Gauge::default(),
            entries: Family::default(),
            reload_failures: Family::default(),
            stale_since: Gauge::default(),
            snapshot_wanted: Gauge::default(),
            digest_drift: Counter::default(),
            digest_equal: Gauge::default(),
            panics: Counter::default(),
            h2_ended: Family::default(),
        };
        // An alert sees a counter grow only from a value that it has seen before.
        for kind in [ROUTES, CERTIFICATE] {
            drop(metrics.reload_failures.get_or_create(&KindLabels { kind }));
        }
        let m = metrics.clone();
        registry.register("connections", "Open client connections", m.connections);
        registry.register(
            "connections_refused",
            "Client connections refused",
            m.refused,
        );
        registry.register("tls_handshakes", "TLS handshakes", m.handshakes);
        registry.register(
            "tls_resumptions",
            "TLS handshakes by ticket, of those that succeeded",
            m.resumptions,
        );
        registry.register(
            "requests_refused",
            "Requests above --max-requests-per-ip",
            m.requests_refused,
        );
        registry.register("upstream_connections", "Connections to upstreams", upstream);
        registry.register(
            "upstream_checks",
            "Active checks of targets",
            m.upstream_checks,
        );
        registry.register(
            "upstream_retries",
            "Requests sent again, or not for want of budget",
            m.upstream_retries,
        );
        registry.register(
            "upstream_trips",
            "Targets left alone for a while because they kept failing",
            m.upstream_trips,
        );
        registry.register(
            "ssh_sessions",
            "SSH client connections logged in",
            m.ssh_sessions,
        );
        registry.register("ssh_auth", "SSH authentication attempts", m.ssh_auth);
        registry.register(
            "ssh_auth_delayed",
            "SSH keys refused with a delay, for there were many of that address",
            m.ssh_auth_delayed,
        );
        registry.register("ssh_channels", "SSH channels opened", m.ssh_channels);
        registry.register(
            "ssh_open_failures",
            "SSH channels that were not opened",
            m.ssh_open_failures,
        );
        registry.register(
            "ssh_bytes",
            "Data of SSH channels, in from clients or out to them",
            m.ssh_bytes,
        );
        registry.register(
            "ssh_recordings",
            "Recordings of terminal sessions, begun and how they ended",
            m.ssh_recordings,
        );
        registry.register(
            "ssh_buffer_limit_closed",
            "SSH channels closed because all together held too much",
            m.ssh_buffer_limit_closed,
        );
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
        registry.register(
            "stale_since_timestamp_seconds",
            "Since when the table may be behind the events, Unix time; 0: it is not",
            m.stale_since,
        );
        registry.register(
            "snapshot_wanted",
            "1: the stream lost events before they were read, and compute is asked for a snapshot",
            m.snapshot_wanted,
        );
        registry.register(
            "digest_drift",
            "Comparisons that found the state to differ from compute's",
            m.digest_drift,
        );
        registry.register(
            "digest_equal_timestamp_seconds",
            "When the state was last found equal to compute's, Unix time; 0: never",
            m.digest_equal,
        );
        registry.register("panics", "Connections lost to a bug", m.panics);
        registry.register(
            "h2_connections_ended",
            "HTTP/2 client connections ended for what they sent",
            m.h2_ended,
        );
        metrics
    }

    /// Counts an answered request.
    pub fn request_done(&self, record: &HttpRecord) {
        self.requests.done(record);
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

    /// Counts a request of an address that has made too many.
    pub fn request_refused(&self) {
        self.requests_refused.inc();
    }

    /// Counts a TLS handshake that a ticket shortened.
    pub fn tls_resumed(&self) {
        self.resumptions.inc();
    }

    /// Counts an upstream connection while it is held, at first as one that is in use.
    pub fn upstream(&self) -> UpstreamGauge {
        self.upstream_active.inc();
        UpstreamGauge {
            active: self.upstream_active.clone(),
            idle: self.upstream_idle.clone(),
            is_idle: false,
        }
    }

    /// Counts an upstream connection that is in use while it is held.
    pub fn upstream_active(&self) -> ConnectionGauge {
        ConnectionGauge::new(&self.upstream_active)
    }

    /// Counts an upstream connection that is kept for reuse while it is held.
    pub fn upstream_idle(&self) -> ConnectionGauge {
        ConnectionGauge::new(&self.upstream_idle)
    }

    /// Counts an active check of a target.
    pub fn upstream_checked(&self, well: bool) {
        let result = if well { "ok" } else { "failed" };
        self.upstream_checks
            .get_or_create(&ResultLabels { result })
            .inc();
    }

    /// Counts a request that is `sent_again`, or not because it is `over_budget`.
    pub fn upstream_retried(&self, result: &'static str) {
        self.upstream_retries
            .get_or_create(&ResultLabels { result })
            .inc();
    }

    /// Counts a target that is `ejected` (others take over) or `broken` (none can).
    pub fn upstream_tripped(&self, reason: &'static str) {
        self.upstream_trips
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// Whether any upstream connection is kept for reuse.
    pub fn has_idle_upstream(&self) -> bool {
        self.upstream_idle.get() > 0
    }

    /// Counts an SSH session while it is held.
    pub fn ssh_session(&self) -> ConnectionGauge {
        ConnectionGauge::new(&self.ssh_sessions)
    }

    /// Counts an SSH authentication: `accepted`, `refused`, `timeout`, ….
    pub fn ssh_auth(&self, result: &'static str) {
        self.ssh_auth.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts a refused SSH key that was answered late.
    pub fn ssh_auth_delayed(&self) {
        self.ssh_auth_delayed.inc();
    }

    /// Counts an SSH channel that was opened, by its type as the protocol names it.
    pub fn ssh_channel(&self, r#type: &'static str) {
        self.ssh_channels
            .get_or_create(&TypeLabels { r#type })
            .inc();
    }

    /// Counts an SSH channel that was not opened: `connect_failed`, `prohibited`, ….
    pub fn ssh_open_failed(&self, reason: &'static str) {
        self.ssh_open_failures
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// Counts an SSH channel that was closed for the memory that it held.
    pub fn ssh_buffer_limit_closed(&self) {
        self.ssh_buffer_limit_closed.inc();
    }

    /// Counts the data of SSH channels.
    pub fn ssh_bytes(&self) -> SshBytes {
        let counter = |direction| {
            let family = &self.ssh_bytes;
            family.get_or_create_owned(&DirectionLabels { direction })
        };
        SshBytes {
            arrived: counter("in"),
            sent: counter("out"),
        }
    }

    /// Counts a recording that has `begun`, or how it ended: `complete`, `too_large`, `torn`,
    /// `failed`.
    pub fn ssh_recording(&self, result: &'static str) {
        self.ssh_recordings
            .get_or_create(&ResultLabels { result })
            .inc();
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

    /// Counts a file that was refused: [`ROUTES`] or [`CERTIFICATE`].
    pub fn reload_failed(&self, kind: &'static str) {
        self.reload_failures
            .get_or_create(&KindLabels { kind })
            .inc();
    }

    /// Since when the table may be behind the events; none: it is not.
    pub fn stale_since(&self, since: Option<SystemTime>) {
        let since = since.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
        self.stale_since
            .set(since.map_or(0, |since| since.as_secs()));
    }

    /// Whether the stream lost events before they were read, and no snapshot has
    /// told them since.
    pub fn snapshot_wanted(&self, wanted: bool) {
        self.snapshot_wanted.set(u64::from(wanted));
    }

    /// Counts a comparison that found the state to differ from compute's.
    pub fn digest_drifted(&self) {
        self.digest_drift.inc();
    }

    /// The state was found equal to compute's at this time.
    pub fn digest_equal(&self, at: SystemTime) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.digest_equal.set(since.as_secs());
    }

    /// Counts an HTTP/2 connection ended with a GOAWAY for what its client sent: `rapid_reset`,
    /// `control_flood`, `empty_flood`, `calm`, `protocol`, `flow_control`, ….
    pub fn h2_ended(&self, reason: &'static str) {
        self.h2_ended.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts a connection lost to a panic.
    pub fn panicked(&self) {
        self.panics.inc();
    }
}
