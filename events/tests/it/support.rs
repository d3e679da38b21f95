//! A service in small: a database with an outbox, a relay, and a consumer whose
//! handler records what it is given and answers as told.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, message::StreamMessage};
use edd_events::{
    Metrics,
    consumer::{Consumer, ConsumerSpec, Handler, Unavailable, Verdict},
    envelope::{Cause, seal},
    event::Delivery,
    outbox::{self, OutboxEntry, Relay, Waker},
    signature::Signer,
    stream::{self, StreamSpec},
    subject::EntityId,
    testing::NatsServer,
};
use edd_proto::compute::ContainerCreated;
use edd_store::{Database, testing::database_of};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// No condition of these tests takes longer on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// The gateway's consumer of compute's events.
pub(crate) const SPEC: ConsumerSpec = ConsumerSpec {
    stream: stream::COMPUTE,
    durable: "gateway-service",
    filter: "compute.>",
    batch_max: 256,
};

/// Retries that a test can wait for.
pub(crate) const QUICK_RETRIES: [Duration; 4] = [Duration::from_millis(50); 4];

/// Polls until `condition` holds; fails with `what` after [`DEADLINE`].
pub(crate) async fn eventually<F, Fut>(what: &str, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A database with an outbox, and a relay that may be running.
pub(crate) struct Service {
    pub(crate) database: Database,
    pub(crate) waker: Waker,
    relay: JoinHandle<()>,
    shutdown: CancellationToken,
    _folder: TempDir,
}

impl Service {
    pub(crate) async fn start(js: jetstream::Context, metrics: Metrics) -> Self {
        Self::start_as(js, metrics, None).await
    }

    /// With a relay that signs.
    pub(crate) async fn start_signed(js: jetstream::Context, signer: Option<Arc<Signer>>) -> Self {
        Self::start_as(js, Metrics::default(), signer).await
    }

    async fn start_as(
        js: jetstream::Context,
        metrics: Metrics,
        signer: Option<Arc<Signer>>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = database_of(folder.path()).await;
        let database = Database::open(&url).await.unwrap();
        database.migrate(outbox::TABLE).await.unwrap();
        let shutdown = CancellationToken::new();
        let relay = Relay::new(database.clone(), js, metrics).with_signer(signer);
        let waker = relay.waker();
        let relay = tokio::spawn(relay.run(shutdown.clone()));
        Self {
            database,
            waker,
            relay,
            shutdown,
            _folder: folder,
        }
    }

    /// One transaction, as services do it.
    pub(crate) async fn write(&self, entries: &[OutboxEntry]) {
        let mut transaction = self.database.begin().await.unwrap();
        for entry in entries {
            outbox::insert(&mut transaction, entry).await.unwrap();
        }
        transaction.commit().await.unwrap();
        self.waker.wake();
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.relay)
            .await
            .unwrap()
            .unwrap();
    }
}

/// `compute.container.c{n}.created`.
pub(crate) fn created(n: usize) -> OutboxEntry {
    let id = format!("c{n}");
    let message = ContainerCreated {
        container_id: id.clone(),
        user_id: 7,
        name: format!("name {n}"),
        ..ContainerCreated::default()
    };
    let entity = EntityId::try_from(id).unwrap();
    seal("edd-compute", &entity, 0, message, &Cause::default())
}

/// What a [`Recorder`] answers to a delivery.
pub(crate) type Answer = dyn Fn(&Delivery) -> Result<Verdict, Unavailable> + Send + Sync;

/// Records deliveries and how large their batches were.
#[derive(Clone)]
pub(crate) struct Recorder {
    seen: Arc<Mutex<Seen>>,
    answer: Arc<Answer>,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) deliveries: Vec<Delivery>,
    /// From the stream's time of each to its handler.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) batches: Vec<usize>,
    pub(crate) calls: usize,
}

impl Recorder {
    /// Applies everything.
    pub(crate) fn new() -> Self {
        Self::answering(|_| Ok(Verdict::Applied))
    }

    pub(crate) fn answering(
        answer: impl Fn(&Delivery) -> Result<Verdict, Unavailable> + Send + Sync + 'static,
    ) -> Self {
        Self {
            seen: Arc::default(),
            answer: Arc::new(answer),
        }
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap())
    }

    /// The entities of the handled events, in order.
    pub(crate) fn entities(&self) -> Vec<String> {
        self.look(|seen| {
            seen.deliveries
                .iter()
                .map(|d| d.event.entity.to_string())
                .collect()
        })
    }

    pub(crate) async fn saw(&self, count: usize) {
        eventually(&format!("{count} deliveries"), || async {
            self.look(|seen| seen.deliveries.len()) >= count
        })
        .await;
    }
}

impl Handler for Recorder {
    async fn handle(&mut self, batch: &[Delivery]) -> Result<Vec<Verdict>, Unavailable> {
        self.seen.lock().unwrap().calls += 1;
        let verdicts: Result<Vec<_>, Unavailable> = batch
            .iter()
            .map(|delivery| (self.answer)(delivery))
            .collect();
        if verdicts.is_ok() {
            let mut seen = self.seen.lock().unwrap();
            seen.latencies.extend(
                batch
                    .iter()
                    .map(|d| d.position.published_at.elapsed().unwrap_or_default()),
            );
            seen.deliveries.extend_from_slice(batch);
            seen.batches.push(batch.len());
        }
        verdicts
    }
}

/// A consumer in a task of its own.
pub(crate) struct Running {
    pub(crate) recorder: Recorder,
    pub(crate) caught_up: tokio::sync::watch::Receiver<bool>,
    task: JoinHandle<()>,
    shutdown: CancellationToken,
    registry: Registry,
    family: Metrics,
}

impl Running {
    pub(crate) fn start(js: jetstream::Context, recorder: Recorder) -> Self {
        Self::with_spec(js, SPEC, recorder)
    }

    pub(crate) fn with_spec(
        js: jetstream::Context,
        spec: ConsumerSpec,
        recorder: Recorder,
    ) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let consumer = Consumer::new(js, spec, 1, metrics.clone()).with_retry_delays(QUICK_RETRIES);
        Self::run(consumer, recorder, registry, metrics)
    }

    /// With an ack wait that a test can wait for.
    pub(crate) fn with_ack_wait(
        js: jetstream::Context,
        ack_wait: Duration,
        recorder: Recorder,
    ) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let consumer = Consumer::new(js, SPEC, 1, metrics.clone())
            .with_retry_delays(QUICK_RETRIES)
            .with_ack_wait(ack_wait);
        Self::run(consumer, recorder, registry, metrics)
    }

    /// The metrics, to be counted in by others.
    pub(crate) fn family(&self) -> Metrics {
        self.family.clone()
    }

    /// With the pauses of production.
    pub(crate) fn with_real_delays(js: jetstream::Context, recorder: Recorder) -> Self {
        let consumer = Consumer::new(js, SPEC, 1, Metrics::default());
        Self::run(consumer, recorder, Registry::default(), Metrics::default())
    }

    /// One that is configured already.
    pub(crate) fn run_consumer(consumer: Consumer, recorder: Recorder) -> Self {
        Self::run(consumer, recorder, Registry::default(), Metrics::default())
    }

    fn run(consumer: Consumer, recorder: Recorder, registry: Registry, family: Metrics) -> Self {
        let caught_up = consumer.caught_up();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(consumer.run(recorder.clone(), shutdown.clone()));
        Self {
            recorder,
            caught_up,
            task,
            shutdown,
            registry,
            family,
        }
    }

    pub(crate) async fn caught_up(&mut self) {
        let wait = self.caught_up.wait_for(|done| *done);
        tokio::time::timeout(DEADLINE, wait)
            .await
            .expect("caught up in time")
            .unwrap();
    }

    /// The metrics as text.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }

    pub(crate) async fn metric(&self, line: &str) {
        eventually(line, || async {
            self.metrics().lines().any(|found| found == line)
        })
        .await;
    }

    pub(crate) async fn stop(self) -> Recorder {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .expect("stops in time")
            .unwrap();
        self.recorder
    }
}

/// Publishes straight into a stream, as another service might.
pub(crate) async fn publish(js: &jetstream::Context, subject: &str, payload: Vec<u8>) -> u64 {
    let ack = js
        .publish(subject.to_owned(), payload.into())
        .await
        .unwrap();
    ack.await.unwrap().sequence
}

/// The messages of a stream on one subject, oldest first.
pub(crate) async fn stored(
    js: &jetstream::Context,
    spec: &StreamSpec,
    subject: &str,
) -> Vec<StreamMessage> {
    // Perhaps nobody has made it yet.
    let Ok(mut stream) = js.get_stream(spec.name).await else {
        return Vec::new();
    };
    let last = stream.info().await.unwrap().state.last_sequence;
    let mut found = Vec::new();
    for sequence in 1..=last {
        if let Ok(message) = stream.get_raw_message(sequence).await
            && message.subject.as_str() == subject
        {
            found.push(message);
        }
    }
    found
}

/// How many messages the durable consumer has not acknowledged, or not seen.
pub(crate) async fn unsettled(js: &jetstream::Context, spec: &ConsumerSpec) -> u64 {
    let stream = js.get_stream(spec.stream.name).await.unwrap();
    let info = stream.consumer_info(spec.durable).await.unwrap();
    info.num_pending + info.num_ack_pending as u64
}

/// A server, a context and the COMPUTE stream.
pub(crate) async fn server() -> (NatsServer, jetstream::Context) {
    let server = NatsServer::start().await;
    let js = server.jetstream().await;
    (server, js)
}
