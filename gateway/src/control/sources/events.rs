//! AUTH and COMPUTE: the durable consumers, and the handler that feeds the writer.
//!
//! Before consuming, at each binding, the database's own position is compared with
//! the durable consumer's and with the stream ([`again`](super::again)).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::{self, DeliverPolicy, FromConsumer as _, pull};
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, Context};
use edd_events::connect::is_connected;
use edd_events::consumer::{
    Bound, BreakerState, Consumer, ConsumerSpec, Handler, LastDeliveries, Unavailable, Verdict,
};
use edd_events::envelope::Cause;
use edd_events::event::Delivery;
use edd_events::signature::Verifier;
use edd_events::stream::{AUTH, COMPUTE, ensure};
use edd_events::subject::subject;
use rand::RngExt as _;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::again::{Again, Found, Reader, asked};
use super::comparison::Comparison;
use super::database::Opened;
use super::snapshot::Snapshots;
use crate::control::reconcile::Checks;
use crate::control::status::{DatabaseStatus, Status, StatusBoard};
use crate::control::store::{self, SqlStore};
use crate::control::writer::{Command, Floor, Incoming};

/// The name of our durable consumers.
pub const DURABLE: &str = "gateway-service";

/// Most events of one transaction.
const BATCH_MAX: usize = 256;

/// Pause between attempts to prepare a stream.
const RETRY: Duration = Duration::from_millis(500);

/// One look at JetStream.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(10);

/// A shared database may be away for so long before others get the events.
const HAND_BACK_AFTER: Duration = Duration::from_secs(2);

/// Pauses before events are asked for again after a shared database was away, or a consumer has
/// ended by itself: each time that they are given back costs them a delivery.
const REST_FIRST: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(30);

/// A round of this length is no part of the same trouble.
const REST_STEADY: Duration = Duration::from_secs(60);

/// How often the database is told how far both consumers are.
const FLOORS_INTERVAL: Duration = Duration::from_secs(10);

/// One look at it.
const FLOORS_TIMEOUT: Duration = Duration::from_secs(2);

const SPECS: [ConsumerSpec; 2] = [
    ConsumerSpec {
        stream: AUTH,
        durable: DURABLE,
        filter: "auth.user.>",
        batch_max: BATCH_MAX,
    },
    ConsumerSpec {
        stream: COMPUTE,
        durable: DURABLE,
        filter: "compute.>",
        batch_max: BATCH_MAX,
    },
];

/// Of which streams a round has read all that the database lacked.
#[derive(Debug, Default)]
struct Through([Arc<AtomicBool>; SPECS.len()]);

/// What consuming needs.
#[derive(Debug)]
pub struct Events {
    /// JetStream.
    pub js: Context,
    /// Replicas of streams that have to be created.
    pub replicas: usize,
    /// Knows who signs events.
    pub verifier: Option<Arc<Verifier>>,
    /// Counts what comes in.
    pub metrics: edd_events::Metrics,
    /// Counts what is found to differ.
    pub gateway_metrics: crate::telemetry::Metrics,
    /// Whether other gateways may have the same database.
    pub shared_database: bool,
    /// How often the state is compared with compute's; none: never.
    pub digest_interval: Option<Duration>,
    /// What an event must be like.
    pub checks: Arc<Checks>,
    /// Where it says how far it is.
    pub board: StatusBoard,
    /// Where changes go.
    pub writer: mpsc::Sender<Command<SqlStore>>,
    /// The database, once there is one.
    pub opened: watch::Receiver<Option<Opened>>,
    /// Whose turn it is to ask for a snapshot.
    pub asking: Arc<Mutex<()>>,
}

impl Events {
    /// Consumes from the first opening of the database until `shutdown`; starts
    /// over when the database was lost or replaced meanwhile, and pauses while
    /// one that others share is away from here. What cannot be given back then,
    /// because it would not be delivered again, is kept for the next round.
    pub async fn run(self, shutdown: CancellationToken) {
        let last: [LastDeliveries; SPECS.len()] = Default::default();
        let [auth, compute] = last.clone();
        let snapshots = self.snapshots();
        let board = self.board.clone();
        tokio::select! {
            () = self.rounds(&last, &shutdown) => {}
            () = snapshots.restore_as_wanted(&board) => {}
            () = auth.stay_alive() => {}
            () = compute.stay_alive() => {}
        }
    }

    async fn rounds(mut self, last: &[LastDeliveries; SPECS.len()], shutdown: &CancellationToken) {
        let mut after = 0;
        let mut is_first = true;
        let mut pause = REST_FIRST;
        while let Some(opened) = self.next_opened(after, shutdown).await {
            let begun = Instant::now();
            let mut rests = false;
            let round = shutdown.child_token();
            let tasks = TaskTracker::new();
            let through = Through::default();
            let mut later = self.opened.clone();
            tokio::select! {
                () = self.consume(&opened, is_first, (last, &through), &tasks, &round) => {
                    tracing::error!("a consumer has ended by itself: both begin again");
                    rests = true;
                }
                () = lost_again(&mut later, opened.number) => {}
                number = self.set_back(opened.number) => after = number - 1,
                () = self.away() => {
                    tracing::warn!("the database is away: events are left to other gateways");
                    after = opened.number;
                    rests = true;
                }
                () = shutdown.cancelled() => {}
            }
            is_first = false;
            let goes_on = !shutdown.is_cancelled();
            last.iter().for_each(|last| last.keep(goes_on));
            round.cancel();
            tasks.close();
            tasks.wait().await;
            last.iter().for_each(|last| last.keep(false));
            if rests {
                if begun.elapsed() > REST_STEADY {
                    pause = REST_FIRST;
                }
                let some = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
                pause = (pause * 2).min(REST_MAX);
                shutdown.run_until_cancelled(tokio::time::sleep(some)).await;
            }
            if shutdown.is_cancelled() {
                self.tell_floors(&opened, &through, &mut Vec::new()).await;
            }
        }
    }

    /// The opening in force, a later one than the `after`th.
    async fn next_opened(&mut self, after: u64, shutdown: &CancellationToken) -> Option<Opened> {
        let is_later = |opened: &Option<Opened>| {
            let opened = opened.as_ref();
            opened.is_some_and(|opened| opened.number > after)
        };
        let there = self.opened.wait_for(is_later);
        match shutdown.run_until_cancelled(there).await {
            Some(Ok(opened)) if !shutdown.is_cancelled() => opened.clone(),
            _ => None,
        }
    }

    /// Ends when an opening later than the `number`th found the database older
    /// than it was; its number.
    async fn set_back(&self, number: u64) -> u64 {
        let mut status = self.board.watch();
        let later = status.wait_for(|status| status.set_back > number).await;
        match later.map(|status| status.set_back) {
            Ok(later) => later,
            // The board ends with the process.
            Err(_) => std::future::pending().await,
        }
    }

    /// Ends when a database that others share was there and is away from here for
    /// longer than a moment: what is delivered to us is theirs to handle.
    async fn away(&self) {
        if !self.shared_database {
            std::future::pending::<()>().await;
        }
        let is_away = |status: &Status| status.database == DatabaseStatus::Unavailable;
        let mut status = self.board.watch();
        loop {
            // The board ends with the process.
            let _ = status.wait_for(|status| !is_away(status)).await;
            let _ = status.wait_for(is_away).await;
            let back = status.wait_for(|status| !is_away(status));
            if tokio::time::timeout(HAND_BACK_AFTER, back).await.is_err() {
                return;
            }
        }
    }

    /// Prepares both streams, starts both consumers and says, each time, when
    /// both are caught up. Ends with `round` only.
    async fn consume(
        &self,
        opened: &Opened,
        is_first: bool,
        (last, through): (&[LastDeliveries; SPECS.len()], &Through),
        tasks: &TaskTracker,
        round: &CancellationToken,
    ) {
        let mut handlers = Vec::new();
        for (spec, is_through) in SPECS.into_iter().zip(&through.0) {
            let name = spec.stream.name;
            let marks = opened.streams.get(name).copied().unwrap_or_default();
            let mut again = Again::new(name, marks, is_first);
            if let Some(first) = self.prepare(spec, &mut again).await
                && let Some(sequence) = self.restore(spec, first).await
            {
                again.reached(sequence);
            }
            handlers.push(EventHandler {
                checks: Arc::clone(&self.checks),
                writer: self.writer.clone(),
                again,
                is_through: Arc::clone(is_through),
            });
        }
        let [auth, compute] = SPECS;
        let consumers = [(auth, &last[0]), (compute, &last[1])].map(|(spec, last)| {
            Consumer::new(self.js.clone(), spec, self.replicas, self.metrics.clone())
                .with_verifier(self.verifier.clone())
                .with_last_deliveries(last.clone())
        });
        let caught_up = consumers.each_ref().map(Consumer::caught_up);
        let breakers = consumers.each_ref().map(Consumer::breaker);
        tasks.spawn(tell_pauses(breakers, self.board.clone(), round.clone()));
        for (consumer, handler) in consumers.into_iter().zip(handlers) {
            tasks.spawn(consumer.run(handler, round.clone()));
        }
        if let Some(interval) = self.digest_interval {
            let comparison = Comparison {
                js: self.js.clone(),
                snapshots: self.snapshots(),
                metrics: self.gateway_metrics.clone(),
                board: self.board.clone(),
                interval,
            };
            tasks.spawn(comparison.run(round.clone()));
        }
        self.board.update(|status| status.consuming = true);
        let [mut auth, mut compute] = caught_up;
        let mut told = Vec::new();
        let mut tell = tokio::time::interval(FLOORS_INTERVAL);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while all_true(&mut auth, &mut compute).await {
            self.tell_floors(opened, through, &mut told).await;
            // The writer is gone only at the end.
            let _ = self.writer.send(Command::CaughtUp(opened.number)).await;
            let changed = loop {
                tokio::select! {
                    changed = auth.changed() => break changed,
                    changed = compute.changed() => break changed,
                    _ = tell.tick() => self.tell_floors(opened, through, &mut told).await,
                }
            };
            if changed.is_err() {
                return;
            }
            self.board.update(|status| status.caught_up = false);
        }
    }

    /// The database is as far as what was acknowledged for it, once it has what was
    /// delivered before: it is told when that differs from what it was `told` last.
    /// Not of a stream that is not read `through`: the durable consumer may be far
    /// ahead of this database, and what lies between would never be read.
    async fn tell_floors(&self, opened: &Opened, through: &Through, told: &mut Vec<Floor>) {
        if !is_connected(&self.js.client()) {
            return;
        }
        let looking = async {
            let mut floors = Vec::new();
            for (spec, is_through) in SPECS.into_iter().zip(&through.0) {
                if !is_through.load(Ordering::Acquire) {
                    continue;
                }
                let stream = self.js.get_stream(spec.stream.name).await?;
                if let Some(found) = consumer_info(&stream).await? {
                    floors.push(Floor {
                        stream: spec.stream.name,
                        created: created(&stream),
                        sequence: found.ack_floor.stream_sequence,
                    });
                }
            }
            anyhow::Ok(floors)
        };
        match tokio::time::timeout(FLOORS_TIMEOUT, looking).await {
            Ok(Ok(floors)) if floors == *told => {}
            Ok(Ok(floors)) => {
                told.clone_from(&floors);
                let command = Command::Acknowledged(opened.number, floors);
                let _ = self.writer.send(command).await;
            }
            // At worst a few events are replayed after the next start.
            Ok(Err(error)) => tracing::debug!(%error, "consumers not looked at"),
            Err(_) => tracing::debug!("JetStream does not answer"),
        }
    }

    /// Makes up for events that the stream holds no more, now if compute
    /// answers, else while the rest is consumed; up to which sequence, if now.
    async fn restore(&self, spec: ConsumerSpec, first: u64) -> Option<u64> {
        let restored = async {
            let sequence = self.snapshots().restore(first, Vec::new()).await?;
            // What it tells need not be heard once more.
            if let Err(error) = self.consume_after(spec, sequence).await {
                // What comes twice is stale.
                tracing::warn!(error = format!("{error:#}"), "hearing it all the same");
            }
            anyhow::Ok(sequence)
        };
        match restored.await {
            Ok(sequence) => Some(sequence),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "going on with what is known");
                None
            }
        }
    }

    fn snapshots(&self) -> Snapshots {
        Snapshots {
            bus: self.js.clone().into(),
            verifier: self.verifier.clone(),
            checks: Arc::clone(&self.checks),
            writer: self.writer.clone(),
            asking: Arc::clone(&self.asking),
        }
    }

    async fn consume_after(&self, spec: ConsumerSpec, sequence: u64) -> anyhow::Result<()> {
        let stream = self.js.get_stream(spec.stream.name).await?;
        let Some(found) = consumer_info(&stream).await? else {
            // Made from the start: what comes twice is stale.
            return Ok(());
        };
        if found.ack_floor.stream_sequence < sequence {
            begin_at(&stream, found, sequence + 1).await?;
        }
        Ok(())
    }

    /// Ready when the stream can be consumed; its first sequence, if what the
    /// database lacks is older.
    async fn prepare(&self, spec: ConsumerSpec, again: &mut Again) -> Option<u64> {
        let mut last_error = String::new();
        loop {
            let error = match self.try_prepare(spec, again).await {
                Ok(gap) => return gap,
                Err(error) => format!("{error:#}"),
            };
            if error != last_error {
                tracing::warn!(stream = spec.stream.name, error, "cannot consume yet");
                last_error = error;
            }
            let pause = RETRY.mul_f64(rand::rng().random_range(0.5..=1.0));
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_prepare(
        &self,
        spec: ConsumerSpec,
        again: &mut Again,
    ) -> anyhow::Result<Option<u64>> {
        let looking = async {
            let mut stream = ensure(&self.js, &spec.stream, self.replicas).await?;
            let (first, last) = {
                let state = &stream.info().await?.state;
                (state.first_sequence, state.last_sequence)
            };
            anyhow::Ok(Found {
                created: created(&stream),
                first,
                last,
                ..Found::default()
            })
        };
        let found = tokio::time::timeout(PREPARE_TIMEOUT, looking)
            .await
            .context("JetStream does not answer")??;
        // Bounded by the database's own limits: a stream made anew changes every row.
        again.identify(found, &self.writer).await?;
        Ok(again.gap(found, &self.writer).await?)
    }
}

/// When a stream was made, Unix nanoseconds.
fn created(stream: &Stream) -> i64 {
    let at = stream.cached_info().created.unix_timestamp_nanos();
    i64::try_from(at).unwrap_or(i64::MAX)
}

/// Makes our durable consumer anew, as it was, from `start_sequence` on.
async fn begin_at(
    stream: &Stream,
    found: consumer::Info,
    start_sequence: u64,
) -> anyhow::Result<()> {
    stream.delete_consumer(DURABLE).await?;
    // Whoever made it may have made it otherwise than we would.
    let found = pull::Config::try_from_consumer_config(found.config);
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
        ..found.map_err(anyhow::Error::from_boxed)?
    };
    stream.create_consumer(config).await?;
    Ok(())
}

/// Says while events wait for the world, until `round` is over.
async fn tell_pauses(
    [mut auth, mut compute]: [watch::Receiver<BreakerState>; 2],
    board: StatusBoard,
    round: CancellationToken,
) {
    loop {
        let closed = |breaker: &mut watch::Receiver<BreakerState>| {
            *breaker.borrow_and_update() == BreakerState::Closed
        };
        let paused = !(closed(&mut auth) & closed(&mut compute));
        board.update(|status| status.paused = paused);
        let changed = tokio::select! {
            changed = auth.changed() => changed,
            changed = compute.changed() => changed,
            () = round.cancelled() => break,
        };
        if changed.is_err() {
            break;
        }
    }
    board.update(|status| status.paused = false);
}

/// Waits until both are true at once; false: there will be no more.
async fn all_true(one: &mut watch::Receiver<bool>, other: &mut watch::Receiver<bool>) -> bool {
    loop {
        if one.wait_for(|done| *done).await.is_err() || other.wait_for(|done| *done).await.is_err()
        {
            return false;
        }
        if *one.borrow() {
            return true;
        }
    }
}

/// How our durable consumer is; none: there is none.
pub(super) async fn consumer_info(stream: &Stream) -> anyhow::Result<Option<consumer::Info>> {
    use jetstream::context::ConsumerInfoErrorKind as Kind;
    match stream.consumer_info(DURABLE).await {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Ends when a later opening found the database lost or replaced.
async fn lost_again(opened: &mut watch::Receiver<Option<Opened>>, number: u64) {
    let lost = |opened: &Option<Opened>| {
        opened
            .as_ref()
            .is_some_and(|opened| opened.number > number && (opened.lost || opened.replaced))
    };
    if opened.wait_for(lost).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Judges a batch, sends it to the writer and waits for the verdicts.
struct EventHandler {
    checks: Arc<Checks>,
    writer: mpsc::Sender<Command<SqlStore>>,
    again: Again,
    is_through: Arc<AtomicBool>,
}

impl EventHandler {
    fn tell_if_through(&self) {
        let is_through = self.again.is_through();
        self.is_through.store(is_through, Ordering::Release);
    }
}

impl Handler for EventHandler {
    async fn handle(&mut self, batch: &[Delivery]) -> Result<Vec<Verdict>, Unavailable> {
        let checks = &self.checks;
        let last = batch.iter().map(|event| event.position.sequence).max();
        let batch = batch.iter().map(|event| incoming(checks, event)).collect();
        let restarts = self.again.restarts();
        let ask = |answer| Command::Events {
            batch,
            restarts,
            answer,
        };
        let verdicts = asked(&self.writer, ask).await?;
        self.again.handled(last.unwrap_or_default());
        Ok(verdicts)
    }

    async fn bound(&mut self, binding: &Bound<'_>) -> Result<bool, Unavailable> {
        let found = Found {
            created: binding.stream.created,
            first: binding.stream.first_sequence,
            last: binding.stream.last_sequence,
            acknowledged: binding.durable.ack_floor,
            delivered: binding.durable.delivered,
        };
        self.again.identify(found, &self.writer).await?;
        // A stream made anew is to be read first.
        self.tell_if_through();
        let mut reader = BoundReader {
            binding,
            checks: &self.checks,
            last: Vec::new(),
        };
        self.again.read(found, &mut reader, &self.writer).await?;
        self.tell_if_through();
        Ok(true)
    }
}

/// Reads at a binding, and judges as the handler does.
struct BoundReader<'a> {
    binding: &'a Bound<'a>,
    checks: &'a Checks,
    /// What was read last.
    last: Vec<Delivery>,
}

impl Reader for BoundReader<'_> {
    async fn read(
        &mut self,
        from: u64,
        to: u64,
        max: usize,
    ) -> Result<(Vec<Incoming>, u64), Unavailable> {
        let stretch = self.binding.read(from, to, max).await?;
        let events = stretch.events.iter();
        let batch = events.map(|event| incoming(self.checks, event)).collect();
        self.last = stretch.events;
        Ok((batch, stretch.up_to))
    }

    fn handled(&mut self, verdicts: &[Verdict]) {
        self.binding.handled(&self.last, verdicts);
    }
}

fn incoming(checks: &Checks, delivery: &Delivery) -> Incoming {
    let event = &delivery.event;
    Incoming {
        event_id: event.event_id.clone(),
        stream: delivery.position.stream.clone(),
        sequence: delivery.position.sequence,
        told: store::Cause {
            subject: subject(event.kind, &event.entity),
            stream: delivery.position.stream.clone(),
            sequence: delivery.position.sequence,
            event_id: event.event_id.clone(),
            source: event.source.clone(),
        },
        cause: Cause::of(event),
        change: checks.check(delivery),
    }
}
