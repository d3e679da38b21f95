//! AUTH and COMPUTE: the durable consumers, and the handler that feeds the writer.
//!
//! Before consuming, the database's own position is compared with the durable
//! consumer's: a database that is lost, or older than what was acknowledged for
//! it, gets the events again from its position on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, DeliverPolicy, FromConsumer as _, pull};
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, Context};
use edd_events::connect::is_connected;
use edd_events::consumer::{BreakerState, Consumer, ConsumerSpec, Handler, Unavailable, Verdict};
use edd_events::envelope::Cause;
use edd_events::event::Delivery;
use edd_events::signature::Verifier;
use edd_events::stream::{AUTH, COMPUTE, ensure};
use edd_events::subject::subject;
use rand::RngExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::comparison::Comparison;
use super::database::Opened;
use super::snapshot::Snapshots;
use crate::control::reconcile::Checks;
use crate::control::status::{DatabaseStatus, Status, StatusBoard};
use crate::control::store::{self, SqlStore};
use crate::control::writer::{Command, Incoming};

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

/// One look at how far both consumers are.
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
}

impl Events {
    /// Consumes from the first opening of the database until `shutdown`; starts
    /// over when the database was lost or replaced meanwhile, and pauses while
    /// one that others share is away from here.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut after = 0;
        while let Some(opened) = self.next_opened(after, &shutdown).await {
            let round = shutdown.child_token();
            let tasks = TaskTracker::new();
            let mut later = self.opened.clone();
            tokio::select! {
                () = self.consume(&opened, &tasks, &round) => {}
                () = lost_again(&mut later, opened.number) => {}
                () = self.away() => {
                    tracing::warn!("the database is away: events are left to other gateways");
                    after = opened.number;
                }
                () = shutdown.cancelled() => {}
            }
            round.cancel();
            tasks.close();
            tasks.wait().await;
            if shutdown.is_cancelled() {
                self.tell_floors(&opened).await;
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
    async fn consume(&self, opened: &Opened, tasks: &TaskTracker, round: &CancellationToken) {
        for spec in SPECS {
            let position = opened.positions.get(spec.stream.name).copied();
            let gap = self
                .prepare(spec, position.unwrap_or_default(), opened.lost)
                .await;
            if let Some(first) = gap
                && spec.stream == COMPUTE
            {
                self.restore(spec, first, tasks, round).await;
            }
        }
        let consumers = SPECS.map(|spec| {
            Consumer::new(self.js.clone(), spec, self.replicas, self.metrics.clone())
                .with_verifier(self.verifier.clone())
        });
        let caught_up = consumers.each_ref().map(Consumer::caught_up);
        let breakers = consumers.each_ref().map(Consumer::breaker);
        tasks.spawn(tell_pauses(breakers, self.board.clone(), round.clone()));
        for consumer in consumers {
            let handler = EventHandler {
                checks: Arc::clone(&self.checks),
                writer: self.writer.clone(),
            };
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
        while all_true(&mut auth, &mut compute).await {
            self.tell_floors(opened).await;
            // The writer is gone only at the end.
            let _ = self.writer.send(Command::CaughtUp(opened.number)).await;
            let changed = tokio::select! {
                changed = auth.changed() => changed,
                changed = compute.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            self.board.update(|status| status.caught_up = false);
        }
    }

    /// The database is as far as what was acknowledged for it. Its own position
    /// stays behind by events that never reach it: of other kinds, dead letters.
    async fn tell_floors(&self, opened: &Opened) {
        if !is_connected(&self.js.client()) {
            return;
        }
        let looking = async {
            let mut floors = BTreeMap::new();
            for spec in SPECS {
                let stream = self.js.get_stream(spec.stream.name).await?;
                if let Some(found) = consumer_info(&stream).await? {
                    let floor = found.ack_floor.stream_sequence;
                    floors.insert(spec.stream.name.to_owned(), floor);
                }
            }
            anyhow::Ok(floors)
        };
        match tokio::time::timeout(FLOORS_TIMEOUT, looking).await {
            Ok(Ok(floors)) => {
                let command = Command::Acknowledged(opened.number, floors);
                let _ = self.writer.send(command).await;
            }
            // At worst a few events are replayed after the next start.
            Ok(Err(error)) => tracing::debug!(%error, "consumers not looked at"),
            Err(_) => tracing::debug!("JetStream does not answer"),
        }
    }

    /// Makes up for events that the stream holds no more, now if compute
    /// answers, else while the rest is consumed.
    async fn restore(
        &self,
        spec: ConsumerSpec,
        first: u64,
        tasks: &TaskTracker,
        round: &CancellationToken,
    ) {
        tracing::warn!(
            stream = spec.stream.name,
            first,
            "the stream no longer holds all that the database lacks: asking compute"
        );
        let snapshots = self.snapshots();
        let restored = async {
            let sequence = snapshots.restore(first, Vec::new()).await?;
            // What it tells need not be heard once more.
            self.consume_after(spec, sequence).await
        };
        if let Err(error) = restored.await {
            tracing::error!(error = format!("{error:#}"), "going on with what is known");
            tasks.spawn(snapshots.restore_in_time(first, round.clone()));
        }
    }

    fn snapshots(&self) -> Snapshots {
        Snapshots {
            bus: self.js.clone().into(),
            verifier: self.verifier.clone(),
            checks: Arc::clone(&self.checks),
            writer: self.writer.clone(),
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
    async fn prepare(&self, spec: ConsumerSpec, position: u64, lost: bool) -> Option<u64> {
        let mut last_error = String::new();
        loop {
            let attempt = self.try_prepare(spec, position, lost);
            let error = match tokio::time::timeout(PREPARE_TIMEOUT, attempt).await {
                Ok(Ok(gap)) => return gap,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "JetStream does not answer".to_owned(),
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
        mut position: u64,
        lost: bool,
    ) -> anyhow::Result<Option<u64>> {
        let name = spec.stream.name;
        let mut stream = ensure(&self.js, &spec.stream, self.replicas).await?;
        let (first, last) = {
            let state = &stream.info().await?.state;
            (state.first_sequence, state.last_sequence)
        };
        if last < position {
            self.writer.send(Command::StreamReset(name)).await?;
            position = 0;
        }
        let known = if lost { 0 } else { position };
        let gap = (known + 1 < first).then_some(first);
        let Some(found) = consumer_info(&stream).await? else {
            return Ok(gap);
        };
        let floor = found.ack_floor.stream_sequence;
        if !lost && floor <= position {
            return Ok(gap);
        }
        tracing::warn!(
            stream = name,
            lost,
            position,
            acknowledged = floor,
            "the database is behind what was acknowledged for it: replaying"
        );
        begin_at(&stream, found, if lost { 1 } else { position + 1 }).await?;
        Ok(gap)
    }
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
}

impl Handler for EventHandler {
    async fn handle(&mut self, batch: &[Delivery]) -> Result<Vec<Verdict>, Unavailable> {
        let ended = || Unavailable("the control path has ended".into());
        let (answer, verdicts) = oneshot::channel();
        let command = Command::Events {
            batch: batch.iter().map(|event| self.incoming(event)).collect(),
            answer,
        };
        self.writer.send(command).await.map_err(|_| ended())?;
        verdicts.await.map_err(|_| ended())?
    }
}

impl EventHandler {
    fn incoming(&self, delivery: &Delivery) -> Incoming {
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
            change: self.checks.check(delivery),
        }
    }
}
