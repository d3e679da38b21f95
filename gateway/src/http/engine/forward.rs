//! Takes one request to its upstream and brings the answer's head back.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri};
use hyper::body::{Body, Incoming};
use hyper::client::conn::TrySendError;
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::body::{Progress, Record, Relay, RequestBody, ResponseBody};
use super::connection::{Loan, UpstreamConnection};
use super::fields::{self, Rewrite};
use super::leash::Leash;
use super::service::Downstream;
use super::upgrade::Switched;
use crate::http::answer::Answer;
use crate::http::decide::Upstream;
use crate::http::head::{Version, is_safe};
use crate::http::policy::Chain;
use crate::upstream::{ConnectError, connect_any};

/// One request to be forwarded.
pub(super) struct Job<'j> {
    pub(super) downstream: &'j Rc<Downstream>,
    pub(super) upstream: Upstream,
    /// The `Host` that the upstream sees.
    pub(super) authority: &'j str,
    pub(super) version: Version,
}

/// Why there is no answer from the upstream.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The connection broke before the response head was complete.
    #[error("the upstream broke off before its answer")]
    Broke(#[source] hyper::Error),
    /// The client's body was malformed, or it left.
    #[error("the request's body broke off")]
    ClientBroke,
    /// The client stopped sending its body.
    #[error("the request's body stalled")]
    ClientStalled,
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The drain's deadline came first.
    #[error("the gateway is shutting down")]
    Drained,
    /// The head cannot be rewritten.
    #[error("the request's head cannot be forwarded")]
    Head(#[from] http::Error),
    /// What admitted the request is over.
    #[error("no longer admitted")]
    Revoked,
    /// A 101 that nobody asked for.
    #[error("the upstream switched protocols unasked")]
    SwitchedUnasked,
    /// No response head in time.
    #[error("the upstream did not answer in time")]
    TimedOut,
}

impl Failure {
    /// What the client is told.
    pub(super) fn answer(&self) -> Answer {
        match self {
            Self::Broke(_)
            | Self::Connect(
                ConnectError::Loop(_) | ConnectError::Refused { .. } | ConnectError::Unresolved(_),
            )
            | Self::Revoked
            | Self::SwitchedUnasked => Answer::bad_gateway(),
            Self::ClientBroke | Self::Head(_) => Answer::bad_request(self),
            Self::ClientStalled => Answer::request_timeout(),
            Self::Connect(ConnectError::Limit(_)) => Answer::overloaded(),
            Self::Drained => Answer::draining(),
            Self::Connect(ConnectError::TimedOut) | Self::TimedOut => Answer::gateway_timeout(),
        }
    }

    /// What the access log is told.
    pub(super) fn note(&self) -> Cow<'static, str> {
        let mut note = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            note.push_str(": ");
            note.push_str(&error.to_string());
            cause = error.source();
        }
        note.into()
    }
}

/// An upstream's answer whose head is here.
pub(super) struct Answered {
    response: Response<Incoming>,
    /// The client's side of a switch that the upstream agreed to.
    switch: Option<OnUpgrade>,
    loan: Loan,
    upstream: Upstream,
    silence_max: Duration,
}

impl Answered {
    /// The answer towards the client. After a 101 the connection is left to be joined.
    pub(super) fn into_response(
        mut self,
        downstream: &Downstream,
        leash: Rc<Leash>,
        mut record: Record,
    ) -> Response<ResponseBody> {
        let server = hyper::upgrade::on(&mut self.response);
        let (mut head, body) = self.response.into_parts();
        head.version = http::Version::HTTP_11;
        head.extensions.clear();
        let exchange = &mut record.exchange;
        exchange.status = head.status.as_u16();
        let request_id = &exchange.request_id;
        fields::rewrite_response(&mut head.headers, request_id, self.switch.is_some());
        let admission = self.upstream.admission;
        let Some(client) = self.switch else {
            let limit = self.silence_max;
            let body = Relay::new(body, admission, limit, leash, self.loan, record);
            return Response::from_parts(head, ResponseBody::Relay(body));
        };
        let switched = Switched {
            client,
            server,
            admission,
            record,
            loan: self.loan,
        };
        downstream.pulse.switch();
        *downstream.switched.borrow_mut() = Some(switched);
        Response::from_parts(head, ResponseBody::Nothing)
    }
}

impl Job<'_> {
    /// Sends `request` and waits for the head of the answer, within the route's time.
    ///
    /// Sent again, at most twice, if a reused connection turns out to be dead:
    /// when nothing of the request was written, or nothing depends on how often it arrives.
    pub(super) async fn run(
        self,
        mut request: Request<Incoming>,
        record: &mut Record,
    ) -> Result<Answered, Failure> {
        let config = &self.downstream.worker.shared.config;
        let upgrade = fields::upgrade_asked(self.version, request.headers());
        let switch = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let progress = Progress::new(Rc::clone(&record.exchange.bytes_in));
        let mut request = self.rewrite(request, upgrade, &progress, record)?;
        let replayable = request.body().is_end_stream() && is_safe(request.method().as_str());
        let mut retries = 0;
        loop {
            // The second time nothing is left to chance.
            let reuse = retries < RETRIES_MAX;
            let (mut loan, reused) = self.connection(reuse).await?;
            record.exchange.upstream = Some(loan.connection.peer.to_string());
            loan.upload = Some(Rc::clone(&progress));
            let spare = (reused && replayable).then(|| copy(&request));
            let sent = self.send(&mut loan.connection, request, &progress);
            request = match sent.await {
                Ok(response) => {
                    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                    if switches && switch.is_none() {
                        return Err(Failure::SwitchedUnasked);
                    }
                    return Ok(Answered {
                        response,
                        switch: switch.filter(|_| switches),
                        loan,
                        upstream: self.upstream,
                        silence_max: config.timeouts.stream_idle,
                    });
                }
                Err(Attempt::Unsent(unsent, _)) if reused => *unsent,
                Err(Attempt::Unsent(_, error) | Attempt::Failed(Failure::Broke(error))) => {
                    self.check()?;
                    // Garbage is an answer of a kind: asking again would not be the first time.
                    let spare = spare.filter(|_| !error.is_parse());
                    spare.ok_or(Failure::Broke(error))?
                }
                Err(Attempt::Failed(failure)) => return Err(failure),
            };
            retries += 1;
        }
    }

    /// The request as the upstream gets it.
    fn rewrite(
        &self,
        request: Request<Incoming>,
        upgrade: Option<HeaderValue>,
        progress: &Rc<Progress>,
        record: &Record,
    ) -> Result<Request<RequestBody>, Failure> {
        let (mut head, body) = request.into_parts();
        let facts = &self.downstream.facts;
        let chain = match self.downstream.is_trusted() {
            true => fields::chain(&head.headers),
            false => Chain::default(),
        };
        let secure = facts.tls.is_some();
        let rewrite = Rewrite {
            version: self.version,
            authority: self.authority,
            request_id: &record.exchange.request_id,
            forwarding: chain.extend(facts.peer.ip(), secure, self.authority),
            upgrade,
        };
        rewrite
            .apply(&mut head.headers)
            .map_err(http::Error::from)?;
        frame(&mut head.headers, &body);
        head.uri = origin_form(&head.uri, self.upstream.path.as_deref())?;
        head.version = http::Version::HTTP_11;
        head.extensions.clear();
        let limit = self.downstream.worker.shared.config.timeouts.body;
        let body = RequestBody::new(body, Rc::clone(progress), limit);
        Ok(Request::from_parts(head, body))
    }

    /// A kept connection if `reuse` and there is one, else a new one; whether it was kept.
    async fn connection(&self, reuse: bool) -> Result<(Loan, bool), Failure> {
        let worker = &self.downstream.worker;
        let Upstream {
            key,
            address,
            admission,
            ..
        } = &self.upstream;
        let kept = reuse
            .then(|| Loan::of_kept(worker, key, admission))
            .flatten();
        let reused = kept.is_some();
        let loan = match kept {
            Some(loan) => loan,
            None => {
                let shared = &worker.shared;
                let timeout = shared.config.timeouts.connect;
                let names = &worker.pool.names;
                let (stream, peer) = tokio::select! {
                    biased;
                    // Its address may be another's by the time it answers.
                    () = admission.revoked() => return Err(Failure::Revoked),
                    connected = connect_any(address, timeout, shared, names) => connected?,
                };
                let opened = UpstreamConnection::open(stream, peer, admission.clone(), shared);
                let connection = opened.await.map_err(Failure::Broke)?;
                Loan::new(connection, worker, key.clone())
            }
        };
        self.check()?;
        Ok((loan, reused))
    }

    /// Whether the request may go on: its admission holds and the process is not at its end.
    fn check(&self) -> Result<(), Failure> {
        if self.upstream.admission.is_revoked() {
            return Err(Failure::Revoked);
        }
        if self.downstream.worker.shared.drain.cut().is_cancelled() {
            return Err(Failure::Drained);
        }
        Ok(())
    }

    /// Sends and waits. The upstream's time runs while it is its turn to do something.
    async fn send(
        &self,
        connection: &mut UpstreamConnection,
        request: Request<RequestBody>,
        progress: &Progress,
    ) -> Result<Response<Incoming>, Attempt> {
        let limit = match self.upstream.timeout {
            Some(limit) => limit,
            None => self.downstream.worker.shared.config.timeouts.upstream,
        };
        let started = Instant::now();
        let mut answer = std::pin::pin!(connection.sender.try_send_request(request));
        let mut timer = std::pin::pin!(tokio::time::sleep_until(started + limit));
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer.map_err(|e| Attempt::new(e, progress)),
                () = &mut timer => {}
            }
            let now = Instant::now();
            let due = match progress.upstream_silent_since() {
                Some(since) => since.max(started) + limit,
                // The client's own limit ends it if need be.
                None => now + limit,
            };
            if due <= now {
                return Err(Attempt::Failed(Failure::TimedOut));
            }
            timer.as_mut().reset(due);
        }
    }
}

/// Why one attempt did not bring an answer.
enum Attempt {
    /// It may have reached the upstream.
    Failed(Failure),
    /// Not one byte was written.
    Unsent(Box<Request<RequestBody>>, hyper::Error),
}

impl Attempt {
    fn new(mut error: TrySendError<Request<RequestBody>>, progress: &Progress) -> Self {
        match error.take_message() {
            Some(request) => Self::Unsent(Box::new(request), error.into_error()),
            None if progress.has_stalled() => Self::Failed(Failure::ClientStalled),
            None if progress.has_broken() => Self::Failed(Failure::ClientBroke),
            None => Self::Failed(Failure::Broke(error.into_error())),
        }
    }
}

/// A second copy of a request that has no body.
fn copy(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Writes the framing anew, from what the body is and not from what the client called it.
fn frame(headers: &mut http::HeaderMap, body: &Incoming) {
    let had_length = headers.remove(header::CONTENT_LENGTH).is_some();
    match body.size_hint().exact() {
        Some(0) if !had_length => {}
        Some(length) => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        None => {
            headers.insert(
                header::TRANSFER_ENCODING,
                HeaderValue::from_static("chunked"),
            );
        }
    }
}

/// The target as HTTP/1.1 upstreams expect it: path and query alone.
fn origin_form(uri: &Uri, changed: Option<&str>) -> Result<Uri, http::Error> {
    let path = match changed {
        Some(path) => PathAndQuery::try_from(path)?,
        None => uri
            .path_and_query()
            .cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("/")),
    };
    Uri::builder().path_and_query(path).build()
}

const RETRIES_MAX: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_become_origin_form_unchanged_byte_by_byte() {
        for (uri, changed, expected) in [
            ("/a%2Fb?x=%20&y", None, "/a%2Fb?x=%20&y"),
            ("http://a.example/x?y", None, "/x?y"),
            ("http://a.example", None, "/"),
            ("http://a.example?q", None, "/?q"),
            ("/strip/x", Some("/x?q"), "/x?q"),
            (
                "/strip//evil.example/x",
                Some("//evil.example/x"),
                "//evil.example/x",
            ),
        ] {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(origin_form(&uri, changed).unwrap().to_string(), expected);
        }
    }
}
