//! The data-plane threads: each with a runtime, listeners and upstream pool of its own.

use std::cell::RefCell;
use std::io;
use std::ops::Deref;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use edd_route::{Door, RouteTable};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::runtime::LocalOptions;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::accept::accept;
use super::bind::{DataListeners, DoorListener};
use super::doors::Role;
use super::ending::Ending;
use super::serve::{Accepted, Held, serve};
use crate::http::Labels;
use crate::http::h2::{Clerks, Opened};
use crate::shared::Shared;
use crate::ssh::SshServer;
use crate::telemetry::Metrics;
use crate::upstream::Pool;

/// What one data-plane thread works with.
#[derive(Debug)]
pub struct Worker {
    /// The process.
    pub shared: Arc<Shared>,
    /// This thread's upstream connections.
    pub pool: Pool,
    /// How far the process is on its way out.
    pub(crate) ending: Ending,
    table: RefCell<Cache<Tables, Arc<RouteTable>>>,
    /// Metric labels without a route: always the same objects, which are found fastest.
    pub(crate) labels: Labels,
    /// Those who serve the requests of HTTP/2.
    pub(crate) clerks: Clerks<Opened>,
}

/// Where the table comes from.
#[derive(Debug)]
struct Tables(Arc<Shared>);

impl Deref for Tables {
    type Target = ArcSwap<RouteTable>;

    fn deref(&self) -> &ArcSwap<RouteTable> {
        &self.0.table
    }
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            pool: Pool::under(&shared.gate),
            table: RefCell::new(Cache::new(Tables(Arc::clone(&shared)))),
            shared,
            ending: Ending::default(),
            labels: Labels::default(),
            clerks: Clerks::default(),
        }
    }

    /// Makes one decision by the table in force.
    ///
    /// Writes to no memory that threads share, as long as the table stays.
    pub(crate) fn decide<D>(&self, decide: impl FnOnce(&RouteTable) -> D) -> D {
        decide(self.table.borrow_mut().load())
    }
}

/// The running threads.
#[derive(Debug)]
pub struct Workers(Vec<JoinHandle<()>>);

/// Starts a thread for each set of listeners. They end by `shared.drain`.
///
/// # Errors
/// A thread or its runtime cannot be made; those before it have started.
pub fn spawn(shared: Arc<Shared>, listeners: DataListeners, ssh: SshServer) -> io::Result<Workers> {
    let mut workers = Vec::new();
    for (index, listeners) in listeners.0.into_iter().enumerate() {
        let (shared, ssh) = (Arc::clone(&shared), ssh.clone());
        // Before the thread, or a drain might be over before it looks.
        let accepting = shared.drain.guard();
        let (report, started) = sync_channel(1);
        let thread = Builder::new().name(format!("data-{index}"));
        workers.push(thread.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => {
                    crate::tls::warm_up();
                    let is_there = || drop(report.send(Ok(())));
                    runtime.block_on(run(shared, listeners, ssh, accepting, is_there));
                    // A resolver that hangs must not keep the process.
                    runtime.shutdown_background();
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
        })?);
        started.recv().map_err(io::Error::other)??;
    }
    Ok(Workers(workers))
}

impl Workers {
    /// Waits until all threads have ended.
    pub async fn join(self) {
        let join = || {
            self.0
                .into_iter()
                .map(JoinHandle::join)
                .filter(Result::is_err)
                .count()
        };
        if tokio::task::spawn_blocking(join).await.unwrap_or(1) > 0 {
            error!("a data thread ended by a bug");
        }
    }
}

async fn run(
    shared: Arc<Shared>,
    listeners: Vec<DoorListener>,
    ssh: SshServer,
    accepting: impl Sized,
    is_there: impl FnOnce(),
) {
    let worker = Rc::new(Worker::new(shared));
    tokio::task::spawn_local(worker.ending.clone().follow(worker.shared.drain.clone()));
    let connections = TaskTracker::new();
    let take = |accepted: Accepted| {
        let (worker, ssh) = (Rc::clone(&worker), ssh.clone());
        connections.spawn_local(async move {
            isolated(&worker.shared.metrics, serve(accepted, &worker, &ssh)).await;
        });
    };
    let open = listeners.into_iter().filter_map(|listener| {
        let DoorListener { door, listener } = listener;
        match TcpListener::from_std(listener) {
            Ok(listener) => Some((door, worker.shared.doors.add(role(door), listener))),
            Err(error) => {
                error!(?door, %error, "a listener cannot be used");
                None
            }
        }
    });
    let open: Vec<_> = open.collect();
    // A successor that asks from now on gets all of them.
    is_there();
    let accepts = open.into_iter().map(async |(door, listener)| {
        let take = |stream, peer, permit| {
            take(Accepted {
                stream,
                peer,
                door,
                held: Held::of(&worker.shared, door, permit),
            });
        };
        accept(&worker.shared, &listener, door, take).await;
    });
    join_all(accepts).await;
    drop(accepting);
    connections.close();
    tokio::select! {
        () = connections.wait() => {}
        () = cut(&worker.shared) => {}
    }
}

fn role(door: Door) -> Role {
    match door {
        Door::Dynamic(_) => Role::Port,
        Door::PublicHttp => Role::Http,
        Door::PublicHttps => Role::Https,
    }
}

/// Runs one connection. A panic in it costs this one and is counted.
async fn isolated(metrics: &Metrics, life: impl Future<Output = ()>) {
    if AssertUnwindSafe(life).catch_unwind().await.is_err() {
        metrics.panicked();
        error!("a connection ended by a bug");
    }
}

/// After the deadline of the drain, and a moment in which connections may notice it.
async fn cut(shared: &Shared) {
    shared.drain.cut().cancelled().await;
    sleep(CUT_GRACE).await;
}

const CUT_GRACE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[tokio::test]
    async fn a_panic_costs_one_connection_and_is_counted() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        isolated(&metrics, async { panic!("a bug, as this test wants it") }).await;
        isolated(&metrics, async {}).await;
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("panics_total 1\n"), "{text}");
    }
}
