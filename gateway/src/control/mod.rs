//! The control path: sources, reconciliation, storage, publication.
//!
//! ```text
//! routes.yaml --+
//! AUTH, COMPUTE +-> writer task: reduce -> one transaction -> swap -> answer
//! gateway_db ---+                (state)   (store)           (table)
//! ```
//!
//! [`Boot`] reads what can be served at once; [`start`] begins everything that
//! may take long or never come. The data path sees nothing of it but the table.

pub mod boot;
pub mod follow;
pub mod history;
pub mod last_good;
pub mod plan;
pub mod reconcile;
#[cfg(test)]
mod simulation;
pub mod sources;
pub mod status;
pub mod store;
pub mod writer;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_nats::jetstream;
use edd_events::connect::connect;
use edd_events::dead_letter::Letters;
use edd_events::outbox::Published;
use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use boot::{Boot, BootError};
use reconcile::{AddressPolicy, Checks};
use sources::database::{Database, RelayParts};
use sources::events::Events;
use sources::{replicas, watch as routes_watch};
use status::StatusBoard;
pub use status::{DatabaseStatus, NatsStatus, Status};
use store::SqlStore;
use writer::Writer;

use crate::listener::interfaces;
use crate::shared::Shared;
use crate::ssh::SshKeys;

/// Commands that wait for the writer; whoever sends more waits.
const COMMANDS_MAX: usize = 16;

/// Without NATS, its streams or the database, starting is over after this.
const STARTING_MAX: Duration = Duration::from_secs(2);

/// How long the tasks may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// A reload that was asked for: answered when it is done.
type Reload = oneshot::Sender<()>;

/// What others see of the control path, whether it runs at the moment or not. Clones share it.
#[derive(Clone, Debug)]
pub struct Face {
    board: StatusBoard,
    revision: watch::Sender<u64>,
    /// Of all gateways on the database, what the table in force has.
    common: watch::Sender<u64>,
    letters: watch::Sender<Option<Letters>>,
    /// Who is asked about the past; none while no database is open.
    history: watch::Sender<Option<SqlStore>>,
}

impl Face {
    /// The face of a control path that has yet to start.
    pub fn new(shared: &Shared) -> Self {
        let revision = shared.table().revision;
        Self {
            board: StatusBoard::new(shared.config.nats.is_some()),
            revision: watch::Sender::new(revision),
            // The number of a last good table may be nobody else's.
            common: watch::Sender::new(match shared.config.database_url.path() {
                Some(_) => revision,
                None => 0,
            }),
            letters: watch::Sender::new(None),
            history: watch::Sender::new(None),
        }
    }

    /// The dead letters; none without NATS.
    pub fn letters(&self) -> watch::Receiver<Option<Letters>> {
        self.letters.subscribe()
    }

    /// Follows what the control path says about itself.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.board.watch()
    }

    /// Follows the revision in force.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Follows up to which revision the table in force has all that it has at any
    /// gateway on the database. The revision in force may be higher: a table that
    /// the database does not know, because it is away, has a number of its own.
    pub fn common_revision(&self) -> watch::Receiver<u64> {
        self.common.subscribe()
    }

    /// Who is asked about the past.
    pub fn history(&self) -> watch::Receiver<Option<SqlStore>> {
        self.history.subscribe()
    }

    /// Follows the last good table, which a successor writes, until `shutdown`.
    pub async fn follow(self, shared: Arc<Shared>, shutdown: CancellationToken) {
        follow::run(shared, self.revision, self.common, shutdown).await;
    }
}

/// The running control path.
#[derive(Debug)]
pub struct Control {
    reloads: mpsc::Sender<Reload>,
    shutdown: CancellationToken,
    /// After the others: writer and database write down what they did last.
    last: CancellationToken,
    /// A part of it has panicked: perhaps nothing changes any more.
    broken: CancellationToken,
    tasks: TaskTracker,
    last_tasks: TaskTracker,
}

/// What the control path is started with.
pub struct Inputs {
    /// The process; its table is that of `boot`.
    pub shared: Arc<Shared>,
    /// Where it shows how it is.
    pub face: Face,
    /// What was read before.
    pub boot: Boot,
    /// What `gateway.ssh.public_key.request` is answered from, and what the database's keys are
    /// for; none: somebody else does.
    pub ssh_keys: Option<SshKeys>,
    /// Counts events.
    pub events_metrics: edd_events::Metrics,
    /// What was published and not yet taken from the database's outbox, whoever ran before.
    pub published: Published,
    /// Whether a predecessor that drains follows the last good table.
    pub followed: Arc<AtomicBool>,
}

/// Starts all tasks of the control path and returns at once: neither NATS nor
/// the database need to be there.
///
/// # Errors
/// NATS options that no retry can cure: a URL, credentials or CA file.
pub async fn start(inputs: Inputs) -> anyhow::Result<Control> {
    let Inputs {
        shared,
        face:
            Face {
                board,
                revision,
                common,
                letters,
                history,
            },
        boot,
        ssh_keys,
        events_metrics,
        published,
        followed,
    } = inputs;
    board.update(|status| status.begin(boot.last_good_at));
    let config = &shared.config;
    let client = match &config.nats {
        Some(nats) => Some((connect(&nats.options).await?, nats)),
        None => None,
    };
    let dead_letters = client.as_ref().map(|(client, _)| {
        let js = jetstream::new(client.clone());
        Letters::new(js, events_metrics.clone())
    });
    letters.send_replace(dead_letters);
    let (reloads, reload_asked) = mpsc::channel(1);
    shared.metrics.table_published(&shared.table());
    let control = Control {
        reloads,
        shutdown: CancellationToken::new(),
        last: CancellationToken::new(),
        broken: CancellationToken::new(),
        tasks: TaskTracker::new(),
        last_tasks: TaskTracker::new(),
    };
    let shutdown = || control.shutdown.child_token();
    let (commands, queue) = mpsc::channel(COMMANDS_MAX);

    let writer = Writer::new(
        Arc::clone(&shared),
        boot.writer,
        boot.last_good_revision,
        board.clone(),
        revision.clone(),
        common,
    );
    let no_more = CancellationToken::new();
    let keeping = last_good::keep(
        Arc::clone(&shared),
        revision.subscribe(),
        followed,
        control.last.child_token(),
        no_more.clone(),
    );
    let keeping = watched(
        "last good table",
        keeping,
        board.clone(),
        control.broken.clone(),
    );
    control.last_tasks.spawn(keeping);
    let writing = writer.run(queue, control.last.child_token());
    let no_more = no_more.drop_guard();
    let writing = watched("writer", writing, board.clone(), control.broken.clone());
    control.last_tasks.spawn(async move {
        writing.await;
        // No table comes after this.
        drop(no_more);
    });
    let watching = routes_watch::run(
        Arc::clone(&shared),
        boot.routes_seen,
        commands.clone(),
        reload_asked,
        shutdown(),
    );
    let watching = watched("routes", watching, board.clone(), control.broken.clone());
    control.tasks.spawn(watching);
    if config.database_url.path().is_none() {
        let js = client
            .as_ref()
            .map(|(client, _)| jetstream::new(client.clone()));
        let following = replicas::run(Arc::clone(&shared), js, commands.clone(), shutdown());
        let following = watched("replicas", following, board.clone(), control.broken.clone());
        control.tasks.spawn(following);
    }
    let (opened, sessions) = watch::channel(None);
    let relay = client.as_ref().map(|(client, nats)| RelayParts {
        js: jetstream::new(client.clone()),
        replicas: nats.replicas,
        signer: nats.signer.clone(),
        published,
        metrics: events_metrics.clone(),
    });
    let database = Database {
        shared: Arc::clone(&shared),
        relay,
        writer: commands.clone(),
        opened,
        history,
        ssh_keys: ssh_keys.clone(),
    };
    let storing = database.run(control.last.child_token());
    let storing = watched("database", storing, board.clone(), control.broken.clone());
    control.last_tasks.spawn(storing);
    let starting = end_of_start(board.clone(), shutdown());
    let starting = watched("start", starting, board.clone(), control.broken.clone());
    control.tasks.spawn(starting);
    let counting = count_staleness(Arc::clone(&shared), board.watch(), shutdown());
    let counting = watched("staleness", counting, board.clone(), control.broken.clone());
    control.tasks.spawn(counting);
    if let Some((client, nats)) = client {
        let events = Events {
            js: jetstream::new(client.clone()),
            replicas: nats.replicas,
            verifier: nats.verifier.clone(),
            metrics: events_metrics,
            gateway_metrics: shared.metrics.clone(),
            digest_interval: config.digest_interval,
            shared_database: config.database_url.path().is_none(),
            checks: Arc::new(checks(&shared)),
            board: board.clone(),
            writer: commands,
            opened: sessions,
            asking: Arc::default(),
        };
        let consuming = events.run(shutdown());
        let consuming = watched("events", consuming, board.clone(), control.broken.clone());
        control.tasks.spawn(consuming);
        let looking = sources::nats::watch_connection(client.clone(), board.clone(), shutdown());
        let looking = watched("NATS", looking, board.clone(), control.broken.clone());
        control.tasks.spawn(looking);
        if let Some(keys) = ssh_keys {
            let answering = sources::nats::answer_public_key(client, keys, shutdown());
            let answering = watched("public key", answering, board, control.broken.clone());
            control.tasks.spawn(answering);
        }
    }
    Ok(control)
}

impl Control {
    /// Looks at the routes file now; returns when what it says is in force or refused.
    pub async fn reload(&self) {
        let (done, is_done) = oneshot::channel();
        // Fails only when it is about to end.
        if self.reloads.send(done).await.is_ok() {
            let _ = is_done.await;
        }
    }

    /// Ends it: sources first, then the writer, and the last good table is
    /// written. Bounded in time; whether it has ended. If not, it is asked to and may be waited
    /// for again: until then its database and consumers are in use.
    pub async fn stop(&mut self) -> bool {
        self.shutdown.cancel();
        self.tasks.close();
        self.last_tasks.close();
        let ending = async {
            self.tasks.wait().await;
            self.last.cancel();
            self.last_tasks.wait().await;
        };
        let ended = tokio::time::timeout(STOP_TIMEOUT, ending).await.is_ok();
        if !ended {
            tracing::warn!("the control path does not end in time");
        }
        ended
    }

    /// Ready when it is of no use any more: to be stopped, and another one to be started.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// Whether it has been told to end.
    pub fn is_ending(&self) -> bool {
        self.shutdown.is_cancelled()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.last.cancel();
    }
}

/// Runs what the table depends on; says so if it panics, which is a bug of ours and no reason to
/// serve an old table for ever, as if nothing came in any more.
async fn watched(
    task: &'static str,
    working: impl Future<Output = ()>,
    board: StatusBoard,
    broken: CancellationToken,
) {
    if AssertUnwindSafe(working).catch_unwind().await.is_err() {
        tracing::error!(task, "the control path panicked: the table in use goes on");
        board.update(|status| {
            status.database = DatabaseStatus::Unavailable;
            status.caught_up = false;
        });
        broken.cancel();
    }
}

fn checks(shared: &Shared) -> Checks {
    let config = &shared.config;
    let mut listeners = vec![
        config.http_addr,
        config.https_addr,
        config.ssh_addr,
        config.admin_addr,
    ];
    listeners.push((config.ports_addr, 0).into());
    let interfaces = interfaces().unwrap_or_else(|error| {
        tracing::warn!(%error, "the addresses of this machine are not known");
        Vec::new()
    });
    Checks {
        addresses: AddressPolicy::new(config.container_cidrs.clone(), &listeners, &interfaces),
        ports: config.ports.clone(),
    }
}

/// Keeps the metric up to date until `shutdown`.
async fn count_staleness(
    shared: Arc<Shared>,
    mut status: watch::Receiver<Status>,
    shutdown: CancellationToken,
) {
    loop {
        let (since, wanted) = {
            let status = status.borrow_and_update();
            (status.stale_since, status.snapshot_wanted.is_some())
        };
        shared.metrics.stale_since(since);
        shared.metrics.snapshot_wanted(wanted);
        let changed = shutdown.run_until_cancelled(status.changed()).await;
        if !matches!(changed, Some(Ok(()))) {
            return;
        }
    }
}

async fn end_of_start(board: StatusBoard, shutdown: CancellationToken) {
    if tokio::time::timeout(STARTING_MAX, shutdown.cancelled())
        .await
        .is_ok()
    {
        return;
    }
    // With all of it there, only the catch-up ends it.
    let waiting = |status: &Status| {
        !status.starting
            || status.nats == NatsStatus::Disconnected
            || !status.consuming
            || status.database == DatabaseStatus::Unavailable
    };
    let mut status = board.watch();
    let ended = status.wait_for(waiting);
    if matches!(shutdown.run_until_cancelled(ended).await, Some(Ok(_))) {
        board.update(|status| status.starting = false);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// Nothing would ever be in force again, and nobody would know.
    #[tokio::test]
    async fn a_part_that_panics_is_noticed() {
        let board = StatusBoard::new(true);
        let broken = CancellationToken::new();
        board.update(|status| {
            status.nats = NatsStatus::Connected;
            status.database = DatabaseStatus::Ok;
            status.caught_up = true;
        });
        watched(
            "test",
            std::future::ready(()),
            board.clone(),
            broken.clone(),
        )
        .await;
        assert!(board.now().is_whole() && !broken.is_cancelled());
        let panics = async { assert!(broken.is_cancelled(), "a bug") };
        watched("test", panics, board.clone(), broken.clone()).await;
        assert!(!board.now().is_whole() && broken.is_cancelled());
    }

    /// Two writers at once is what a successor must not meet.
    #[tokio::test(start_paused = true)]
    async fn what_has_not_ended_is_not_said_to_have() {
        let (reloads, _) = mpsc::channel(1);
        let mut control = Control {
            reloads,
            shutdown: CancellationToken::new(),
            last: CancellationToken::new(),
            broken: CancellationToken::new(),
            tasks: TaskTracker::new(),
            last_tasks: TaskTracker::new(),
        };
        let busy = oneshot::channel::<()>();
        let over = control.last.clone();
        control.tasks.spawn(busy.1);
        control.last_tasks.spawn(over.cancelled_owned());
        assert!(!control.is_ending());
        let begun = Instant::now();
        assert!(!control.stop().await);
        assert_eq!(begun.elapsed(), STOP_TIMEOUT);
        assert!(control.is_ending() && !control.last.is_cancelled());
        drop(busy.0);
        assert!(control.stop().await);
    }
}
