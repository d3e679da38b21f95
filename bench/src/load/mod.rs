//! A steady load on a gateway that tells of everything a client could notice.
//!
//! Requests go out at a fixed rate over kept TLS connections, HTTP/1.1 or
//! HTTP/2. Counted are requests without a good answer, connections that the
//! server ended, streams that it reset, and how long answers took. What is
//! counted as failed is what an application would see: nothing is tried again
//! but HTTP/2 streams of which the server said that it did not look at them.

mod h1;
mod h2;
mod tls;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

/// Connecting, and an answer, take at most so long or have failed.
const DEADLINE: Duration = Duration::from_secs(10);

/// Failures that are told in words.
const TOLD_MAX: usize = 20;

/// What the load speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// HTTP/1.1 over TLS.
    Http1,
    /// HTTP/2 over TLS, several streams at once.
    Http2,
}

/// What is asked, and how often.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The gateway's HTTPS listener.
    pub address: SocketAddr,
    /// SNI and host. Any certificate will do.
    pub host: String,
    /// The path.
    pub path: String,
    /// Connections that are kept.
    pub connections: u32,
    /// Requests per second, all connections together.
    pub per_second: u32,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Requests sent.
    pub sent: u64,
    /// Of these with status 200 and their whole body.
    pub answered: u64,
    /// Requests without that, and connections that could not be made.
    pub failed: u64,
    /// Kept connections that the server ended, by whatever means.
    pub closed: u64,
    /// Streams that the server reset.
    pub reset: u64,
    /// Streams that a GOAWAY named as not looked at; asked for again, and counted as sent twice.
    pub refused: u64,
    /// Connections made.
    pub connected: u64,
    /// The first failures in words.
    pub failures: Vec<String>,
    /// Answers by the power of two of microseconds that they took at most.
    took: [u64; 32],
}

impl Counts {
    /// What was counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let told = before.failures.len().min(self.failures.len());
        let mut took = self.took;
        for (now, then) in took.iter_mut().zip(before.took) {
            *now -= then;
        }
        Self {
            sent: self.sent - before.sent,
            answered: self.answered - before.answered,
            failed: self.failed - before.failed,
            closed: self.closed - before.closed,
            reset: self.reset - before.reset,
            refused: self.refused - before.refused,
            connected: self.connected - before.connected,
            failures: self.failures.get(told..).unwrap_or_default().to_vec(),
            took,
        }
    }

    /// A bound that so many of a thousand answers kept, to a factor of two.
    #[must_use]
    pub fn took(&self, per_mille: u64) -> Duration {
        let wanted = (self.took.iter().sum::<u64>() * per_mille).div_ceil(1000);
        let mut seen = 0;
        let reached = self.took.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        Duration::from_micros(1 << reached.unwrap_or_default())
    }
}

/// A load that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Tally>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Load {
    /// Begins, on the caller's runtime.
    #[must_use]
    pub fn start(plan: &Plan, protocol: Protocol) -> Self {
        let tally = Arc::<Tally>::default();
        let stop = CancellationToken::new();
        let config = tls::config(protocol);
        let mut tasks = JoinSet::new();
        for number in 0..plan.connections {
            let lane = Lane {
                plan: plan.clone(),
                number,
                tally: Arc::clone(&tally),
                stop: stop.clone(),
                config: Arc::clone(&config),
            };
            match protocol {
                Protocol::Http1 => tasks.spawn(h1::run(lane)),
                Protocol::Http2 => tasks.spawn(h2::run(lane)),
            };
        }
        Self { tally, stop, tasks }
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Sends no more, waits for the answers under way, and tells what was counted.
    pub async fn stop(mut self) -> Counts {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.tally.counts()
    }
}

/// The leaf that a new connection is shown.
///
/// # Errors
/// There is no connection within some seconds.
pub async fn leaf(plan: &Plan) -> anyhow::Result<Vec<u8>> {
    let lane = Lane {
        plan: plan.clone(),
        number: 0,
        tally: Arc::default(),
        stop: CancellationToken::new(),
        config: tls::config(Protocol::Http1),
    };
    let stream = tls::connect(&lane).await?;
    let shown = stream.get_ref().1.peer_certificates();
    let leaf = shown.and_then(|chain| chain.first());
    Ok(leaf.map(|leaf| leaf.to_vec()).unwrap_or_default())
}

/// One connection's part of the load.
struct Lane {
    plan: Plan,
    number: u32,
    tally: Arc<Tally>,
    stop: CancellationToken,
    config: Arc<rustls::ClientConfig>,
}

impl Lane {
    /// Ticks of one of `of` askers on this connection.
    fn pace(&self, index: u32, of: u32) -> Interval {
        let askers = self.plan.connections * of;
        let period = Duration::from_secs(1) * askers / self.plan.per_second.max(1);
        // Spread evenly, not all at once.
        let place = self.number * of + index;
        let first = Instant::now() + period * place / askers;
        let mut pace = interval_at(first, period);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    }
}

#[derive(Debug, Default)]
struct Tally {
    sent: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    closed: AtomicU64,
    reset: AtomicU64,
    refused: AtomicU64,
    connected: AtomicU64,
    told: Mutex<(Vec<String>, [u64; 32])>,
}

impl Tally {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn answered(&self, took: Duration) {
        Self::add(&self.answered);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = (u64::BITS - micros.leading_zeros()) as usize;
        if let Some(count) = self.told().1.get_mut(index) {
            *count += 1;
        }
    }

    fn failed(&self, why: &anyhow::Error) {
        Self::add(&self.failed);
        let mut told = self.told();
        if told.0.len() < TOLD_MAX {
            told.0.push(format!("{why:#}"));
        }
    }

    fn told(&self) -> MutexGuard<'_, (Vec<String>, [u64; 32])> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // What is under way counts as neither.
        let told = self.told();
        Counts {
            answered: get(&self.answered),
            failed: get(&self.failed),
            sent: get(&self.sent),
            closed: get(&self.closed),
            reset: get(&self.reset),
            refused: get(&self.refused),
            connected: get(&self.connected),
            failures: told.0.clone(),
            took: told.1,
        }
    }
}
