//! One gateway process: the real writer, and what stands around it.
//!
//! Plays `sources::database`, `sources::replicas`, `sources::watch` and `last_good` by
//! their documented behaviour; [`consuming`](super::consuming) plays `sources::events`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use clap::Parser;
use edd_route::snapshot::Snapshot;
use edd_route::table::Settings;
use edd_route::{Origin, RouteTable, StaticRouteSpec, TableWriter, TargetSpec};
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::model::Watched;
use super::opening::Opening;
use super::world::World;
use crate::config::{Config, ServeArgs};
use crate::control::reconcile::State;
use crate::control::status::{DatabaseStatus, NatsStatus, StatusBoard};
use crate::control::store::{GatewayStore as _, Streams};
use crate::control::writer::{Command, Session, Writer};
use crate::drain::Drain;
use crate::listener::{Doors, Gate, RequestGate};
use crate::shared::Shared;
use crate::telemetry::{AccessLog, Metrics};
use crate::tls::CertStore;
use crate::upstream::Fleet;

/// A look at the database without any news.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

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
    pub(super) world: Arc<World>,
    pub(super) seat: usize,
    pub(super) shared: Arc<Shared>,
    writer: Option<Writer<Opening>>,
    pub(super) board: StatusBoard,
    revision: watch::Sender<u64>,
    /// What was delivered to it and is not answered: stream, its making, sequence.
    pub(super) held: Mutex<BTreeSet<(usize, u32, u64)>>,
}

/// What the consumers must know of an opened database.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) number: u64,
    pub(super) lost: bool,
    pub(super) replaced: bool,
    pub(super) streams: Streams,
}

impl Process {
    /// What `Boot` does: the last good table, and the file.
    pub(super) fn boot(world: &Arc<World>, seat: usize, parts: &Parts) -> Self {
        let (last_good, content) = {
            let inner = world.lock();
            (inner.seats[seat].last_good.clone(), inner.routes)
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
            watch::Sender::new(0),
        );
        world.lock().seats[seat].shared = Some(Arc::clone(&shared));
        Self {
            world: Arc::clone(world),
            seat,
            shared,
            writer: Some(writer),
            board,
            revision,
            held: Mutex::default(),
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
            self.replicas(&commands),
            self.events(&commands, sessions),
            self.file(&commands),
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
            let (identity, breaks) = {
                let inner = self.world.lock();
                (inner.rows.identity, inner.breaks)
            };
            let store = Opening {
                world: Arc::clone(&self.world),
                seat: self.seat,
                identity,
                breaks,
            };
            if let Ok(mut stored) = store.load().await {
                let had_one =
                    std::mem::replace(&mut self.world.lock().seats[self.seat].marker, true);
                let lost = !stored.born && had_one;
                if lost {
                    let (state, last) = State::of_table(&self.shared.table());
                    stored.state = state;
                    let compute = stored.streams.entry("COMPUTE".to_owned());
                    compute.or_default().position = last;
                }
                number += 1;
                let failed = CancellationToken::new();
                let replaced = last.replace(identity).is_some_and(|last| last != identity);
                let now = Opened {
                    number,
                    lost: lost || stored.rebuilding,
                    replaced,
                    streams: stored.streams.clone(),
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
                self.note(|| {
                    let streams = &now.streams;
                    format!("opened {number}, lost {lost}, replaced {replaced}, {streams:?}")
                });
                let handed = commands.send(Command::Opened(Box::new(session))).await;
                assert!(handed.is_ok(), "the writer ends with the process");
                self.world.point(self.seat).await;
                self.world.lock().seats[self.seat].opened = Some(identity);
                opened.send_replace(Some(now));
                failed.cancelled().await;
            }
            self.world.pause(2_000).await;
        }
    }

    /// Follows the others: at their word, which may be late or lost, and every second.
    async fn replicas(&self, commands: &mpsc::Sender<Command<Opening>>) {
        if self.world.gateways() == 1 {
            return std::future::pending().await;
        }
        loop {
            let word = self.world.refreshed.notified();
            let mut wanted = None;
            if tokio::time::timeout(LOOK_INTERVAL, word).await.is_ok() {
                {
                    let inner = self.world.lock();
                    let revision = self.shared.table().revision;
                    let is_heard = inner.seats[self.seat].has_nats();
                    wanted = Some(inner.rows.revision).filter(|r| is_heard && *r > revision);
                }
                self.world.pause(20).await;
                if wanted.is_none() {
                    continue;
                }
            }
            let _ = commands.send(Command::Follow(wanted)).await;
        }
    }

    async fn file(&self, commands: &mpsc::Sender<Command<Opening>>) {
        let mut seen = None;
        loop {
            let now = self.world.lock().routes;
            if seen.replace(now) != Some(now) {
                self.world.point(self.seat).await;
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
            let saved = {
                let inner = self.world.lock();
                let saved = inner.seats[self.seat].last_good.as_ref();
                saved.map(|saved| saved.revision)
            };
            if saved != Some(table.revision) {
                self.world.point(self.seat).await;
                let saved = Some(Snapshot::of(&table, 0));
                self.world.lock().seats[self.seat].last_good = saved;
            }
        }
    }

    async fn status(&self) {
        let mut status = self.board.watch();
        loop {
            let now = status.borrow_and_update().clone();
            self.world.lock().seats[self.seat].whole =
                now.is_whole() && now.database == DatabaseStatus::Ok && now.consuming;
            if status.changed().await.is_err() {
                return;
            }
        }
    }

    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        let inner = &mut *self.world.lock();
        self.world
            .note(inner, || format!("{}: {}", self.seat, what()));
    }
}
