//! What the data path and the control path have in common, and nothing more.

use std::sync::Arc;

use arc_swap::ArcSwap;
use edd_route::{Published, RouteTable};

use crate::config::Config;
use crate::drain::Drain;
use crate::listener::{Doors, Gate, RequestGate};
use crate::telemetry::access::HttpRecord;
use crate::telemetry::{AccessLog, Metrics};
use crate::tls::CertStore;
use crate::upstream::Fleet;

/// One of these per process.
#[derive(Debug)]
pub struct Shared {
    /// The checked command line.
    pub config: Config,
    /// The one thing that control publishes and data reads.
    pub table: ArcSwap<RouteTable>,
    /// The certificates in force.
    pub certs: Arc<CertStore>,
    /// The listening sockets.
    pub doors: Doors,
    /// Caps on connections, and the addresses that are our own.
    pub gate: Gate,
    /// How many requests an address may make.
    pub request_gate: RequestGate,
    /// The upstreams that the table names.
    pub fleet: Fleet,
    /// Counters of the whole process.
    pub metrics: Metrics,
    /// Where the records of requests go.
    pub access: AccessLog,
    /// Whether and how fast the process is ending.
    pub drain: Drain,
}

impl Shared {
    /// The table in force. Take it once per decision and keep it.
    pub fn table(&self) -> Arc<RouteTable> {
        self.table.load_full()
    }

    /// Counts an answered request and hands its record to the access log.
    pub fn request_done(&self, record: HttpRecord) {
        self.metrics.request_done(&record);
        self.access.log(record);
    }

    /// Puts a new table in force, then ends what it no longer admits.
    pub fn swap(&self, published: Published) {
        self.metrics.table_published(&published.table);
        // Before any request can want them: names resolve, checks begin.
        self.fleet.keep(&published.table);
        self.table.store(Arc::clone(&published.table));
        published.revoke();
    }
}
