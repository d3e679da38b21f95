//! The record of one request and its answer, from head to last byte.
//!
//! Begun when the head is read, filled in on the way, and written to metrics
//! and access log when it is dropped: however an exchange ends, it is recorded
//! once.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use super::downstream::Downstream;
use super::head::{Version, method_label};
use super::request_id;
use crate::listener::Worker;
use crate::telemetry::Text;
use crate::telemetry::access::HttpRecord;

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Exchange {
    worker: Rc<Worker>,
    /// When its head was read.
    pub(crate) begun: Instant,
    /// When the last of its answer was written; none: when it is dropped.
    ended: Option<Instant>,
    peer: SocketAddr,
    /// What the client speaks.
    pub(crate) version: Version,
    method: &'static str,
    /// `X-Request-ID` of request and answer.
    pub(crate) request_id: Text<40>,
    /// The table that decided; 0 before.
    pub(crate) revision: u64,
    /// Host as looked up; empty if it is bad.
    pub(crate) host: Text<40>,
    /// Raw path without the query.
    path: Text<64>,
    /// The route's metric label; none before it is known.
    pub(crate) route: Option<Arc<str>>,
    /// Who was asked.
    pub(crate) upstream: Option<SocketAddr>,
    /// The answer's status.
    pub(crate) status: u16,
    /// Whether it is a gRPC call: those have another status in their trailers.
    pub(crate) is_grpc: bool,
    /// That status, where there is one.
    pub(crate) grpc_status: Option<u16>,
    /// Body bytes from the client.
    pub(crate) bytes_in: u64,
    /// Body bytes to the client.
    pub(crate) bytes_out: u64,
    /// Whether its answers have no bodies.
    pub(crate) is_head: bool,
    /// Why it was refused or ended early; the first reason stays.
    note: Option<Cow<'static, str>>,
}

impl Exchange {
    /// Begins the record of a request whose head was read `now`.
    pub(crate) fn begin(
        down: &Downstream,
        version: Version,
        method: &str,
        path: &str,
        now: Instant,
    ) -> Box<Self> {
        // It goes from hand to hand, and is large for that.
        Box::new(Self {
            worker: Rc::clone(&down.worker),
            begun: now,
            ended: None,
            peer: down.facts.peer,
            version,
            method: method_label(method),
            request_id: request_id::generate(now),
            revision: 0,
            host: Text::default(),
            path: path.into(),
            route: None,
            upstream: None,
            status: CLIENT_GONE,
            is_grpc: false,
            grpc_status: None,
            bytes_in: 0,
            bytes_out: 0,
            is_head: method == "HEAD",
            note: None,
        })
    }

    /// Says why it was refused or ends early; only the first reason counts.
    pub(crate) fn note(&mut self, why: impl Into<Cow<'static, str>>) {
        if self.note.is_none() {
            self.note = Some(why.into());
        }
    }

    /// Looks for the status of a gRPC call in a head or in trailers.
    pub(crate) fn look_for_grpc_status<'v>(
        &mut self,
        mut fields: impl Iterator<Item = (&'v [u8], &'v [u8])>,
    ) {
        if !self.is_grpc {
            return;
        }
        let found = fields.find(|(name, _)| name.eq_ignore_ascii_case(b"grpc-status"));
        let text = found.and_then(|(_, value)| std::str::from_utf8(value).ok());
        let digits = text.filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        if let Some(status) = digits.and_then(|text| text.parse().ok()) {
            self.grpc_status = Some(status);
        }
    }

    /// The last of the answer was written then.
    pub(crate) fn ended(&mut self, at: Instant) {
        self.ended = Some(at);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let ended = self.ended.unwrap_or_else(Instant::now);
        let duration = ended.saturating_duration_since(self.begun);
        let record = HttpRecord {
            request_id: std::mem::take(&mut self.request_id),
            revision: self.revision,
            peer: self.peer,
            version: self.version.label(),
            method: self.method,
            host: std::mem::take(&mut self.host),
            path: std::mem::take(&mut self.path),
            route: self
                .route
                .take()
                .unwrap_or_else(|| self.worker.labels.none()),
            upstream: self.upstream,
            status: self.status,
            grpc_status: self.grpc_status,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            duration,
            ended: ended.into_std(),
            note: self.note.take(),
        };
        self.worker.shared.request_done(record);
    }
}

/// The status of a request whose client left before the answer, as nginx writes it.
const CLIENT_GONE: u16 = 499;
