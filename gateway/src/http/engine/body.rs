//! Bodies on their way through: frame by frame, nothing kept back.
//!
//! Back-pressure is hyper's: a frame is asked for when the last one is sent.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use edd_route::Admission;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::connection::Loan;
use super::leash::Leash;
use super::service::Turn;
use crate::http::exchange::Exchange;
use crate::http::head::Version;

/// Why a body ends before its end. The other side sees a cut, never a clean end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// The side it comes from broke.
    #[error("the body broke off")]
    Broke(#[source] hyper::Error),
    /// What admitted it is over.
    #[error("no longer admitted")]
    Revoked,
    /// Nothing came for too long.
    #[error("the body stalled")]
    Stalled,
}

/// Watches one direction for silence; the timer exists only once there was some.
#[derive(Debug)]
struct Quiet {
    limit: Duration,
    /// Since when nothing came, while something is waited for.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Quiet {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: None,
            timer: None,
        }
    }

    fn heard(&mut self) {
        self.since = None;
    }

    /// Ready once nothing was heard for the limit.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = *self.since.get_or_insert_with(Instant::now) + self.limit;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        loop {
            // Moving the timer with every frame would cost more than one look too many.
            std::task::ready!(timer.as_mut().poll(cx));
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

/// How far a request's body has come, as the exchange sees it.
#[derive(Debug)]
pub(super) struct Progress {
    bytes: Rc<Cell<u64>>,
    moved: Cell<Instant>,
    waiting: Cell<bool>,
    stalled: Cell<bool>,
    broke: Cell<bool>,
}

impl Progress {
    pub(super) fn new(bytes: Rc<Cell<u64>>) -> Rc<Self> {
        Rc::new(Self {
            bytes,
            moved: Cell::new(Instant::now()),
            waiting: Cell::new(false),
            stalled: Cell::new(false),
            broke: Cell::new(false),
        })
    }

    /// From when on the upstream is to blame for silence; none while it is the client's turn.
    pub(super) fn upstream_silent_since(&self) -> Option<Instant> {
        (!self.waiting.get()).then(|| self.moved.get())
    }

    /// When the last of it came.
    pub(super) fn moved(&self) -> Instant {
        self.moved.get()
    }

    /// Whether the client stopped sending.
    pub(super) fn has_stalled(&self) -> bool {
        self.stalled.get()
    }

    /// Whether the client's body was malformed or the client left.
    pub(super) fn has_broken(&self) -> bool {
        self.broke.get()
    }
}

/// A request's body towards the upstream.
#[derive(Debug)]
pub(super) struct RequestBody(Option<Uploading>);

#[derive(Debug)]
struct Uploading {
    body: Incoming,
    progress: Rc<Progress>,
    quiet: Quiet,
}

impl RequestBody {
    pub(super) fn empty() -> Self {
        Self(None)
    }

    /// `body`, which must not stall for longer than `limit`.
    pub(super) fn new(body: Incoming, progress: Rc<Progress>, limit: Duration) -> Self {
        if body.is_end_stream() {
            return Self::empty();
        }
        Self(Some(Uploading {
            body,
            progress,
            quiet: Quiet::new(limit),
        }))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(up) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let progress = &up.progress;
        match Pin::new(&mut up.body).poll_frame(cx) {
            Poll::Pending => {
                progress.waiting.set(true);
                up.quiet.poll(cx).map(|()| {
                    progress.stalled.set(true);
                    Some(Err(BodyError::Stalled))
                })
            }
            Poll::Ready(frame) => {
                progress.waiting.set(false);
                progress.moved.set(Instant::now());
                up.quiet.heard();
                Poll::Ready(frame.map(|frame| match frame {
                    Ok(frame) => {
                        let len = frame.data_ref().map_or(0, Bytes::len);
                        progress.bytes.set(progress.bytes.get() + len as u64);
                        Ok(frame)
                    }
                    Err(error) => {
                        progress.broke.set(true);
                        Err(BodyError::Broke(error))
                    }
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|up| up.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Some(up) => up.body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

/// An answer's body towards the client.
#[derive(Debug)]
pub(super) enum ResponseBody {
    /// The gateway's own.
    Own {
        /// What is left of it.
        text: Option<Bytes>,
        /// Recorded when the answer is out.
        record: Box<Record>,
    },
    /// None; the exchange goes on without HTTP.
    Nothing,
    /// An upstream's.
    Relay(Box<Relay>),
}

/// The exchange and its place on the connection; both end with the answer's body.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) exchange: Exchange,
    pub(super) turn: Turn,
}

/// An upstream's body on its way to the client.
#[derive(Debug)]
pub(super) struct Relay {
    body: Incoming,
    admission: Admission,
    quiet: Quiet,
    /// Ends it when nobody asks for more of it.
    leash: Rc<Leash>,
    /// Ours until the answer is complete or broken.
    loan: Option<Loan>,
    record: Record,
}

impl Relay {
    /// `body`, which must not be silent for longer than `limit`.
    pub(super) fn new(
        body: Incoming,
        admission: Admission,
        limit: Duration,
        leash: Rc<Leash>,
        loan: Loan,
        record: Record,
    ) -> Box<Self> {
        let mut relay = Box::new(Self {
            body,
            admission,
            quiet: Quiet::new(limit),
            leash,
            loan: Some(loan),
            record,
        });
        relay.settle();
        if relay.loan.is_some() {
            relay.leash.fasten(&relay.admission, limit);
        }
        relay
    }

    /// Gives the connection back as soon as the body is complete, though nobody asks again.
    fn settle(&mut self) {
        if self.body.is_end_stream() {
            self.complete();
        }
    }

    fn complete(&mut self) {
        self.leash.loosen();
        if let Some(loan) = self.loan.take() {
            loan.give_back();
        }
    }

    fn cut(&mut self, why: BodyError, note: &'static str) -> BodyError {
        self.leash.loosen();
        self.loan = None;
        self.record.exchange.note(note);
        if self.record.exchange.version == Version::H10 {
            // Nothing but the end of the connection tells it where the body ends.
            self.record.turn.sever();
        }
        why
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.loan.is_some() && self.admission.is_revoked() {
            return Poll::Ready(Some(Err(self.cut(BodyError::Revoked, "revoked"))));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => self
                .quiet
                .poll(cx)
                .map(|()| Some(Err(self.cut(BodyError::Stalled, "upstream silent")))),
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.quiet.heard();
                self.leash.moved();
                let len = frame.data_ref().map_or(0, Bytes::len);
                self.record.exchange.bytes_out += len as u64;
                self.settle();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                // A revocation ends the upstream connection, which is seen here first.
                let note = match self.admission.is_revoked() {
                    true => "revoked",
                    false => "upstream broke off",
                };
                Poll::Ready(Some(Err(self.cut(BodyError::Broke(error), note))))
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if self.loan.is_some() {
            let note = match self.admission.is_revoked() {
                true => "revoked",
                false => "client left",
            };
            self.record.exchange.note(note);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Own { text, record } => Poll::Ready(text.take().map(|text| {
                record.exchange.bytes_out += text.len() as u64;
                Ok(Frame::data(text))
            })),
            Self::Nothing => Poll::Ready(None),
            Self::Relay(relay) => relay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own { text, .. } => text.is_none(),
            Self::Nothing => true,
            Self::Relay(relay) => relay.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own { text, .. } => {
                SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64))
            }
            Self::Nothing => SizeHint::with_exact(0),
            Self::Relay(relay) => relay.body.size_hint(),
        }
    }
}
