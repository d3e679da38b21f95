//! Wires the parts together, in the order they must start.
//!
//! First everything that must be right (the routes or the last good table, the
//! certificates, every listener), then what may come late (NATS, the database).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwap;
use edd_daemon::cli::Exit;
use edd_events::outbox::Published;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin;
use crate::config::Config;
use crate::control::{self, Boot, Control, Face};
use crate::drain::Drain;
use crate::listener::{self, Doors, Gate, Inherited, RequestGate, Role, Workers};
use crate::shared::Shared;
use crate::ssh::{RecordingsEnd, SshKeys, SshServer};
use crate::systemd;
use crate::take_over::{self, Predecessor, Successor, Successors, TakeOverError};
use crate::telemetry::{AccessLog, Metrics};
use crate::tls::{CertError, CertStore};
use crate::upstream::Fleet;

pub use crate::listener::Addresses;

/// A gateway that serves.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addresses: Addresses,
    /// Its table, metrics and state.
    pub shared: Arc<Shared>,
    face: Face,
    control: ControlPath,
    workers: Workers,
    /// None: there are none, or they are written.
    recordings: Option<RecordingsEnd>,
    /// Ends what only watches: certificates, the admin listener.
    background: CancellationToken,
    shutdown: CancellationToken,
    successors: Option<Successors>,
    /// Who has taken over. Held until the end: that tells it that this process drains.
    successor: Option<Successor>,
    /// SIGHUP.
    hangup: Signal,
}

/// The control path, which can be let go of and taken up again.
#[derive(Debug)]
struct ControlPath {
    /// None: a successor has it, it has ended, or it could not be started again.
    running: Option<Control>,
    ssh_keys: SshKeys,
    events_metrics: edd_events::Metrics,
    /// What streams have taken and the database still holds, however often it is started.
    published: Published,
    /// Whether a predecessor follows what this process writes.
    followed: Arc<AtomicBool>,
}

/// What a start holds that another process must not use at the same time.
#[derive(Debug, Default)]
struct Claim {
    predecessor: Option<Predecessor>,
    control: Option<ControlPath>,
}

/// Starts everything on the caller's runtime; data-plane threads of its own.
///
/// With `config.take_over` it asks the gateway that runs on the same `--state-dir` for its
/// listening sockets and returns when that one has stopped accepting; else it listens on what is
/// `inherited`, and on sockets of its own. It serves until `shutdown` is cancelled or a successor
/// has taken over; [`Running::ended`] then drains it.
///
/// # Errors
/// [`Exit::Usage`] for routes or certificates that leave nothing to serve,
/// [`Exit::Failure`] for addresses that cannot be bound, files that cannot be written, and a
/// take-over that does not come about: the old gateway then goes on.
pub async fn start(
    config: Config,
    inherited: Inherited,
    shutdown: CancellationToken,
) -> Result<Running, Exit> {
    let mut claim = Claim::default();
    let started = begin(config, inherited, shutdown, &mut claim).await;
    if started.is_err() {
        claim.give_up().await;
    }
    started
}

async fn begin(
    config: Config,
    mut inherited: Inherited,
    shutdown: CancellationToken,
    claim: &mut Claim,
) -> Result<Running, Exit> {
    // First of all, for by itself it ends a process.
    let hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    let mut registry = Registry::with_prefix("edd_gateway");
    let metrics = Metrics::register(&mut registry);
    let events_metrics = edd_events::Metrics::register(&mut registry);
    let access = AccessLog::start(&mut registry).context("cannot start the access log")?;
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("cannot create {}", config.state_dir.display()))?;

    let mut boot = read(&config)?;
    if config.take_over {
        match Predecessor::ask(&config.state_dir)
            .await
            .context("cannot take over")?
        {
            Some((found, sockets)) => {
                info!(
                    sockets = sockets.len(),
                    "taking over from a running gateway"
                );
                (claim.predecessor, inherited) = (Some(found), sockets);
            }
            None => info!("no gateway runs that could be taken over from"),
        }
    }
    let bound = listener::bind(&config, inherited).map_err(|error| Exit::Failure(error.into()))?;
    let certs = CertStore::open(&config, metrics.clone()).map_err(|error| match error {
        CertError::OnlyBadPairs(_) => Exit::Usage(vec![error.to_string()]),
        CertError::DevCa(_) | CertError::Library(_) => Exit::Failure(error.into()),
    })?;
    if let Some(predecessor) = &mut claim.predecessor {
        predecessor.release().await.context("cannot take over")?;
        // What the old one wrote last.
        boot = read(&config)?;
    }
    let table = boot.table();
    certs.cover(table.static_specs().map(|route| route.host.clone()));
    let gate = Gate::new(
        config.max_connections,
        config.max_connections_per_ip,
        config.max_upstream_connections,
    );
    let addresses = bound.addresses();
    gate.listening_on(addresses.all());
    let fleet = Fleet::new(
        gate.clone(),
        metrics.clone(),
        config.resolvers.clone(),
        tokio::runtime::Handle::current(),
    );
    fleet.keep(&table);
    fleet.register(&mut registry);
    let shared = Arc::new(Shared {
        request_gate: RequestGate::new(config.request_rate),
        fleet,
        config,
        table: ArcSwap::new(table),
        certs: Arc::new(certs),
        doors: Doors::new(),
        gate,
        metrics,
        access,
        drain: Drain::new(),
    });

    let (bound, ssh_listener, admin_listener) = bound.split();
    let ssh = SshServer::start(Arc::clone(&shared), ssh_listener).await?;
    let recordings = ssh.recordings_end();
    let background = CancellationToken::new();
    tokio::spawn(Arc::clone(&shared.certs).watch(background.clone()));
    let face = Face::new(&shared);
    let control = claim.control.insert(ControlPath {
        running: None,
        ssh_keys: ssh.keys().clone(),
        events_metrics,
        published: Published::default(),
        followed: Arc::new(AtomicBool::new(claim.predecessor.is_some())),
    });
    control.start(&shared, &face, boot).await?;
    let workers = listener::spawn(Arc::clone(&shared), bound, ssh)
        .context("cannot start the data threads")?;
    if let Some(predecessor) = &mut claim.predecessor {
        let mut status = face.status();
        let not_ready = tokio::select! {
            _ = status.wait_for(|status| !status.starting) => None,
            lost = predecessor.lost() => Some(anyhow::Error::new(lost)),
            () = shutdown.cancelled() => Some(anyhow!("stopped before it was ready")),
        };
        if let Some(error) = not_ready {
            return Err(error.context("cannot take over").into());
        }
    }
    shared.doors.open();
    let second = admin_listener.try_clone();
    let second = second.context("the admin listener cannot be used")?;
    shared.doors.keep(Role::Admin, second.into());
    let admin_listener =
        TcpListener::from_std(admin_listener).context("the admin listener cannot be used")?;
    let router = admin::router(Arc::clone(&shared), &face, Arc::new(registry));
    tokio::spawn(admin::serve(admin_listener, router, background.clone()));
    if let Some(predecessor) = &mut claim.predecessor
        && let Err(error) = predecessor.ready().await
    {
        // It goes on, or is gone. Two must not: what came here in the meantime is finished.
        claim.give_up().await;
        shared.drain.run(shared.config.timeouts.drain).await;
        return Err(anyhow::Error::new(error).context("cannot take over").into());
    }
    let successors = Successors::listen(&shared.config.state_dir)
        .inspect_err(|error| {
            let socket = take_over::path(&shared.config.state_dir);
            warn!(socket = %socket.display(), %error, "nobody will be able to take over");
        })
        .ok();
    announce(&addresses);
    let control = claim.control.take().context("the control path is gone")?;
    if let Some(predecessor) = claim.predecessor.take() {
        let followed = Arc::clone(&control.followed);
        tokio::spawn(async move {
            predecessor.ended().await;
            followed.store(false, Ordering::Relaxed);
        });
    }
    Ok(Running {
        addresses,
        shared,
        face,
        control,
        workers,
        recordings,
        background,
        shutdown,
        successors,
        successor: None,
        hangup,
    })
}

impl Claim {
    /// Lets the predecessor go on, once nothing of ours uses what it will use.
    async fn give_up(&mut self) {
        let ended = match self.control.take() {
            Some(mut control) => control.stop().await,
            None => true,
        };
        match self.predecessor.take() {
            Some(predecessor) if !ended => predecessor.hold(),
            // It goes on when this is closed.
            gone => drop(gone),
        }
    }
}

fn read(config: &Config) -> Result<Boot, Exit> {
    Boot::read(config).map_err(|error| {
        let mut lines = vec![error.to_string()];
        lines.extend(error.mistakes);
        Exit::Usage(lines)
    })
}

impl ControlPath {
    async fn start(&mut self, shared: &Arc<Shared>, face: &Face, boot: Boot) -> anyhow::Result<()> {
        let inputs = control::Inputs {
            shared: Arc::clone(shared),
            face: face.clone(),
            boot,
            ssh_keys: Some(self.ssh_keys.clone()),
            events_metrics: self.events_metrics.clone(),
            published: self.published.clone(),
            followed: Arc::clone(&self.followed),
        };
        self.running = Some(control::start(inputs).await?);
        Ok(())
    }

    /// Whether it has ended; if not, it has been asked to.
    async fn stop(&mut self) -> bool {
        if let Some(control) = &mut self.running {
            if !control.stop().await {
                return false;
            }
            self.running = None;
        }
        true
    }

    /// Ready when what runs is of no use any more, or nothing does.
    async fn broken(&self) {
        if let Some(control) = &self.running {
            control.broken().await;
        }
    }

    /// After it has been asked to end, and nobody else uses what it will use.
    async fn resume(&mut self, shared: &Arc<Shared>, face: &Face) {
        if self
            .running
            .as_ref()
            .is_some_and(|control| !control.is_ending())
        {
            return;
        }
        self.start_again(shared, face).await;
    }

    async fn start_again(&mut self, shared: &Arc<Shared>, face: &Face) {
        while !self.stop().await {
            error!(
                "the control path has not ended and cannot start again, the table in use goes on"
            );
        }
        if let Err(error) = self.start(shared, face, Boot::resume(shared)).await {
            error!(%error, "the control path does not start again, the table in use goes on");
        }
    }
}

fn announce(addresses: &Addresses) {
    let named = [
        ("http", addresses.http),
        ("https", addresses.https),
        ("ssh", addresses.ssh),
        ("admin", addresses.admin),
    ];
    for (listener, addr) in named {
        info!(listener, %addr, "listening");
    }
    if let (Some(first), Some(last)) = (addresses.ports.first(), addresses.ports.last()) {
        info!(listener = "ports", %first, %last, count = addresses.ports.len(), "listening");
    }
}

impl Running {
    /// Waits for the shutdown or a successor, drains, and returns when everything has ended.
    ///
    /// Bounded by `--drain-timeout` and some seconds for cutting the rest.
    pub async fn ended(mut self) {
        let shutdown = self.shutdown.clone();
        let follower = CancellationToken::new();
        let mut handed_over = false;
        while !handed_over {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(()) = self.hangup.recv() => {
                    // Files may lie on a disk that is away.
                    if shutdown.run_until_cancelled(self.reload()).await.is_none() {
                        break;
                    }
                }
                // Also while the own control path cannot be started.
                successor = next(self.successors.as_ref()) => {
                    let taken = self.hand_over(successor, &follower);
                    match shutdown.run_until_cancelled(taken).await {
                        Some(taken) => handed_over = taken,
                        None => break,
                    }
                }
                () = self.control.broken() => {
                    let again = async {
                        // What it panicked at, or lacked, may be so still.
                        tokio::time::sleep(RESTART_PAUSE).await;
                        self.control.start_again(&self.shared, &self.face).await;
                    };
                    if shutdown.run_until_cancelled(again).await.is_none() {
                        break;
                    }
                }
            }
        }
        if !handed_over {
            // Else systemd would take it for the end of the new one.
            systemd::notify(systemd::State::Stopping);
        }
        self.drain().await;
        follower.cancel();
        self.control.stop().await;
        self.workers.join().await;
        // Last, so that it can be asked to the end.
        self.background.cancel();
        self.shared.doors.forget();
        if let Some(recordings) = self.recordings
            && !recordings.wait(FLUSH_LIMIT).await
        {
            warn!("the recordings of SSH sessions were not written to their end");
        }
        let access = self.shared.access.clone();
        let flush = move || access.flush(FLUSH_LIMIT);
        if tokio::task::spawn_blocking(flush).await.is_err() {
            warn!("the access log was not written to its end");
        }
    }

    /// Reads certificates and routes again, as SIGHUP asks; returns when both are in force or
    /// refused.
    pub async fn reload(&self) {
        systemd::notify(systemd::State::Reloading);
        let certs = Arc::clone(&self.shared.certs);
        let certs = tokio::task::spawn_blocking(move || certs.reload());
        if let Some(control) = &self.control.running {
            control.reload().await;
        }
        if let Err(error) = certs.await {
            error!(%error, "the certificates were not read");
        }
        info!("routes and certificates read again");
        systemd::notify(systemd::State::Ready);
    }

    async fn drain(&mut self) {
        // Nobody takes over from here on.
        self.successors = None;
        let drain = &self.shared.drain;
        let timeout = self.shared.config.timeouts.drain;
        info!(connections = self.shared.gate.open(), ?timeout, "draining");
        match drain.run(timeout).await {
            0 => info!("drained"),
            cut => warn!(cut, "the drain's time is over, connections cut"),
        }
    }

    /// Gives everything to a successor; false if that did not come about and all is as before.
    async fn hand_over(
        &mut self,
        successor: Result<Successor, TakeOverError>,
        follower: &CancellationToken,
    ) -> bool {
        let mut successor = match successor {
            Ok(successor) => successor,
            Err(error) => {
                warn!(%error, "a new process did not take over, going on");
                return false;
            }
        };
        let following = follower.child_token();
        let Err(error) = self.try_hand_over(&mut successor, &following).await else {
            info!("a new process has taken over");
            // It answers for both of us.
            self.background.cancel();
            self.successor = Some(successor);
            return true;
        };
        warn!(%error, "a new process did not take over, going on");
        if self.control.running.is_none() {
            // It may have begun to use database and consumers.
            successor.ends().await;
        }
        drop(successor);
        following.cancel();
        self.control.resume(&self.shared, &self.face).await;
        false
    }

    async fn try_hand_over(
        &mut self,
        successor: &mut Successor,
        following: &CancellationToken,
    ) -> Result<(), TakeOverError> {
        info!(pid = successor.pid, "a new process wants to take over");
        successor.offer(&self.shared.doors).await?;
        successor.wants_release().await?;
        // Its database, its consumers, its outbox: never those of two processes at once.
        if !self.control.stop().await {
            successor.busy().await;
            return Err(TakeOverError::Busy);
        }
        let follow = self
            .face
            .clone()
            .follow(Arc::clone(&self.shared), following.clone());
        tokio::spawn(follow);
        successor.becomes_ready().await?;
        successor.go().await?;
        self.shared.doors.hand_over();
        Ok(())
    }
}

async fn next(successors: Option<&Successors>) -> Result<Successor, TakeOverError> {
    match successors {
        Some(successors) => successors.next().await,
        None => std::future::pending().await,
    }
}

/// Before a control path that has panicked, or could not be started, is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// What is left of the recordings and of the access log at the end is written within this, each.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
