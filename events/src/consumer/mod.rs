//! Consuming a stream: durable, in batches, at least once, never giving up.
//!
//! [`Consumer::run`] binds to the durable consumer (creating what is missing),
//! hands over whatever is there as soon as one event is there, and settles each
//! event by the handler's verdict. It owns the retries, the dead letters and
//! the acknowledgements; what an event means is the [`Handler`]'s business.
//!
//! Two kinds of failure: the message's own fault ends after five deliveries in
//! the dead letters, the world's fault ([`Unavailable`]) pauses consumption
//! while progress acknowledgements keep what was delivered; the circuit breaker
//! ([`BreakerState`]) says so. A third, the handler's process dying with the
//! event, is heard of from the server's advisories.

mod acks;
mod advisories;
mod bind;
mod bound;
mod breaker;
mod burial;
mod catch_up;
mod kept;
mod session;
mod statistics;
mod work;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use edd_store::Database;
use futures_util::FutureExt as _;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    Metrics,
    backoff::Backoff,
    bus::{AnyBus, Bus as _, Durable, Lost},
    event::Delivery,
    signature::Verifier,
    stream::StreamSpec,
};
pub use bound::{Bound, Stretch};
use breaker::Breaker;
pub use breaker::BreakerState;
pub use catch_up::{CatchUp, Silence};
pub use kept::LastDeliveries;
use session::{End, Session};

/// After this many deliveries a failing event is a dead letter.
pub const DELIVERIES_MAX: u64 = 5;
/// The pauses before the second, third, fourth and fifth delivery.
pub const RETRY_DELAYS: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(30),
];
/// The server delivers again what was not acknowledged for so long.
pub const ACK_WAIT: Duration = Duration::from_secs(30);
/// The server delivers no more than this without acknowledgement.
pub const ACK_PENDING_MAX: i64 = 10_000;

/// Pauses between attempts to bind to the durable consumer.
const BIND_RETRY_FIRST: Duration = Duration::from_millis(100);
const BIND_RETRY_MAX: Duration = Duration::from_secs(5);

/// nats-server 2.9 says that a stream is deleted while it still removes the files, and with them
/// those of a stream that is made in its place: what that one takes is lost. So long it is given,
/// on a busy machine, before the stream is made anew.
pub(crate) const REMOVAL_MAX: Duration = Duration::from_secs(2);
/// What one look at the stream, or at the durable consumer, may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// Which events to consume, and under which name.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerSpec {
    /// The stream, created if missing.
    pub stream: StreamSpec,
    /// The durable consumer's name; consumers of one name share the work.
    pub durable: &'static str,
    /// The one subject filter (nats-server 2.9 ignores several).
    pub filter: &'static str,
    /// Most events in one batch, at least 1.
    pub batch_max: usize,
}

/// What came of one event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is in effect: acknowledged.
    Applied,
    /// A bad event that no time can cure: a dead letter at once.
    Reject(String),
    /// The event's own fault, which time may cure: delivered again after 1, 5,
    /// 30 and 30 s, then a dead letter.
    Retry(String),
    /// A duplicate, or older than what is known: acknowledged and counted.
    Stale,
}

/// The world's fault (database, broker): nothing is acknowledged and nothing
/// dead-lettered, the same batch is tried again after a pause with jitter.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Makes events effective.
pub trait Handler: Send {
    /// Handles a batch in the stream's order (redeliveries may be older than
    /// what came before) and returns one verdict per event, in the same order;
    /// a missing verdict counts as [`Verdict::Retry`].
    ///
    /// Called again with the same batch after [`Unavailable`], and event by
    /// event after a panic, so that only the culprit pays. Dropped 5 s after a
    /// shutdown: what it does must be all or nothing.
    fn handle(
        &mut self,
        batch: &[Delivery],
    ) -> impl Future<Output = Result<Vec<Verdict>, Unavailable>> + Send;

    /// Looks at a fresh binding before anything of it is handed over. True: all
    /// that was delivered before it, acknowledged or not, is in effect, so that
    /// nobody has to wait until it comes again. Then it is asked again, at another
    /// binding, when others of the durable consumer's name keep silent about what
    /// they were given.
    ///
    /// Dropped at a shutdown, and when NATS goes away: what it does must be all
    /// or nothing.
    ///
    /// # Errors
    /// The consumer binds again after a pause.
    fn bound(
        &mut self,
        binding: &Bound<'_>,
    ) -> impl Future<Output = Result<bool, Unavailable>> + Send {
        let _ = binding;
        std::future::ready(Ok(false))
    }
}

/// A durable pull consumer.
#[derive(Debug)]
pub struct Consumer {
    bus: AnyBus,
    spec: ConsumerSpec,
    replicas: usize,
    metrics: Metrics,
    retry_delays: [Duration; 4],
    ack_wait: Duration,
    breaker: Breaker,
    archive: Option<Database>,
    caught_up: watch::Sender<bool>,
    verifier: Option<Arc<Verifier>>,
    last: LastDeliveries,
    /// There are other dead letters than the gauge says, perhaps.
    letters_came: Notify,
    /// When the stream was made that is bound to, Unix nanoseconds; 0: none is.
    bound_to: AtomicI64,
    /// It is not that one any more.
    stream_replaced: Notify,
    /// Whether the handler has what was delivered before, as it said at the binding.
    is_settled: AtomicBool,
    /// Others were given something and do not say a word about it.
    others_silent: Notify,
}

impl Consumer {
    /// A consumer that is not yet bound; `replicas` is for a stream that has to
    /// be created.
    #[must_use]
    pub fn new(
        bus: impl Into<AnyBus>,
        spec: ConsumerSpec,
        replicas: usize,
        metrics: Metrics,
    ) -> Self {
        Self {
            bus: bus.into(),
            spec,
            replicas,
            breaker: Breaker::new(spec.stream.name, metrics.clone()),
            metrics,
            retry_delays: RETRY_DELAYS,
            ack_wait: ACK_WAIT,
            archive: None,
            caught_up: watch::Sender::new(false),
            verifier: None,
            last: LastDeliveries::default(),
            letters_came: Notify::new(),
            bound_to: AtomicI64::new(0),
            stream_replaced: Notify::new(),
            is_settled: AtomicBool::new(false),
            others_silent: Notify::new(),
        }
    }

    /// Events that their source has not signed are dead letters at once.
    #[must_use]
    pub fn with_verifier(mut self, verifier: Option<Arc<Verifier>>) -> Self {
        self.verifier = verifier;
        self
    }

    /// What a consumer before this one kept is handled first, and what this one
    /// cannot give back is kept.
    #[must_use]
    pub fn with_last_deliveries(mut self, last: LastDeliveries) -> Self {
        self.last = last;
        self
    }

    /// Other pauses than [`RETRY_DELAYS`], for tests that cannot wait a minute.
    #[must_use]
    pub fn with_retry_delays(mut self, delays: [Duration; 4]) -> Self {
        self.retry_delays = delays;
        self
    }

    /// Another ack wait than [`ACK_WAIT`] for a durable consumer that has to be
    /// created, for tests that cannot wait half a minute.
    #[must_use]
    pub fn with_ack_wait(mut self, ack_wait: Duration) -> Self {
        self.ack_wait = ack_wait;
        self
    }

    /// Archives the dead letters that come by in the database's table
    /// `dead_letter_queue` (see [`crate::event_store`]), if there is one.
    #[must_use]
    pub fn with_archive(mut self, database: impl Into<Option<Database>>) -> Self {
        self.archive = database.into();
        self
    }

    /// Follows the circuit breaker: open while the world is at fault.
    #[must_use]
    pub fn breaker(&self) -> watch::Receiver<BreakerState> {
        self.breaker.watch()
    }

    /// Turns true once everything that was in the stream when the consumer
    /// bound to it has been handled, here or by others of its durable consumer's
    /// name, and what was delivered before is acknowledged, or in effect as
    /// [`Handler::bound`] says: where it says so, a process that was killed with
    /// events in its hands delays this for moments, not for the ack wait. Turns
    /// false when the binding is lost (NATS disconnected, stream or consumer
    /// removed or replaced), until that is so again.
    #[must_use]
    pub fn caught_up(&self) -> watch::Receiver<bool> {
        self.caught_up.subscribe()
    }

    /// Consumes until `shutdown`. Without NATS, stream or consumer it tries
    /// again with jittered pauses of at most 5 s. Never ends before, never
    /// panics. At shutdown the batch in work is finished within 5 s; what was
    /// delivered beyond it is handed back at once.
    ///
    /// The server's advisories about events that it will not deliver again are
    /// heeded meanwhile: they become dead letters too.
    pub async fn run<H: Handler>(self, handler: H, shutdown: CancellationToken) {
        tokio::select! {
            biased;
            () = self.consume(handler, shutdown) => {}
            () = self.heed_advisories() => {}
            () = self.read_statistics() => {}
        }
    }

    /// Of which stream what comes from now on is; none: nothing comes.
    fn bound_to(&self, created: Option<i64>) {
        self.bound_to
            .store(created.unwrap_or_default(), Ordering::Relaxed);
        // What was said before is about another binding.
        let _ = self.stream_replaced.notified().now_or_never();
        let _ = self.others_silent.notified().now_or_never();
    }

    /// Whether the server says so.
    async fn stream_is_missing(&self) -> bool {
        let connects = self.bus.connects();
        tokio::select! {
            found = timeout(LOOK_TIMEOUT, self.bus.stream_state(self.spec.stream.name)) => {
                matches!(found, Ok(Ok(None)))
            }
            () = self.bus.lost(connects) => false,
        }
    }

    async fn consume<H: Handler>(&self, handler: H, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(BIND_RETRY_FIRST, BIND_RETRY_MAX);
        let mut session = Session::new(self, handler);
        loop {
            let Some(bound) = shutdown.run_until_cancelled(self.bind()).await else {
                break;
            };
            let (stream, consumer) = (self.spec.stream.name, self.spec.durable);
            match bound {
                Err(error) => {
                    session.fall_behind();
                    let pause = backoff.next();
                    warn!(stream, consumer, %error, pause_ms = pause.as_millis(), "not consuming");
                    if shutdown
                        .run_until_cancelled(tokio::time::sleep(pause))
                        .await
                        .is_none()
                    {
                        break;
                    }
                }
                Ok(bound) => {
                    info!(
                        stream,
                        consumer,
                        pending = bound.consumer.pending,
                        "consuming"
                    );
                    let greeting = shutdown.run_until_cancelled(session.greet(&bound));
                    let settled = match greeting.await {
                        None => break,
                        Some(Ok(settled)) => settled,
                        Some(Err(Unavailable(reason))) => {
                            session.fall_behind();
                            let pause = backoff.next();
                            let pause_ms = pause.as_millis();
                            warn!(stream, consumer, reason, pause_ms, "not consuming");
                            let sleep = tokio::time::sleep(pause);
                            if shutdown.run_until_cancelled(sleep).await.is_none() {
                                break;
                            }
                            continue;
                        }
                    };
                    match session.run(bound, settled, &shutdown).await {
                        End::Shutdown => break,
                        End::Lost(lost) => {
                            info!(stream, consumer, reason = %lost, "binding again");
                            // Progress since the last time means that this is
                            // no failure that repeats itself; reconnects have
                            // pauses of their own.
                            if session.took_progress() || matches!(lost, Lost::Reconnected) {
                                backoff.reset();
                                if !matches!(lost, Lost::Status(..)) {
                                    continue;
                                }
                            }
                            let pausing = async {
                                let pause = match self.stream_is_missing().await {
                                    true => REMOVAL_MAX.max(backoff.next()),
                                    false => backoff.next(),
                                };
                                tokio::time::sleep(pause).await;
                            };
                            if shutdown.run_until_cancelled(pausing).await.is_none() {
                                break;
                            }
                        }
                        End::Quiet(reason) | End::Stale(reason) => {
                            info!(stream, consumer, reason, "binding again");
                        }
                    }
                }
            }
        }
        session.hand_back().await;
    }
}
