//! From a request's head to what will be done about it, before any byte goes anywhere.
//!
//! Called with the head still in the buffer it was read into: everything that
//! is needed later is written or counted here, nothing of the head is kept.

use tokio::time::Instant;
use tracing::debug;

use super::answer::{Answer, Form};
use super::decide::{Upstream, Verdict, decide};
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::fields;
use super::head::{HeadView, is_safe};
use super::request_id;
use super::rewrite::{self, Rewrite};
use super::side::{Ask, RequestBody, RequestView};
use super::{trace, wire};

/// A request whose head was read.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Its record.
    pub(crate) exchange: Box<Exchange>,
    /// How the gateway's own answers to it look.
    pub(crate) form: Form,
    /// What is done.
    pub(crate) plan: Plan,
}

/// What is done about a request.
#[derive(Debug)]
pub(crate) enum Plan {
    /// The gateway answers.
    Answer(Answer),
    /// An upstream is asked.
    Forward(Box<Forward>),
}

/// A request for an upstream.
#[derive(Debug)]
pub(crate) struct Forward {
    /// Whom.
    pub(crate) upstream: Upstream,
    /// What.
    pub(crate) ask: Ask,
    /// Whether the client waits for a 100 before it sends its body.
    pub(crate) expects_continue: bool,
    /// Whether it may be sent again when nobody knows if it arrived.
    pub(crate) is_repeatable: bool,
}

impl Turn {
    /// Reads the head and decides.
    pub(crate) fn begin(down: &Downstream, view: &RequestView<'_>) -> Self {
        let now = Instant::now();
        let mut exchange = Exchange::begin(down, view.version, view.method, view.path, now);
        if down.is_trusted
            && let Some(id) = fields::first(view.fields, b"x-request-id")
            && request_id::is_valid(id)
            && let Ok(id) = std::str::from_utf8(id)
        {
            exchange.request_id = id.into();
        }
        let field = |name| fields::first(view.fields, name).unwrap_or_default();
        let form = Form::of(field(b"content-type"), field(b"accept"));
        exchange.is_grpc = form == Form::Grpc;
        let plan = plan(down, view, &mut exchange);
        Self {
            exchange,
            form,
            plan,
        }
    }

    /// Whether an upstream is asked with a body that is announced, and announced as empty.
    pub(crate) fn is_said_to_be_empty(&self) -> bool {
        matches!(&self.plan, Plan::Forward(forward) if forward.ask.body == RequestBody::Length(0))
    }

    /// The record and the answer of a head that cannot be read.
    pub(crate) fn refused(
        down: &Downstream,
        version: super::head::Version,
        answer: Answer,
    ) -> Self {
        let mut exchange = Exchange::begin(down, version, "", "", Instant::now());
        exchange.note(answer.message.clone());
        Self {
            exchange,
            form: Form::Text,
            plan: Plan::Answer(answer),
        }
    }
}

fn plan(down: &Downstream, view: &RequestView<'_>, exchange: &mut Exchange) -> Plan {
    let head = HeadView {
        method: view.method,
        version: view.version,
        authority: view.authority,
        host: view.host,
    };
    let to = match head.destination() {
        Ok(to) => to,
        Err(error) => {
            exchange.note(error.to_string());
            return Plan::Answer(Answer::bad_request(error));
        }
    };
    exchange.host = to.host.as_str().into();
    // A question to the server as a whole goes where its root goes.
    let path = if view.path == "*" { "/" } else { view.path };
    let shared = &down.worker.shared;
    let client = down.client(view.fields);
    if let Err(too_soon) = shared.request_gate.admit(client) {
        shared.metrics.request_refused();
        return Plan::Answer(Answer::too_many_requests(too_soon.retry_after_secs));
    }
    let listed = down.listed(client);
    let ground = down.ground(&to);
    let verdict = down.worker.decide(|table| {
        exchange.revision = table.revision;
        let labels = &down.worker.labels;
        decide(table, labels, &ground, &to, path, view.query, listed)
    });
    let upstream = match verdict {
        Verdict::Answer(answer, label) => {
            exchange.route = Some(label);
            return Plan::Answer(answer);
        }
        Verdict::Forward(upstream, label) => {
            exchange.route = Some(label);
            upstream
        }
    };
    let identity = down.identity(view.fields, to.authority);
    let trace = trace::judge(
        fields::all(view.fields, b"traceparent"),
        fields::all(view.fields, b"tracestate"),
    );
    let rewrite = Rewrite {
        authority: to.authority,
        target: upstream.path.as_deref().filter(|_| view.path != "*"),
        request_id: exchange.request_id.as_str(),
        told: down.told(),
        identity: &identity,
        trace: &trace,
    };
    let mut head = wire::lend();
    if let Err(error) = rewrite.write(view, &mut head) {
        debug!(request_id = %exchange.request_id, %error, "not forwarded");
        exchange.note("the request's head cannot be forwarded");
        return Plan::Answer(Answer::bad_request(
            "the request's head cannot be forwarded",
        ));
    }
    let has_body = !matches!(view.body, RequestBody::None | RequestBody::Length(0));
    Plan::Forward(Box::new(Forward {
        ask: Ask {
            head,
            body: view.body,
            is_head: view.method == "HEAD",
            may_switch: rewrite::upgrade_offered(view).is_some(),
            secure: down.facts.tls.is_some(),
        },
        upstream,
        expects_continue: view.expects_continue && has_body,
        is_repeatable: !has_body
            && (is_safe(view.method) || fields::first(view.fields, b"idempotency-key").is_some()),
    }))
}
