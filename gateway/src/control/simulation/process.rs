//! One gateway process: the real writer, and what stands around it.
//!
//! Plays `sources::database`, `sources::events` with the consumers of the event
//! library, `sources::watch` and `last_good`, by their documented behaviour.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use clap::Parser;
use edd_events::consumer::{Unavailable, Verdict};
use edd_events::envelope::Cause;
use edd_route::snapshot::Snapshot;
use edd_route::table::Settings;
use edd_route::{Origin, RouteTable, StaticRouteSpec, TableWriter, TargetSpec};
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::database::Opening;
use super::model::Watched;
use super::world::{Message, STREAMS, World};
use crate::config::{Config, ServeArgs};
use crate::control::reconcile::{Change, Stamp, State};
use crate::control::sources::again::{Again, Reader};
use crate::control::status::{DatabaseStatus, NatsStatus, StatusBoard};
use crate::control::store::{self, GatewayStore as _};
use crate::control::writer::{Command, Floor, Incoming, Session, Writer};
use crate::drain::Drain;
use crate::listener::{Doors, Gate, RequestGate};
use crate::shared::Shared;
use crate::telemetry::{AccessLog, Metrics};
use crate::tls::CertStore;
use crate::upstream::Fleet;

/// Most events of one batch.
const BATCH_MAX: usize = 8;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    serve: ServeArgs,
}

/// What all processes can share: making it anew costs keys and files.
pub(super) struct Parts {
    config: Config,
    certs: Arc<CertStore>,
    metrics: Metrics,
    _folder: tempfile::TempDir,
}

impl Parts {
    pub(super) fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::create_dir(path("certs")).expect("a folder");
        // A pair of its own: nothing is signed for new hosts.
        let pair = rcgen::generate_simple_self_signed(vec!["x.test".into()]).expect("a pair");
        std::fs::write(path("certs/tls.crt"), pair.cert.pem()).expect("a file");
        std::fs::write(path("certs/tls.key"), pair.signing_key.serialize_pem()).expect("a file");
        let certs = path("certs");
        let flags = [
            "edd-gateway",
            "--certs-dir",
            &certs,
            "--state-dir",
            &path("state"),
        ];
        let config = Flags::parse_from(flags).serve.check().expect("good flags");
        let metrics = Metrics::register(&mut Registry::default());
        Self {
            certs: Arc::new(CertStore::open(&config, metrics.clone()).expect("certificates")),
            config,
            metrics,
            _folder: folder,
        }
    }

    fn shared(&self, table: Arc<RouteTable>) -> Arc<Shared> {
        let gate = Gate::new(9, None, 9);
        let metrics = self.metrics.clone();
        Arc::new(Shared {
            table: ArcSwap::new(table),
            certs: Arc::clone(&self.certs),
            doors: Doors::new(),
            request_gate: RequestGate::new(None),
            fleet: Fleet::new(gate.clone(), metrics.clone(), vec![], Handle::current()),
            metrics,
            access: AccessLog::off(),
            drain: Drain::new(),
            config: self.config.clone(),
            gate,
        })
    }
}

/// The file's contents to choose from.
pub(super) fn routes(content: usize) -> Vec<StaticRouteSpec> {
    let route = |n: usize| {
        let origin = Origin::File {
            file: "routes.yaml".into(),
            line: u32::try_from(n).expect("small"),
        };
        let target = TargetSpec::http(&format!("127.0.0.1:{}", 9000 + content));
        StaticRouteSpec::new(&format!("h{n}.test"), "/", vec![target], origin)
    };
    (0..content).map(route).collect()
}

/// A process that was started and not yet ended.
pub(super) struct Process {
    world: Arc<World>,
    shared: Arc<Shared>,
    writer: Option<Writer<Opening>>,
    board: StatusBoard,
    revision: watch::Sender<u64>,
}

/// What the consumers must know of an opened database.
#[derive(Clone)]
struct Opened {
    number: u64,
    lost: bool,
    replaced: bool,
    positions: BTreeMap<String, u64>,
    floors: BTreeMap<String, u64>,
    tries: BTreeMap<String, u64>,
}

impl Process {
    /// What `Boot` does: the last good table, and the file.
    pub(super) fn boot(world: &Arc<World>, parts: &Parts) -> Self {
        let (last_good, content) = {
            let inner = world.lock();
            (inner.last_good.clone(), inner.routes)
        };
        let mut table = RouteTable::empty(Settings::new("example.com", vec![443]));
        let last_good_revision = last_good.as_ref().map_or(0, |snapshot| snapshot.revision);
        table.revision = last_good_revision;
        let mut writer = TableWriter::new(table);
        if let Some(snapshot) = last_good {
            writer.set_statics(snapshot.statics);
            writer.replace_dynamic(snapshot.containers, snapshot.keys);
        }
        writer.set_statics(routes(content));
        let table = match writer.publish(0) {
            Some(published) => Arc::clone(&published.table),
            None => Arc::new(writer.table().clone()),
        };
        let shared = parts.shared(table);
        let board = StatusBoard::new(true);
        board.update(|status| status.nats = NatsStatus::Connected);
        let revision = watch::Sender::new(shared.table().revision);
        let writer = Writer::new(
            Arc::clone(&shared),
            writer,
            last_good_revision,
            board.clone(),
            revision.clone(),
        );
        world.lock().shared = Some(Arc::clone(&shared));
        Self {
            world: Arc::clone(world),
            shared,
            writer: Some(writer),
            board,
            revision,
        }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self) {
        let (commands, queue) = mpsc::channel(16);
        let writer = self.writer.take().expect("run once");
        let (opened, sessions) = watch::channel(None);
        tokio::join!(
            writer.run(queue, CancellationToken::new()),
            self.database(commands.clone(), opened),
            self.events(commands.clone(), sessions),
            self.file(commands),
            self.last_good(),
            self.status(),
        );
    }

    async fn database(
        &self,
        commands: mpsc::Sender<Command<Opening>>,
        opened: watch::Sender<Option<Opened>>,
    ) {
        let mut number = 0;
        let mut last = None;
        loop {
            let identity = self.world.lock().rows.identity;
            let store = Opening {
                world: Arc::clone(&self.world),
                identity,
            };
            if let Ok(mut stored) = store.load().await {
                let lost = !stored.born && self.world.lock().marker;
                self.world.lock().marker = true;
                if lost {
                    let (state, last) = State::of_table(&self.shared.table());
                    stored.state = state;
                    stored.positions = BTreeMap::from([("COMPUTE".to_owned(), last)]);
                }
                number += 1;
                let failed = CancellationToken::new();
                let replaced = last.replace(identity).is_some_and(|last| last != identity);
                let now = Opened {
                    number,
                    lost: lost || stored.rebuilding,
                    replaced,
                    positions: stored.positions.clone(),
                    floors: stored.floors.clone(),
                    tries: stored.tries.clone(),
                };
                let session = Session {
                    number,
                    store,
                    stored,
                    lost,
                    replaced,
                    waker: None,
                    failed: failed.clone(),
                };
                self.world.note(|| {
                    let Opened {
                        positions, floors, ..
                    } = &now;
                    format!(
                        "opened {number}, lost {lost}, replaced {replaced}, {positions:?}, {floors:?}"
                    )
                });
                let handed = commands.send(Command::Opened(Box::new(session))).await;
                assert!(handed.is_ok(), "the writer ends with the process");
                self.world.point().await;
                self.world.lock().opened = Some(identity);
                opened.send_replace(Some(now));
                failed.cancelled().await;
            }
            self.world.pause(2_000).await;
        }
    }

    async fn events(
        &self,
        commands: mpsc::Sender<Command<Opening>>,
        mut sessions: watch::Receiver<Option<Opened>>,
    ) {
        let mut is_first = true;
        loop {
            let opened = sessions
                .wait_for(Option::is_some)
                .await
                .expect("it runs")
                .clone();
            let opened = opened.expect("there");
            let number = opened.number;
            let anew = |later: &Option<Opened>| {
                let later = later.as_ref();
                later.is_some_and(|l| l.number > number && (l.lost || l.replaced))
            };
            tokio::select! {
                biased;
                _ = sessions.wait_for(anew) => {}
                () = self.consume(&commands, opened, is_first) => {}
            }
            is_first = false;
        }
    }

    async fn consume(
        &self,
        commands: &mpsc::Sender<Command<Opening>>,
        opened: Opened,
        is_first: bool,
    ) {
        let mut agains = Vec::new();
        for (stream, name) in STREAMS.into_iter().enumerate() {
            let of = |known: &BTreeMap<String, u64>| known.get(name).copied().unwrap_or_default();
            let tries = if is_first { of(&opened.tries) } else { 0 };
            let mut again = Again::new(name, of(&opened.positions), of(&opened.floors), tries);
            loop {
                self.world.point().await;
                let found = self.world.found(stream);
                if again.identify(found, commands).await.is_ok() {
                    break;
                }
                self.world.pause(500).await;
            }
            agains.push(again);
        }
        self.board.update(|status| status.consuming = true);
        let through = [Cell::new(false), Cell::new(false)];
        let compute = agains.pop().expect("two");
        let auth = agains.pop().expect("two");
        tokio::join!(
            self.consumer(0, auth, &through[0], commands),
            self.consumer(1, compute, &through[1], commands),
            self.caught_up(&through, commands, opened.number),
        );
    }

    async fn caught_up(
        &self,
        through: &[Cell<bool>; 2],
        commands: &mpsc::Sender<Command<Opening>>,
        number: u64,
    ) {
        let mut told = false;
        loop {
            let now = through.iter().all(Cell::get);
            if now && (!told || self.world.percent(5)) {
                let floors = STREAMS.into_iter().enumerate().map(|(stream, name)| {
                    let found = self.world.found(stream);
                    Floor {
                        stream: name,
                        created: found.created,
                        sequence: found.acknowledged,
                    }
                });
                let floors = floors.collect();
                self.world.point().await;
                let _ = commands.send(Command::Acknowledged(number, floors)).await;
            }
            if now && !told {
                let _ = commands.send(Command::CaughtUp(number)).await;
            }
            if told && !now {
                self.board.update(|status| status.caught_up = false);
            }
            told = now;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    async fn consumer(
        &self,
        stream: usize,
        mut again: Again,
        through: &Cell<bool>,
        commands: &mpsc::Sender<Command<Opening>>,
    ) {
        loop {
            self.world.bind(stream);
            let making = self.world.making(stream);
            let found = self.world.found(stream);
            self.world.point().await;
            let mut reader = Reading {
                world: &self.world,
                stream,
                making,
                last: 0,
            };
            let greeted = async {
                again.identify(found, commands).await?;
                again.read(found, &mut reader, commands).await
            };
            if greeted.await.is_err() {
                self.world.pause(5_000).await;
                continue;
            }
            let mut seen_all = false;
            loop {
                let max =
                    1 + usize::try_from(self.shared.table().revision).unwrap_or(0) % BATCH_MAX;
                let Some(batch) = self.world.fetch(stream, making, max) else {
                    break;
                };
                if batch.is_empty() {
                    seen_all |= self.world.is_delivered(stream);
                    through.set(seen_all);
                    let news = self.world.news.notified();
                    let _ = tokio::time::timeout(Duration::from_millis(500), news).await;
                    continue;
                }
                self.world.point().await;
                self.work(stream, making, &batch, commands).await;
            }
            through.set(false);
        }
    }

    async fn work(
        &self,
        stream: usize,
        making: u32,
        batch: &[(u64, Message)],
        commands: &mpsc::Sender<Command<Opening>>,
    ) {
        let sequences: Vec<u64> = batch.iter().map(|(sequence, _)| *sequence).collect();
        let verdicts = loop {
            let (answer, verdicts) = oneshot::channel();
            let events = batch.iter().map(|(at, event)| incoming(stream, *at, event));
            let command = Command::Events {
                batch: events.collect(),
                answer,
            };
            let sent = commands.send(command).await;
            assert!(sent.is_ok(), "the writer ends with the process");
            match verdicts.await.expect("an answer") {
                Ok(verdicts) => break verdicts,
                Err(_unavailable) => {
                    self.world.pause(5_000).await;
                    self.world.progress(stream, making, &sequences);
                }
            }
        };
        assert_eq!(verdicts.len(), batch.len());
        for ((sequence, message), verdict) in batch.iter().zip(verdicts) {
            self.world.point().await;
            if let Verdict::Reject(_) = verdict {
                assert!(message.what.is_none(), "a good event refused: {message:?}");
                let letter = (stream, making, *sequence);
                self.world.lock().dead_letters.insert(letter);
                self.world.point().await;
            } else {
                super::model::is_durable(&self.world, message);
            }
            self.world.acknowledge(stream, making, *sequence);
        }
    }

    async fn file(&self, commands: mpsc::Sender<Command<Opening>>) {
        let mut seen = None;
        loop {
            let now = self.world.lock().routes;
            if seen.replace(now) != Some(now) {
                self.world.point().await;
                let _ = commands.send(Command::Routes(routes(now))).await;
            }
            let news = self.world.news.notified();
            let _ = tokio::time::timeout(Duration::from_secs(5), news).await;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }

    /// Writes the last good table, and looks at each table that comes in force.
    async fn last_good(&self) {
        let mut revision = self.revision.subscribe();
        let mut watched = Watched::new(self.shared.table());
        loop {
            let changed = revision.changed();
            let wait = tokio::time::timeout(Duration::from_millis(250), changed);
            if matches!(wait.await, Ok(Ok(()))) {
                watched.look(self.shared.table());
                continue;
            }
            let table = self.shared.table();
            let saved = self
                .world
                .lock()
                .last_good
                .as_ref()
                .map(|saved| saved.revision);
            if saved != Some(table.revision) {
                self.world.point().await;
                self.world.lock().last_good = Some(Snapshot::of(&table, 0));
            }
        }
    }

    async fn status(&self) {
        let mut status = self.board.watch();
        loop {
            let now = status.borrow_and_update().clone();
            self.world.lock().whole =
                now.is_whole() && now.database == DatabaseStatus::Ok && now.consuming;
            if status.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The stream past its durable consumer.
struct Reading<'a> {
    world: &'a World,
    stream: usize,
    making: u32,
    /// Events that were read last.
    last: usize,
}

impl Reader for Reading<'_> {
    async fn read(
        &mut self,
        from: u64,
        to: u64,
        max: usize,
    ) -> Result<(Vec<Incoming>, u64), Unavailable> {
        self.world.point().await;
        let up_to = to.min(from + u64::try_from(max.min(BATCH_MAX)).expect("small") - 1);
        let messages = self.world.read(self.stream, self.making, from..=up_to);
        let messages = messages.ok_or_else(|| Unavailable("another stream".into()))?;
        self.world.lock().counts.read += 1;
        self.last = messages.len();
        let events = messages
            .iter()
            .map(|(at, event)| incoming(self.stream, *at, event));
        Ok((events.collect(), up_to))
    }

    fn handled(&mut self, verdicts: &[Verdict]) {
        if verdicts.len() < self.last {
            self.world.left_out();
        }
    }
}

fn incoming(stream: usize, sequence: u64, message: &Message) -> Incoming {
    let stamp = Stamp {
        version: message.version,
        sequence,
    };
    let origin = Origin::Event {
        subject: "simulated".into(),
        sequence,
        event_id: message.event_id.clone(),
        at_ms: 0,
    };
    let change = match &message.what {
        Some(what) => Ok(Change {
            stamp,
            origin,
            what: what.clone(),
        }),
        None => Err("poison".to_owned()),
    };
    Incoming {
        event_id: message.event_id.clone(),
        stream: STREAMS[stream].to_owned(),
        sequence,
        told: store::Cause::default(),
        cause: Cause {
            causation_id: Some(message.event_id.clone()),
            ..Cause::default()
        },
        change,
    }
}
