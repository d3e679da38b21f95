//! The record of one request and its answer, from head to last byte.
//!
//! Begun when the head is read, filled in on the way, and written to metrics
//! and access log when it is dropped: however an exchange ends, it is recorded
//! once.

use std::borrow::Cow;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::head::{Version, method_label};
use super::request_id;
use crate::shared::Shared;
use crate::telemetry::access::HttpRecord;

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Exchange {
    shared: Arc<Shared>,
    started: Instant,
    peer: SocketAddr,
    /// What the client speaks.
    pub(crate) version: Version,
    method: &'static str,
    /// `X-Request-ID` of request and answer.
    pub(crate) request_id: String,
    /// The table that decided; 0 before.
    pub(crate) revision: u64,
    /// Host as looked up; empty if it is bad.
    pub(crate) host: String,
    /// Raw path without the query.
    pub(crate) path: String,
    /// The route's metric label.
    pub(crate) route: Arc<str>,
    /// Who was asked.
    pub(crate) upstream: Option<String>,
    /// The answer's status.
    pub(crate) status: u16,
    /// Body bytes from the client; the engine counts them.
    pub(crate) bytes_in: Rc<Cell<u64>>,
    /// Body bytes to the client.
    pub(crate) bytes_out: u64,
    /// Whether its answers have no bodies.
    pub(crate) is_head: bool,
    /// Why it was refused or ended early; the first reason stays.
    note: Option<Cow<'static, str>>,
}

impl Exchange {
    /// Begins the record of a request that came with `method` and `path`.
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        peer: SocketAddr,
        version: Version,
        method: &str,
        path: &str,
        route: Arc<str>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            started: Instant::now(),
            peer,
            version,
            method: method_label(method),
            request_id: request_id::generate(),
            revision: 0,
            host: String::new(),
            path: path.to_owned(),
            route,
            upstream: None,
            status: CLIENT_GONE,
            bytes_in: Rc::default(),
            bytes_out: 0,
            is_head: method == "HEAD",
            note: None,
        }
    }

    /// Says why it was refused or ends early; only the first reason counts.
    pub(crate) fn note(&mut self, why: impl Into<Cow<'static, str>>) {
        if self.note.is_none() {
            self.note = Some(why.into());
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let ended = Instant::now();
        let record = HttpRecord {
            request_id: self.request_id.as_str().into(),
            revision: self.revision,
            peer: self.peer,
            version: self.version.label(),
            method: self.method,
            host: self.host.as_str().into(),
            path: self.path.as_str().into(),
            route: Arc::clone(&self.route),
            upstream: self.upstream.as_deref().map(Into::into),
            status: self.status,
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out,
            duration: ended.duration_since(self.started),
            ended,
            note: self.note.take(),
        };
        self.shared.request_done(record);
    }
}

/// The status of a request whose client left before the answer, as nginx writes it.
const CLIENT_GONE: u16 = 499;
