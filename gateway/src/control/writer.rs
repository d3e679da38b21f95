//! The one writer: everything that changes the table goes through this task.
//!
//! A batch of events is judged, reduced on a copy of the state, stored in one
//! transaction, and only then put in force and answered. Killed anywhere in
//! between, the events come again and the inbox and the stamps make that
//! harmless.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use edd_events::consumer::{Unavailable, Verdict};
use edd_events::envelope::{Cause, seal};
use edd_events::outbox::{OutboxEntry, Waker};
use edd_events::subject::EntityId;
use edd_proto::gateway;
use edd_route::{StaticRouteSpec, TableWriter};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::last_good::now_ms;
use super::plan::Plan;
use super::reconcile::{Announcement, Change, Effects, Outcome, State};
use super::status::{DatabaseStatus, NatsStatus, StatusBoard};
use super::store::{Commit, GatewayStore, KEPT_MS, StoreError, Stored, rule_id};
use crate::shared::Shared;

/// Who says so, in the events of this service.
pub(super) const SOURCE: &str = "edd-gateway";

/// How often an idle database is looked at.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// How often old rows are removed.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// An event on its way to the writer.
#[derive(Debug)]
pub struct Incoming {
    /// Its id, for the inbox.
    pub event_id: String,
    /// Its stream.
    pub stream: String,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// What answers to it are caused by.
    pub cause: Cause,
    /// What it says, or why nobody can use it.
    pub change: Result<Change, String>,
}

/// An opened database.
#[derive(Debug)]
pub struct Session<S> {
    /// Counts the openings.
    pub number: u64,
    /// The database.
    pub store: S,
    /// What is in it.
    pub stored: Stored,
    /// Whether there was another one before it.
    pub lost: bool,
    /// Whether it is another file than the last one of this process.
    pub replaced: bool,
    /// Wakes the relay of its outbox.
    pub waker: Option<Waker>,
    /// To be cancelled when it fails; it is opened anew then.
    pub failed: CancellationToken,
}

/// What the writer is asked to do.
#[derive(Debug)]
pub enum Command<S> {
    /// Up to here, by stream, everything was acknowledged since the opening of
    /// this number: also what the writer never got to see.
    Acknowledged(u64, BTreeMap<String, u64>),
    /// Everything that was in the streams has been handled since the opening of
    /// this number.
    CaughtUp(u64),
    /// A batch of events.
    Events {
        /// In the order of their stream.
        batch: Vec<Incoming>,
        /// One verdict per event.
        answer: oneshot::Sender<Result<Vec<Verdict>, Unavailable>>,
    },
    /// A database is there.
    Opened(Box<Session<S>>),
    /// A stream was made anew: its sequences start over.
    StreamReset(&'static str),
    /// The routes file says so.
    Routes(Vec<StaticRouteSpec>),
    /// To be answered when everything before it is done.
    Settled(oneshot::Sender<()>),
}

/// Owns the state and the table.
pub struct Writer<S> {
    shared: Arc<Shared>,
    table: TableWriter,
    state: State,
    session: Option<OpenSession<S>>,
    /// The table in force is newer than the state: events are stored, but the
    /// table waits until the streams are caught up.
    withheld: bool,
    /// The revision of the last good table that was read at start.
    last_good_revision: u64,
    /// No table gets a revision below or at this: the database has seen it.
    revision_min: u64,
    /// The revision that the database knows.
    stored_revision: u64,
    /// The opening from which on the streams are consumed.
    round: u64,
    /// Static routes in force that the database does not have yet.
    statics_unsaved: bool,
    board: StatusBoard,
    revision: watch::Sender<u64>,
}

struct OpenSession<S> {
    store: S,
    waker: Option<Waker>,
    failed: CancellationToken,
    used: Instant,
}

impl<S: GatewayStore> Writer<S> {
    /// Goes on from `table`, which is in force already.
    pub fn new(
        shared: Arc<Shared>,
        table: TableWriter,
        last_good_revision: u64,
        board: StatusBoard,
        revision: watch::Sender<u64>,
    ) -> Self {
        Self {
            shared,
            table,
            state: State::default(),
            session: None,
            withheld: false,
            last_good_revision,
            revision_min: 0,
            stored_revision: 0,
            round: 0,
            statics_unsaved: true,
            board,
            revision,
        }
    }

    /// Works until everyone who could ask is gone, or `shutdown`.
    pub async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command<S>>,
        shutdown: CancellationToken,
    ) {
        let mut probe = tokio::time::interval(PROBE_INTERVAL);
        let mut prune = tokio::time::interval(PRUNE_INTERVAL);
        for timer in [&mut probe, &mut prune] {
            timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                // In this order: a run of the simulation is the same every time.
                biased;
                () = shutdown.cancelled() => break,
                _ = probe.tick() => self.probe().await,
                _ = prune.tick() => self.prune().await,
                // Commands are taken whole: none is dropped half done.
                command = commands.recv() => match command {
                    Some(command) => self.take(command).await,
                    None => return,
                },
            }
        }
        while let Ok(command) = commands.try_recv() {
            self.take(command).await;
        }
    }

    async fn take(&mut self, command: Command<S>) {
        match command {
            Command::Acknowledged(opening, floors) if opening >= self.round => {
                self.acknowledged(floors).await;
            }
            Command::CaughtUp(opening) if opening >= self.round => self.caught_up().await,
            Command::Acknowledged(..) | Command::CaughtUp(_) => {}
            Command::Events { batch, answer } => {
                let verdicts = self.events(&batch).await;
                let verdicts = verdicts.map_err(|error| {
                    self.fail(&error);
                    Unavailable(error.to_string())
                });
                // Nobody waits any more: the events come again.
                let _ = answer.send(verdicts);
            }
            Command::Opened(session) => self.opened(*session).await,
            Command::Routes(specs) => self.routes(specs).await,
            Command::Settled(done) => {
                // Whoever asked may have lost patience.
                let _ = done.send(());
            }
            Command::StreamReset(stream) => self.stream_reset(stream).await,
        }
    }

    async fn events(&mut self, batch: &[Incoming]) -> Result<Vec<Verdict>, WriteError> {
        let session = self.session.as_mut().ok_or(WriteError::Closed)?;
        let ids: Vec<&str> = batch.iter().map(|event| event.event_id.as_str()).collect();
        let seen = session.store.seen(&ids).await?;
        session.used = Instant::now();

        let now_ms = now_ms();
        let mut next = self.state.clone();
        let mut effects = Effects::default();
        let mut outbox = Vec::new();
        let mut handled = HashSet::new();
        let mut verdicts = Vec::with_capacity(batch.len());
        let mut positions = BTreeMap::new();
        let mut plan = Plan::default();
        for event in batch {
            let position = positions.entry(event.stream.clone()).or_insert(0);
            *position = event.sequence.max(*position);
            verdicts.push(match &event.change {
                Err(reason) => Verdict::Reject(reason.clone()),
                Ok(_) if seen.contains(&event.event_id) => Verdict::Stale,
                Ok(_) if !handled.insert(event.event_id.as_str()) => Verdict::Stale,
                Ok(change) => {
                    let mut touched = Effects::default();
                    let outcome = next.apply(change, now_ms, &mut touched);
                    let told = touched.announcements.drain(..);
                    outbox.extend(told.filter_map(|told| announce(&told, &event.cause)));
                    if !self.withheld {
                        plan.step(self.table.table(), &next, &touched);
                    }
                    effects.add(touched);
                    match outcome {
                        Outcome::Applied => Verdict::Applied,
                        Outcome::Stale => Verdict::Stale,
                    }
                }
            });
        }
        let commit = Commit {
            event_ids: handled.into_iter().collect(),
            positions,
            outbox,
            now_ms,
            ..Commit::default()
        };
        self.store_and_publish(Some((next, effects)), plan, commit)
            .await?;
        Ok(verdicts)
    }

    /// Stores, then puts in force. On an error nothing has changed here, and the
    /// database is read again before it is used.
    async fn store_and_publish(
        &mut self,
        change: Option<(State, Effects)>,
        plan: Plan,
        mut commit: Commit<'_>,
    ) -> Result<(), WriteError> {
        let session = self.session.as_mut().ok_or(WriteError::Closed)?;
        if !plan.is_empty() {
            let revision = self.table.table().revision.max(self.revision_min) + 1;
            let containers = plan.container_count(self.table.table());
            let statics = match &plan.statics {
                Some(specs) => specs.len(),
                None => self.table.table().statics().iter().len(),
            };
            commit.revision = Some(revision);
            commit.outbox.push(refreshed(revision, containers, statics));
        }
        if self.statics_unsaved || plan.statics.is_some() {
            let in_force = || self.table.table().static_specs().cloned().collect();
            commit.statics = Some(plan.statics.clone().unwrap_or_else(in_force));
            let now = self.table.table().revision;
            commit.statics_revision = commit.revision.unwrap_or(now);
        }
        commit.changes = change.as_ref().map(|(state, effects)| (state, effects));
        let wakes = !commit.outbox.is_empty() || commit.statics.is_some();
        session.store.commit(&commit).await?;
        session.used = Instant::now();
        let revision = commit.revision;
        self.stored_revision = revision.unwrap_or(self.stored_revision);
        if wakes && let Some(waker) = &session.waker {
            waker.wake();
        }
        self.statics_unsaved = false;
        if let Some((state, _)) = change {
            self.state = state;
        }
        self.put_in_force(plan, revision);
        Ok(())
    }

    fn put_in_force(&mut self, plan: Plan, revision: Option<u64>) {
        plan.take(&mut self.table);
        self.publish(revision.unwrap_or_default());
    }

    fn publish(&mut self, revision_min: u64) {
        let revision_min = revision_min.max(self.revision_min.saturating_add(1));
        if let Some(published) = self.table.publish(revision_min) {
            let revision = published.table.revision;
            self.shared.swap(published);
            self.revision_min = revision;
            self.revision.send_replace(revision);
        }
    }

    /// A database was opened: its content is the state.
    async fn opened(&mut self, session: Session<S>) {
        let stored = session.stored;
        self.statics_unsaved = true;
        self.revision_min = self.revision_min.max(stored.revision);
        self.stored_revision = stored.revision;
        if session.lost || stored.rebuilding || session.replaced {
            // The consumers start over. What is still on its way from them is of
            // another database.
            self.round = session.number;
        }
        self.state = stored.state;
        self.session = Some(OpenSession {
            store: session.store,
            waker: session.waker,
            failed: session.failed,
            used: Instant::now(),
        });
        // What serves may be newer than the database (lost, restored from a
        // backup): falling back would end connections for nothing.
        let last_good = std::mem::take(&mut self.last_good_revision);
        let served = match session.replaced {
            true => self.table.table().revision,
            false => last_good,
        };
        let events = self.board.now().nats != NatsStatus::Off;
        let older = served > stored.revision;
        // Without events nothing would ever end the wait.
        // Begun by an earlier opening, it goes on, whether or not that one came to write it down.
        let rebuilding = events && (session.lost || stored.rebuilding || self.withheld);
        // Until caught up: another opening meanwhile knows less, not more.
        self.withheld = events && (self.withheld || rebuilding || older);
        self.board.update(|status| {
            status.database = if rebuilding {
                DatabaseStatus::Lost
            } else {
                DatabaseStatus::Ok
            };
            if rebuilding || (events && session.replaced) {
                status.caught_up = false;
            }
        });
        if self.withheld {
            tracing::warn!(
                lost = session.lost,
                "the database is behind the last good table, which serves until events are replayed"
            );
        } else {
            self.table
                .replace_dynamic(self.state.container_specs(), self.state.all_key_specs());
        }
        let commit = Commit {
            birth: !stored.born,
            rebuilding: self.withheld.then_some(true),
            now_ms: now_ms(),
            ..Commit::default()
        };
        // What a lost database starts from is not in its file yet.
        let seed = session.lost.then(|| (self.state.clone(), self.state.all()));
        self.publish_loaded(seed, commit).await;
        if self.withheld && self.board.now().caught_up {
            // The streams were through while no database was open.
            self.caught_up().await;
        }
    }

    /// Keeps how far the streams are settled.
    async fn acknowledged(&mut self, floors: BTreeMap<String, u64>) {
        if self.session.is_none() {
            return;
        }
        let commit = Commit {
            positions: floors,
            now_ms: now_ms(),
            ..Commit::default()
        };
        let stored = self.store_and_publish(None, Plan::default(), commit).await;
        if let Err(error) = stored {
            self.fail(&error);
        }
    }

    /// Everything that was in the streams is in the state.
    async fn caught_up(&mut self) {
        if self.withheld && self.session.is_some() {
            self.withheld = false;
            self.table
                .replace_dynamic(self.state.container_specs(), self.state.all_key_specs());
            let commit = Commit {
                rebuilding: Some(false),
                now_ms: now_ms(),
                ..Commit::default()
            };
            self.publish_loaded(None, commit).await;
            tracing::info!("rebuilt from the events");
        }
        let open = self.session.is_some();
        self.board.update(|status| {
            status.caught_up = true;
            if open {
                status.database = DatabaseStatus::Ok;
            }
        });
    }

    /// Publishes what was put into the table from the whole state, and stores that.
    async fn publish_loaded(&mut self, change: Option<(State, Effects)>, mut commit: Commit<'_>) {
        let table = self.table.table();
        let revision = if self.table.is_changed() {
            table.revision.max(self.revision_min) + 1
        } else {
            table.revision
        };
        if revision > self.stored_revision {
            let containers = i64::try_from(table.containers().len()).unwrap_or(i64::MAX);
            let statics = table.statics().iter().len();
            commit.revision = Some(revision);
            commit.outbox.push(refreshed(revision, containers, statics));
        }
        self.publish(commit.revision.unwrap_or_default());
        let plan = Plan::default();
        let result = self.store_and_publish(change, plan, commit).await;
        if let Err(error) = result {
            self.fail(&error);
        }
    }

    /// The routes file changed. It is in force even if it cannot be stored.
    async fn routes(&mut self, specs: Vec<StaticRouteSpec>) {
        if self.table.table().static_specs().eq(specs.iter()) {
            return;
        }
        let routes = specs.len();
        self.cover(&specs).await;
        let plan = Plan::of_statics(specs.clone());
        let commit = Commit {
            now_ms: now_ms(),
            ..Commit::default()
        };
        if let Err(error) = self.store_and_publish(None, plan, commit).await {
            self.fail(&error);
            self.statics_unsaved = true;
            self.put_in_force(Plan::of_statics(specs), None);
        }
        let revision = self.table.table().revision;
        tracing::info!(routes, revision, "static routes in force");
    }

    /// New hosts have their development certificate before they are served.
    async fn cover(&self, specs: &[StaticRouteSpec]) {
        let hosts: Vec<_> = specs.iter().map(|spec| spec.host.clone()).collect();
        let certs = Arc::clone(&self.shared.certs);
        // Signs a leaf and writes files.
        let covered = tokio::task::spawn_blocking(move || certs.cover(hosts));
        if let Err(error) = covered.await {
            tracing::error!(%error, "the development certificate is not up to date");
        }
    }

    /// Facts keep their versions; their sequences are of a stream that is gone.
    async fn stream_reset(&mut self, stream: &'static str) {
        tracing::warn!(stream, "the stream was made anew, its sequences start over");
        let mut next = self.state.clone();
        next.forget_sequences();
        let effects = next.all();
        let commit = Commit {
            restarted: Some(stream),
            now_ms: now_ms(),
            ..Commit::default()
        };
        let result = self
            .store_and_publish(Some((next, effects)), Plan::default(), commit)
            .await;
        if let Err(error) = result {
            self.fail(&error);
        }
    }

    async fn probe(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.used.elapsed() < PROBE_INTERVAL {
            return;
        }
        match session.store.probe().await {
            Ok(()) => session.used = Instant::now(),
            Err(error) => self.fail(&error.into()),
        }
    }

    async fn prune(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        let now = now_ms();
        match session.store.prune(now).await {
            Ok(()) => self.state.prune(now.saturating_sub(KEPT_MS)),
            Err(error) => self.fail(&error.into()),
        }
    }

    /// Gives the database up; it is opened and read anew.
    fn fail(&mut self, error: &WriteError) {
        let Some(session) = self.session.take() else {
            return;
        };
        tracing::error!(%error, "the database fails; events wait, the table in use goes on");
        // The status first: nobody may take the next opening for this one.
        self.board
            .update(|status| status.database = DatabaseStatus::Unavailable);
        session.failed.cancel();
    }
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("the database is not available")]
    Closed,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// `gateway.ingress.{id}.created` or `.deleted`.
fn announce(told: &Announcement, cause: &Cause) -> Option<OutboxEntry> {
    let container_id = told.container.as_str().to_owned();
    // The grammar of container ids lies inside that of entity ids.
    let entity = EntityId::try_from(told.container.as_str()).ok()?;
    let rule_id = rule_id(&container_id, told.port);
    let port = i32::from(told.port);
    Some(match told.target {
        Some(target) => {
            let message = gateway::IngressRuleCreated {
                metadata: None,
                rule_id,
                container_id,
                port,
                target_port: i32::from(target),
            };
            seal(SOURCE, &entity, told.version, message, cause)
        }
        None => {
            let message = gateway::IngressRuleDeleted {
                metadata: None,
                rule_id,
                container_id,
                port,
            };
            seal(SOURCE, &entity, told.version, message, cause)
        }
    })
}

/// `gateway.router.refreshed`.
fn refreshed(revision: u64, containers: i64, routes: usize) -> OutboxEntry {
    let message = gateway::RouterRefreshed {
        metadata: None,
        container_count: i32::try_from(containers).unwrap_or(i32::MAX),
        route_count: i32::try_from(routes).unwrap_or(i32::MAX),
    };
    let version = i64::try_from(revision).unwrap_or(i64::MAX);
    seal(
        SOURCE,
        &EntityId::router(),
        version,
        message,
        &Cause::default(),
    )
}
