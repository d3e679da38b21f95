//! The one writer: everything that changes the table goes through this task.
//!
//! A batch of events is judged, reduced on a copy of the state, stored in one
//! transaction, and only then put in force and answered. Killed anywhere in
//! between, the events come again and the inbox and the stamps make that
//! harmless.
//!
//! Other gateways may write to the same database. So each transaction is a turn
//! ([`turn`]): what the others committed before it is taken over first.

pub(super) mod announce;
mod events;
mod opened;
mod snapshot;
mod streams;
mod turn;

use std::sync::Arc;
use std::time::Duration;

use edd_events::consumer::{Unavailable, Verdict};
use edd_events::digest::Digest;
use edd_events::envelope::Cause;
use edd_events::outbox::Waker;
use edd_route::{StaticRouteSpec, TableWriter};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::last_good::now_ms;
use super::plan::Plan;
use super::reconcile::{Change, State};
use super::status::{DatabaseStatus, StatusBoard};
use super::store::{self, Commit, GatewayStore, KEPT_MS, Marks, Place, StoreError, Stored};
use crate::shared::Shared;

/// How often an idle database is looked at.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// How often old tombstones are forgotten.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// An event on its way to the writer.
#[derive(Debug)]
pub struct Incoming {
    /// Its id, for the inbox; empty: no event, but a fact of a snapshot.
    pub event_id: String,
    /// Its stream.
    pub stream: String,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// The event, for the journal.
    pub told: store::Cause,
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
    /// Up to here, by stream, everything was acknowledged, known from the opening
    /// of this number on: also what the writer never got to see.
    Acknowledged(u64, Vec<Floor>),
    /// Everything that was in the streams has been handled since the opening of
    /// this number.
    CaughtUp(u64),
    /// Events that were delivered before and may not be in the database, and how
    /// far it has them all then.
    Again {
        /// In the order of their stream.
        batch: Vec<Incoming>,
        /// To be stored with them.
        reached: Reached,
        /// One verdict per event.
        answer: oneshot::Sender<Result<Vec<Verdict>, Unavailable>>,
    },
    /// To be told what the state comes to.
    Digest(oneshot::Sender<Digest>),
    /// A batch of events.
    Events {
        /// In the order of their stream.
        batch: Vec<Incoming>,
        /// How often its sequences had started over when it was bound to.
        restarts: u64,
        /// One verdict per event.
        answer: oneshot::Sender<Result<Vec<Verdict>, Unavailable>>,
    },
    /// Others may have written to the database; with the revision that they say it
    /// has then, which each turn of our own may have taken over in the meantime.
    Follow(Option<u64>),
    /// A database is there.
    Opened(Box<Session<S>>),
    /// All that compute knows: what it does not tell is gone.
    Snapshot {
        /// Its facts, with empty event ids.
        batch: Vec<Incoming>,
        /// Of COMPUTE: what is newer is not in it.
        sequence: u64,
        /// In these buckets of a digest it is believed whatever is known.
        doubted: Vec<u8>,
        /// One verdict per fact.
        answer: oneshot::Sender<Result<Vec<Verdict>, Unavailable>>,
    },
    /// A stream is bound to.
    Stream {
        /// Its name.
        name: &'static str,
        /// When it was made, Unix nanoseconds.
        created: i64,
        /// It ends before what was handled of it: not the same, whatever it says.
        is_shorter: bool,
        /// How often its sequences had started over when that was handled.
        restarts: u64,
        /// How far the database has it. Sequences of another number of restarts
        /// mean nothing; of another creation time, neither does what was found.
        answer: oneshot::Sender<Result<Marks, Unavailable>>,
    },
    /// COMPUTE has lost what the database lacks: a snapshot is wanted that goes up
    /// to the sequence before this one.
    Gap {
        /// The first that the stream still has.
        first: u64,
        /// It is remembered, until there was one.
        answer: oneshot::Sender<Result<(), Unavailable>>,
    },
    /// The routes file says so.
    Routes(Vec<StaticRouteSpec>),
    /// To be answered when everything before it is done.
    Settled(oneshot::Sender<()>),
}

/// Up to where all of a stream is acknowledged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Floor {
    /// The stream.
    pub stream: &'static str,
    /// When it was made, Unix nanoseconds: another one of its name has nothing
    /// to do with this.
    pub created: i64,
    /// Up to here.
    pub sequence: u64,
}

/// How far a database has a stream's events, without a gap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reached {
    /// The stream.
    pub stream: &'static str,
    /// Up to this sequence it has all.
    pub floor: u64,
    /// How often reading on from there was begun.
    pub tries: u64,
    /// What does not come again goes up to here: it is reached only if the database has that.
    pub acknowledged: u64,
    /// How often its sequences had started over when it was read; none: it is from a snapshot,
    /// and also what the stream has lost is there.
    pub restarts: Option<u64>,
}

impl Reached {
    /// Whether the database lacks some of these events that do not come again.
    pub fn lacks(&self, sequences: impl Iterator<Item = u64>, verdicts: &[Verdict]) -> bool {
        sequences.zip(verdicts).any(|(sequence, verdict)| {
            matches!(verdict, Verdict::Retry(_)) && sequence <= self.acknowledged
        })
    }
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
    /// How far in the database's journal the state is.
    position: Place,
    /// The opening from which on the streams are consumed.
    round: u64,
    /// COMPUTE's [`Marks::gap`].
    gap: u64,
    /// Static routes in force that the database does not have yet.
    statics_unsaved: bool,
    board: StatusBoard,
    revision: watch::Sender<u64>,
    /// Of the database's revisions, what the table in force has.
    common: watch::Sender<u64>,
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
        common: watch::Sender<u64>,
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
            position: Place::default(),
            round: 0,
            gap: 0,
            statics_unsaved: true,
            board,
            revision,
            common,
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
                _ = prune.tick() => self.state.prune(now_ms().saturating_sub(KEPT_MS)),
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
                self.acknowledged(&floors).await;
            }
            Command::CaughtUp(opening) if opening >= self.round => self.caught_up().await,
            Command::Acknowledged(..) | Command::CaughtUp(_) => {}
            Command::Again {
                batch,
                reached,
                answer,
            } => {
                let restarts = reached.restarts;
                let verdicts = self.batch(&batch, restarts, Some(reached)).await;
                self.answer(answer, verdicts);
            }
            Command::Digest(answer) => {
                // Others may have handled what was acknowledged.
                self.follow().await;
                // Nobody waits any more: it is asked for again.
                let _ = answer.send(self.state.digest());
            }
            Command::Events {
                batch,
                restarts,
                answer,
            } => {
                let verdicts = self.batch(&batch, Some(restarts), None).await;
                self.answer(answer, verdicts);
            }
            Command::Follow(wanted) => {
                if wanted.is_none_or(|wanted| wanted > self.stored_revision) {
                    self.follow().await;
                }
            }
            Command::Opened(session) => self.opened(*session).await,
            Command::Routes(specs) => self.routes(specs).await,
            Command::Snapshot {
                batch,
                sequence,
                doubted,
                answer,
            } => {
                let verdicts = self.snapshot(batch, sequence, &doubted).await;
                self.answer(answer, verdicts);
            }
            Command::Settled(done) => {
                // Whoever asked may have lost patience.
                let _ = done.send(());
            }
            Command::Stream {
                name,
                created,
                is_shorter,
                restarts,
                answer,
            } => {
                let known = self.stream(name, created, is_shorter, restarts).await;
                self.answer(answer, known);
            }
            Command::Gap { first, answer } => {
                let remembered = self.remember_gap(first).await;
                self.answer(answer, remembered);
            }
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
        let stored = match self.turn().await {
            Ok(turn) => self.store_and_publish(turn, None, plan, commit).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            self.fail(&error);
            self.statics_unsaved = true;
            self.put_in_force(Plan::of_statics(specs), None);
        }
        let revision = self.table.table().revision;
        tracing::info!(routes, revision, "static routes in force");
    }

    /// New hosts have their development certificate before they are served.
    async fn cover(&self, specs: &[StaticRouteSpec]) {
        if !self.shared.certs.may_cover() {
            return;
        }
        let hosts: Vec<_> = specs.iter().map(|spec| spec.host.clone()).collect();
        let certs = Arc::clone(&self.shared.certs);
        // Signs a leaf and writes files.
        let covered = tokio::task::spawn_blocking(move || certs.cover(hosts));
        if let Err(error) = covered.await {
            tracing::error!(%error, "the development certificate is not up to date");
        }
    }

    /// Answers; an error gives the database up.
    fn answer<T>(
        &mut self,
        answer: oneshot::Sender<Result<T, Unavailable>>,
        done: Result<T, WriteError>,
    ) {
        let done = done.map_err(|error| {
            self.fail(&error);
            Unavailable(error.to_string())
        });
        // Nobody waits any more: what is not stored comes again.
        let _ = answer.send(done);
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
    #[error("others have changed more than can be followed")]
    Behind,
    #[error("the database is not available")]
    Closed,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WriteError {
    /// Whether the database does not take what it was given: it would not at another time either.
    fn is_about_values(&self) -> bool {
        matches!(self, Self::Store(StoreError::Sql(error)) if edd_store::is_about_values(error))
    }
}
