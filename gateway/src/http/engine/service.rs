//! Answers one request: reads the head, decides, forwards or answers.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tracing::debug;

use super::body::{Record, ResponseBody};
use super::leash::Leash;
use super::pulse::Pulse;
use super::upgrade::Switched;
use super::{fields, forward};
use crate::http::ConnectionFacts;
use crate::http::answer::{Answer, Form};
use crate::http::decide::{Ground, Labels, Verdict, decide};
use crate::http::exchange::Exchange;
use crate::http::head::{Destination, HeadView, Version};
use crate::http::policy;
use crate::http::request_id;
use crate::listener::Worker;
use crate::tcp::Fuse;

/// A client connection, as its requests share it.
#[derive(Debug)]
pub(super) struct Downstream {
    pub(super) worker: Rc<Worker>,
    pub(super) facts: ConnectionFacts,
    pub(super) pulse: Arc<Pulse>,
    /// Makes the connection's end a reset. HTTP/2 has resets of its own.
    pub(super) fuse: Fuse,
    /// Set by the request that got a 101; taken when the connection is released.
    pub(super) switched: RefCell<Option<Switched>>,
    /// Of the request that came last; taken by whoever runs its answer.
    pub(super) leash: RefCell<Option<Rc<Leash>>>,
    labels: Labels,
    turns: Cell<usize>,
}

/// A request's place on its connection, from head to the end of the answer.
#[derive(Debug)]
pub(super) struct Turn(Rc<Downstream>);

impl Turn {
    fn begin(downstream: &Rc<Downstream>) -> Self {
        downstream.turns.set(downstream.turns.get() + 1);
        downstream.pulse.begin();
        Self(Rc::clone(downstream))
    }

    /// The end of an HTTP/1 connection will be a reset: what was sent on it is not complete.
    pub(super) fn sever(&self) {
        self.0.fuse.blow();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let left = self.0.turns.get() - 1;
        self.0.turns.set(left);
        if left == 0 {
            self.0.pulse.rest();
        }
    }
}

impl Downstream {
    pub(super) fn new(worker: &Rc<Worker>, facts: ConnectionFacts, pulse: Arc<Pulse>) -> Rc<Self> {
        Rc::new(Self {
            worker: Rc::clone(worker),
            facts,
            pulse,
            fuse: Fuse::default(),
            switched: RefCell::default(),
            leash: RefCell::default(),
            labels: Labels::default(),
            turns: Cell::new(0),
        })
    }

    /// A leash for the answer to a request that has just come.
    fn leash(&self) -> Rc<Leash> {
        let leash = Rc::new(Leash::default());
        *self.leash.borrow_mut() = Some(Rc::clone(&leash));
        leash
    }

    /// Whether no request is being answered.
    pub(super) fn is_idle(&self) -> bool {
        self.turns.get() == 0
    }

    /// Whether the peer is a proxy whose words are believed.
    pub(super) fn is_trusted(&self) -> bool {
        let trusted = &self.worker.shared.config.trusted_proxies;
        policy::is_trusted(self.facts.peer.ip(), trusted)
    }

    /// The client's address, for the routes' lists.
    fn client(&self, request: &Request<Incoming>) -> IpAddr {
        let peer = self.facts.peer.ip();
        if !self.is_trusted() {
            return peer.to_canonical();
        }
        let chain = fields::chain(request.headers()).forwarded_for;
        let hops = policy::tokens(chain.as_deref().unwrap_or_default());
        policy::client_address(peer, hops, &self.worker.shared.config.trusted_proxies)
    }

    fn ground(&self, to: &Destination<'_>) -> Ground {
        let covered = |tls: &crate::tls::Secured| tls.covers.contains(to.host.as_str());
        Ground {
            door: self.facts.door,
            secure: self.facts.tls.is_some(),
            covered: self.facts.tls.as_ref().is_none_or(covered),
            public_https_port: self.worker.shared.config.public_https_port,
        }
    }
}

/// Answers `request`. Never fails: what goes wrong becomes an answer.
///
/// Cancellation safe: dropped when the client leaves, it gives everything up.
pub(super) fn answer(
    downstream: Rc<Downstream>,
    request: Request<Incoming>,
) -> impl Future<Output = Response<ResponseBody>> {
    // At once, so that the leash is there before anybody runs the answer.
    let leash = downstream.leash();
    answer_on(leash, downstream, request)
}

async fn answer_on(
    leash: Rc<Leash>,
    downstream: Rc<Downstream>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let turn = Turn::begin(&downstream);
    let shared = &downstream.worker.shared;
    let version = match request.version() {
        http::Version::HTTP_2 => Version::H2,
        http::Version::HTTP_10 => Version::H10,
        _ => Version::H11,
    };
    let mut exchange = Exchange::begin(
        shared,
        downstream.facts.peer,
        version,
        request.method().as_str(),
        request.uri().path(),
        downstream.labels.none(),
    );
    if downstream.is_trusted()
        && let Some(id) = request.headers().get(fields::X_REQUEST_ID)
        && request_id::is_valid(id.as_bytes())
        && let Ok(id) = id.to_str()
    {
        exchange.request_id = id.to_owned();
    }
    let reply = Reply::of(&request);
    let view = HeadView {
        method: request.method().as_str(),
        version,
        authority: request.uri().authority().map(|a| a.as_str()),
        host: fields::host_field(request.headers()),
    };
    let to = match view.destination() {
        Ok(to) => to,
        Err(error) => {
            exchange.note(error.to_string());
            let record = Record::new(exchange, turn);
            return reply.answer(&Answer::bad_request(error), record);
        }
    };
    exchange.host = to.host.as_str().to_owned();
    let table = shared.table();
    exchange.revision = table.revision;
    let verdict = decide(
        &table,
        &downstream.labels,
        &downstream.ground(&to),
        &to,
        request.uri().path(),
        request.uri().query(),
        downstream.client(&request),
    );
    drop(table);
    let upstream = match verdict {
        Verdict::Answer(answer, label) => {
            exchange.route = label;
            return reply.answer(&answer, Record::new(exchange, turn));
        }
        Verdict::Forward(upstream) => upstream,
    };
    exchange.route = Arc::clone(&upstream.label);
    let authority = to.authority.to_owned();
    let mut record = Record::new(exchange, turn);
    let job = forward::Job {
        downstream: &downstream,
        upstream,
        authority: &authority,
        version,
    };
    match job.run(request, &mut record).await {
        Ok(answered) => answered.into_response(&downstream, leash, record),
        Err(failure) => {
            debug!(request_id = %record.exchange.request_id, error = %failure, "not forwarded");
            record.exchange.note(failure.note());
            reply.answer(&failure.answer(), record)
        }
    }
}

impl Record {
    fn new(exchange: Exchange, turn: Turn) -> Self {
        Self { exchange, turn }
    }
}

/// How the gateway's own answers to one request look.
struct Reply {
    form: Form,
    is_head: bool,
    is_h2: bool,
}

impl Reply {
    fn of(request: &Request<Incoming>) -> Self {
        let accept = request.headers().get(header::ACCEPT);
        Self {
            form: Form::asked(accept.and_then(|a| a.to_str().ok()).unwrap_or_default()),
            is_head: request.method() == Method::HEAD,
            is_h2: request.version() == http::Version::HTTP_2,
        }
    }

    fn answer(&self, answer: &Answer, mut record: Record) -> Response<ResponseBody> {
        record.exchange.status = answer.status;
        let text = Bytes::from(answer.body(self.form, &record.exchange.request_id));
        let length = text.len();
        let request_id = HeaderValue::from_str(&record.exchange.request_id);
        let mut response = Response::new(ResponseBody::Own {
            text: (!self.is_head).then_some(text),
            record: Box::new(record),
        });
        *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or_default();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(self.form.content_type()),
        );
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        if let Ok(id) = request_id {
            headers.insert(fields::X_REQUEST_ID, id);
        }
        if let Some(location) = &answer.location
            // Targets may hold raw UTF-8, which `from_str` refuses.
            && let Ok(location) = HeaderValue::from_bytes(location.as_bytes())
        {
            headers.insert(header::LOCATION, location);
        }
        if answer.close && !self.is_h2 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
