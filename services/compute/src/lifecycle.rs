//! Makes the runtime follow the database.
//!
//! Users change rows; [`Lifecycle::settle`] then looks at a container's row and
//! starts, ends or removes its processes until both agree. It never trusts what
//! it read before: a start that took too long finds a stop meanwhile. One look
//! per container at a time, each a task, so that a client that hangs up leaves
//! nothing half done.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use edd_events::outbox::Waker;
use futures_util::future::BoxFuture;
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    runtime::{Runtime, StartError},
    store::{Container, Start, Status, Store},
};

/// Starts at a time: each is a few processes that read their binaries.
const STARTS_MAX: usize = 4;
/// Between attempts while the database fails.
const DATABASE_RETRY: Duration = Duration::from_secs(1);
/// How long tasks may take to end after the runtime did.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Clones share everything.
#[derive(Clone, Debug)]
pub(crate) struct Lifecycle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    runtime: Arc<dyn Runtime>,
    waker: Option<Waker>,
    starts: Semaphore,
    /// One lock per container that is being settled; held across awaits, hence
    /// tokio's. The map is locked for moments only.
    locks: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    tasks: TaskTracker,
    end: CancellationToken,
}

/// What is left to do after a look at a row.
enum Next {
    Done,
    /// Something changed meanwhile.
    LookAgain,
}

impl Lifecycle {
    pub(crate) fn new(store: Store, runtime: Arc<dyn Runtime>, waker: Option<Waker>) -> Self {
        Self(Arc::new(Inner {
            store,
            runtime,
            waker,
            starts: Semaphore::new(STARTS_MAX),
            locks: Mutex::default(),
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
        }))
    }

    pub(crate) fn runtime(&self) -> &dyn Runtime {
        &*self.0.runtime
    }

    /// Starts again what ran when the service ended, and gives back what deleted
    /// containers held.
    pub(crate) async fn resume(&self) -> sqlx::Result<()> {
        self.0.store.release_orphaned_addresses().await?;
        for id in self.0.store.resume_all().await? {
            self.settle(id);
        }
        Ok(())
    }

    /// Makes the processes of a container what its row says; the returned handle
    /// may be dropped.
    pub(crate) fn settle(&self, id: String) -> JoinHandle<()> {
        let inner = Arc::clone(&self.0);
        self.0.tasks.spawn(async move {
            let end = inner.end.clone();
            // Dropping a start ends what it began.
            end.run_until_cancelled(inner.settle(&id)).await;
        })
    }

    /// Ends everything. Bounded by the runtime's own deadlines.
    pub(crate) async fn end(&self) {
        self.0.end.cancel();
        self.0.tasks.close();
        self.0.runtime.shutdown().await;
        if tokio::time::timeout(END_TIMEOUT, self.0.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("tasks of containers did not end in time");
        }
    }
}

impl Inner {
    async fn settle(self: &Arc<Self>, id: &str) {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(id.to_owned()).or_default())
        };
        let held = lock.lock().await;
        loop {
            match self.step(id).await {
                Ok(Next::Done) => break,
                Ok(Next::LookAgain) => {}
                Err(error) => {
                    tracing::warn!(id, %error, "a container cannot be settled yet");
                    tokio::time::sleep(DATABASE_RETRY).await;
                }
            }
        }
        drop(held);
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's and ours: nobody waits for it.
        if Arc::strong_count(&lock) == 2 {
            locks.remove(id);
        }
    }

    async fn step(self: &Arc<Self>, id: &str) -> Result<Next, StartError> {
        let Some(container) = self.store.wanted(id).await? else {
            self.runtime.remove(id).await?;
            tracing::info!(id, "container removed");
            return Ok(Next::Done);
        };
        match container.status {
            Status::Running => Ok(Next::Done),
            Status::Failed | Status::Stopped => {
                self.runtime.stop(id).await;
                Ok(Next::Done)
            }
            Status::Pending => self.start(&container).await,
        }
    }

    async fn start(self: &Arc<Self>, container: &Container) -> Result<Next, StartError> {
        let (id, run) = (container.id.as_str(), container.run);
        let Ok(permit) = self.starts.acquire().await else {
            return Ok(Next::Done);
        };
        let started = self.runtime.start(id).await;
        drop(permit);
        match started {
            Ok(started) => {
                let start = Start {
                    external_ip: started.external_ip,
                    ssh_host_key: started.ssh_host_key,
                };
                let wanted = self.store.mark_started(id, run, &start).await;
                if !matches!(wanted, Ok(true)) {
                    self.runtime.stop(id).await;
                    return wanted.map(|_| Next::LookAgain).map_err(StartError::from);
                }
                self.announced();
                tracing::info!(id, address = %start.external_ip, "container started");
                self.watch(id.to_owned(), run, started.ended);
                Ok(Next::Done)
            }
            Err(StartError::Closed) => Ok(Next::Done),
            Err(StartError::Database(error)) => Err(error.into()),
            Err(StartError::Failed(reason)) => {
                self.runtime.stop(id).await;
                tracing::warn!(id, reason, "container does not start");
                self.store.mark_failed(id, run, &reason).await?;
                self.announced();
                // A new start may have been asked for meanwhile.
                Ok(Next::LookAgain)
            }
        }
    }

    /// A container that ends by itself has failed.
    fn watch(self: &Arc<Self>, id: String, run: i64, ended: BoxFuture<'static, Option<String>>) {
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            let Some(reason) = ended.await else { return };
            tracing::warn!(id, reason, "container ended by itself");
            let failing = async {
                while let Err(error) = inner.store.mark_failed(&id, run, &reason).await {
                    tracing::warn!(id, %error, "the end of a container is not written yet");
                    tokio::time::sleep(DATABASE_RETRY).await;
                }
            };
            inner.end.run_until_cancelled(failing).await;
            inner.announced();
        });
    }

    fn announced(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}
