//! The task of one HTTP/2 client connection.
//!
//! It drives the h2 crate and all streams in one place: what the streams write
//! in one round goes to the socket as one piece. A stream is polled when it is
//! woken, not when the connection is. Ends by itself, after silence, when the
//! client sends too much of something, with the drain, or with the admission.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use edd_route::Admission;
use h2::server::Connection;
use h2::{Ping, PingPong, Reason};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::debug;

use super::Opened;
use super::coalesce::Coalesced;
use super::gather::Gather;
use super::meter::Meter;
use super::stream::Link;
use super::work::Work;
use crate::http::downstream::Downstream;
use crate::listener::Worker;

/// What ends a connection from outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Happened {
    /// The drain's deadline has passed.
    Cut,
    /// The process drains.
    Draining,
    /// What admitted the connection is over.
    Revoked,
}

/// Ends with the first thing that ends the connection from outside.
async fn outside(worker: Rc<Worker>, admission: Admission, draining: bool) -> Happened {
    let drain = &worker.shared.drain;
    let (signal, happened) = match draining {
        false => (drain.token(), Happened::Draining),
        true => (drain.cut(), Happened::Cut),
    };
    tokio::select! {
        biased;
        () = admission.revoked() => Happened::Revoked,
        () = signal.cancelled() => happened,
    }
}

/// A connection whose handshake is done.
pub(super) struct Task<I> {
    down: Rc<Downstream>,
    worker: Rc<Worker>,
    admission: Admission,
    h2: Connection<Coalesced<I, Meter>, Bytes>,
    io: Coalesced<I, Meter>,
    link: Rc<Link>,
    work: Work<Opened, Happened>,
    gather: Arc<Gather>,
    waker: Waker,
    timer: Pin<Box<Sleep>>,
    rest: Rest,
    pings: Option<PingPong>,
    /// When the last ping was sent.
    pinged: Option<Instant>,
    /// It was told to go for what it sent.
    abused: bool,
}

/// How a connection is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Over {
    /// From outside, or because the client is gone: there is nothing to wait for.
    AtOnce,
    /// The client may still have to read why.
    Told,
}

/// Whether anything is going on.
#[derive(Clone, Copy, Debug)]
enum Rest {
    /// A stream is open.
    Busy,
    /// The client has been told to go; at this moment the connection is closed.
    Ending(Instant),
    /// No stream is open, from this moment on.
    Since(Instant),
}

impl<I: AsyncRead + AsyncWrite + Unpin> Task<I> {
    pub(super) fn new(
        down: Rc<Downstream>,
        admission: Admission,
        h2: Connection<Coalesced<I, Meter>, Bytes>,
        io: Coalesced<I, Meter>,
    ) -> Self {
        let worker = Rc::clone(&down.worker);
        let gather = Arc::new(Gather::default());
        let waker = Waker::from(Arc::clone(&gather));
        let outside = outside(Rc::clone(&worker), admission.clone(), false);
        let now = Instant::now();
        let first = now + worker.shared.config.timeouts.idle.min(PING_EVERY);
        Self {
            down,
            worker,
            admission,
            h2,
            link: Rc::new(Link::new(io.lent())),
            io,
            work: Work::new(waker.clone(), Box::pin(outside)),
            waker,
            gather,
            timer: Box::pin(sleep_until(first)),
            rest: Rest::Since(now),
            pings: None,
            pinged: None,
            abused: false,
        }
    }

    /// Runs everything until there is nothing to do. Ready when the connection is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        self.gather.begin(cx.waker());
        let waker = self.waker.clone();
        let inner = &mut Context::from_waker(&waker);
        for _ in 0..ROUNDS_MAX {
            self.gather.look();
            self.io.admit();
            if let Poll::Ready(over) = self.poll_round(inner) {
                return Poll::Ready(over);
            }
            if self.gather.rest() {
                return Poll::Pending;
            }
        }
        // Others of the thread want to be served too. An error is found again with the next round.
        let _ = self.io.poll_drain(inner);
        self.gather.yield_now();
        Poll::Pending
    }

    /// Reads requests, lets streams run, writes what they said.
    fn poll_round(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        loop {
            match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.rest = match self.rest {
                        Rest::Since(_) => Rest::Busy,
                        other => other,
                    };
                    let opened = Opened::new(&self.down, &self.link, request, respond);
                    self.work.seat(opened, &self.worker.clerks);
                }
                Poll::Ready(Some(Err(error))) => {
                    self.ended_by(&error);
                    return Poll::Ready(Over::Told);
                }
                Poll::Ready(None) => return Poll::Ready(Over::Told),
                Poll::Pending => break,
            }
        }
        if !self.abused {
            self.look_for_abuse();
        }
        match self.work.poll(&self.worker.clerks) {
            None => {}
            Some(Happened::Cut | Happened::Revoked) => return Poll::Ready(Over::AtOnce),
            Some(Happened::Draining) => {
                self.h2.graceful_shutdown();
                let outside = outside(Rc::clone(&self.worker), self.admission.clone(), true);
                self.work.listen(Box::pin(outside));
            }
        }
        if self.gather.is_woken() {
            // The streams have written something; it is sent with the next round's.
            return Poll::Pending;
        }
        match self.io.poll_drain(cx) {
            Poll::Ready(Ok(())) => self.link.quota.refill(),
            Poll::Ready(Err(error)) => {
                debug!(%error, "connection ended");
                return Poll::Ready(Over::AtOnce);
            }
            Poll::Pending => {}
        }
        self.count_streams();
        self.poll_timer(cx)
    }

    fn count_streams(&mut self) {
        let answered = self.link.take_answered();
        if answered > 0 {
            self.io.watch().answered(answered);
        }
        if matches!(self.rest, Rest::Busy) && self.work.open() == 0 {
            let now = Instant::now();
            self.rest = Rest::Since(now);
            let due = now + self.worker.shared.config.timeouts.idle;
            if due < self.timer.deadline() {
                self.timer.as_mut().reset(due);
            }
        }
    }

    fn look_for_abuse(&mut self) {
        let Some(abuse) = self.io.watch().abuse() else {
            return;
        };
        debug!(?abuse, "connection ended");
        self.abused = true;
        self.worker.shared.metrics.h2_ended(abuse.label());
        self.h2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        let at = Instant::now() + GOODBYE;
        self.rest = Rest::Ending(at);
        self.timer.as_mut().reset(at);
        self.waker.wake_by_ref();
    }

    /// The h2 crate has ended it, and told the client why.
    fn ended_by(&self, error: &h2::Error) {
        debug!(%error, "connection ended");
        if self.abused || error.is_remote() || error.is_io() {
            return;
        }
        let reason = match error.reason() {
            Some(Reason::COMPRESSION_ERROR) => "compression",
            Some(Reason::ENHANCE_YOUR_CALM) => "calm",
            Some(Reason::FLOW_CONTROL_ERROR) => "flow_control",
            Some(Reason::FRAME_SIZE_ERROR) => "frame_size",
            Some(Reason::NO_ERROR) | None => return,
            Some(_) => "protocol",
        };
        self.worker.shared.metrics.h2_ended(reason);
    }

    /// Looks for silence. The timer is set when it fires, hardly ever else.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let due = match self.rest {
                // A request that crossed the GOAWAY is served.
                Rest::Ending(_) if !self.abused && self.work.open() > 0 => now + GOODBYE,
                Rest::Ending(at) => at,
                Rest::Since(since) => {
                    let due = since + self.worker.shared.config.timeouts.idle;
                    if due > now {
                        due
                    } else {
                        self.h2.graceful_shutdown();
                        self.waker.wake_by_ref();
                        self.rest = Rest::Ending(now + GOODBYE);
                        now + GOODBYE
                    }
                }
                Rest::Busy => match self.ping(now) {
                    Some(due) => due,
                    None => {
                        debug!("connection ended: the client is silent");
                        return Poll::Ready(Over::AtOnce);
                    }
                },
            };
            if due <= now {
                return Poll::Ready(Over::AtOnce);
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// Asks a client that is silent for a sign; when to look again, or none if it gave none.
    ///
    /// Bytes that the socket takes are a sign too: a slow reader is no dead one.
    fn ping(&mut self, now: Instant) -> Option<Instant> {
        let moved = self.io.moved();
        match self.pinged {
            Some(pinged) if moved <= pinged => {
                (now < pinged + PING_WAIT).then_some(pinged + PING_WAIT)
            }
            _ if now < moved + PING_EVERY => {
                self.pinged = None;
                Some(moved + PING_EVERY)
            }
            _ => {
                self.send_ping();
                self.pinged = Some(now);
                Some(now + PING_WAIT)
            }
        }
    }

    fn send_ping(&mut self) {
        if self.pings.is_none() {
            self.pings = self.h2.ping_pong();
        }
        if let Some(pings) = &mut self.pings {
            // The last one's answer must be taken before there is another.
            let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
            // Refused only while one is on its way, which serves as well.
            let _ = pings.send_ping(Ping::opaque());
        }
        self.waker.wake_by_ref();
    }
}

/// Rounds in one poll of the task.
const ROUNDS_MAX: usize = 16;

const PING_EVERY: Duration = Duration::from_secs(20);

const PING_WAIT: Duration = Duration::from_secs(10);

/// How long a client may take to close after it was told to go.
const GOODBYE: Duration = Duration::from_secs(5);
