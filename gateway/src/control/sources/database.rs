//! The database: opened, read, handed to the writer; opened anew when it fails.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use edd_events::outbox::{Published, Relay};
use edd_events::signature::Signer;
use edd_events::stream::{AUTH, COMPUTE, GATEWAY};
use edd_store::DatabaseUrl;
use rand::RngExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{ssh_keys, tickets};
use crate::config::History;
use crate::control::last_good::now_ms;
use crate::control::reconcile::State;
use crate::control::store::{GatewayStore as _, SqlStore, StoreError, Stored, Streams};
use crate::control::writer::{Command, Session};
use crate::shared::Shared;
use crate::ssh::SshKeys;

/// First and longest pause between attempts.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// How often old rows are removed.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// Shows in `--state-dir` that there was a database once.
const MARKER: &str = "database-was-here";

/// What the consumers must know of an opened database.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Counts the openings.
    pub number: u64,
    /// Whether there was another one before it.
    pub lost: bool,
    /// Whether it is another file than the last one of this process.
    pub replaced: bool,
    /// How far it has each stream.
    pub streams: Streams,
}

/// Everything that the outbox's relay needs.
#[derive(Clone, Debug)]
pub struct RelayParts {
    /// JetStream.
    pub js: Context,
    /// For streams that have to be created.
    pub replicas: usize,
    /// Signs what is published.
    pub signer: Option<Arc<Signer>>,
    /// What was published before the database failed, and is still in it.
    pub published: Published,
    /// Counts what is published.
    pub metrics: edd_events::Metrics,
}

/// Keeps a database open.
#[derive(Debug)]
pub struct Database {
    /// The process: where the database is, and what serves when it is lost.
    pub shared: Arc<Shared>,
    /// None: events are off.
    pub relay: Option<RelayParts>,
    /// Who works with it.
    pub writer: mpsc::Sender<Command<SqlStore>>,
    /// Who consumes for it.
    pub opened: watch::Sender<Option<Opened>>,
    /// Who asks it about the past.
    pub history: watch::Sender<Option<SqlStore>>,
    /// The SSH keys, in which it may have a say.
    pub ssh_keys: Option<SshKeys>,
}

impl Database {
    /// Opens it, again and again with jittered pauses of at most 5 s, and once
    /// more whenever the writer gives it up, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut pause = RETRY_FIRST;
        let mut number = 0;
        let mut last_error = String::new();
        let mut last = None;
        let url = &self.shared.config.database_url;
        loop {
            let opening = open(url, &self.shared.config.state_dir);
            match shutdown.run_until_cancelled(opening).await {
                None => return,
                Some(Ok((store, mut stored, lost))) => {
                    if lost {
                        // The streams may not reach back to what serves now.
                        let (state, last) = State::of_table(&self.shared.table());
                        stored.state = state;
                        let compute = stored.streams.entry(COMPUTE.name.to_owned());
                        compute.or_default().position = last;
                    }
                    last_error.clear();
                    number += 1;
                    let began = Instant::now();
                    let failed = shutdown.child_token();
                    let identity = store.identity();
                    let replaced = last.replace(identity).is_some_and(|last| last != identity);
                    let opened = Opened {
                        number,
                        lost: lost || stored.rebuilding,
                        replaced,
                        streams: stored.streams.clone(),
                    };
                    let database = store.database().clone();
                    self.serve(opened, store, stored, lost, failed).await;
                    if shutdown.is_cancelled() {
                        // What the writer still has to store goes first.
                        self.writer.closed().await;
                    }
                    database.close().await;
                    if began.elapsed() > RETRY_MAX {
                        pause = RETRY_FIRST;
                    }
                }
                Some(Err(error)) => {
                    // Once per kind of failure, not once per attempt.
                    let error = chain(&error);
                    if last_error != error {
                        tracing::error!(
                            database = %url, error,
                            "the database cannot be used; events wait, the last good table serves"
                        );
                        last_error = error;
                    }
                }
            }
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
            pause = (pause * 2).min(RETRY_MAX);
            let over = tokio::time::timeout(jittered, shutdown.cancelled()).await;
            if over.is_ok() {
                return;
            }
        }
    }

    /// Hands an open database to the writer and relays its outbox until it fails.
    async fn serve(
        &self,
        opened: Opened,
        store: SqlStore,
        stored: Stored,
        lost: bool,
        failed: CancellationToken,
    ) {
        let relay = self.relay.clone().map(|parts| {
            Relay::new(store.database().clone(), parts.js, parts.metrics)
                .with_streams(&[AUTH, COMPUTE, GATEWAY], parts.replicas)
                .with_signer(parts.signer)
                .with_published(parts.published)
        });
        let session = Session {
            number: opened.number,
            store: store.clone(),
            stored,
            lost,
            replaced: opened.replaced,
            waker: relay.as_ref().map(Relay::waker),
            failed: failed.clone(),
        };
        let handed = self.writer.send(Command::Opened(Box::new(session)));
        if handed.await.is_err() {
            return;
        }
        self.opened.send_replace(Some(opened));
        let relayed = async {
            if let Some(relay) = relay {
                relay.run(failed.clone()).await;
            }
            failed.cancelled().await;
        };
        let keys = self.shared.certs.tickets();
        self.history.send_replace(Some(store.clone()));
        tokio::join!(
            relayed,
            tickets::share(&store, keys, &failed),
            ssh_keys::share(&store, self.ssh_keys.as_ref(), &failed),
            prune(&store, self.shared.config.history, &failed),
        );
        self.history.send_replace(None);
    }
}

/// Forgets what is old, now and every hour until `over`.
async fn prune(store: &SqlStore, history: History, over: &CancellationToken) {
    let pruning = async {
        loop {
            // Whoever writes next finds out what it means; what is left waits an hour.
            if let Err(error) = store.prune(now_ms(), history).await {
                tracing::warn!(error = chain(&error), "old rows are not removed");
            }
            tokio::time::sleep(PRUNE_INTERVAL).await;
        }
    };
    over.run_until_cancelled(pruning).await;
}

/// Opens and reads the file; also tells whether it stands for one that is lost.
async fn open(url: &DatabaseUrl, state_dir: &Path) -> Result<(SqlStore, Stored, bool), StoreError> {
    let store = SqlStore::open(url).await?;
    let stored = match store.load().await {
        Ok(stored) => stored,
        Err(error) => {
            store.database().close().await;
            return Err(error);
        }
    };
    let marker = state_dir.join(MARKER);
    // The schema alone proves nothing: the process may have died right after it.
    let lost = !stored.born && marker.exists();
    let note = format!("{url}\n");
    let noted = std::fs::create_dir_all(state_dir).and_then(|()| std::fs::write(&marker, note));
    if let Err(error) = noted {
        tracing::warn!(
            file = %marker.display(), %error,
            "cannot note that there is a database: its loss would go unnoticed"
        );
    }
    if lost {
        tracing::error!(database = %url, "the database is lost; it is rebuilt from the events");
    } else if !stored.born {
        tracing::info!(database = %url, "database created");
    }
    Ok((store, stored, lost))
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}
