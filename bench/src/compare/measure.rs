//! `edd-bench measure`: puts one kind of load on one proxy and says what that cost the proxy.
//!
//! After a warm-up, the proxy's CPU time is read at both ends of a window in which the load goes
//! on, together with what was done by then. One line of JSON on stdout tells both; anything that
//! was not answered as it should ends the measurement with an error, so that no proxy is measured
//! while it fails. Runs on one thread and expects to be pinned to a core that is not the proxy's.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use tokio::task::{JoinSet, LocalSet};

use super::client::{self, Asker, Target};
use super::origin::{self, Counts};
use super::processes::{Tree, machine_busy};
use super::{h2, handshakes, idle, paced};

/// The arguments of `edd-bench measure`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    load: Load,
}

/// What every load needs to know.
#[derive(clap::Args, Clone)]
pub(crate) struct Common {
    /// Where the proxy listens
    #[arg(long)]
    pub(crate) address: SocketAddr,
    /// The host to ask for
    #[arg(long)]
    pub(crate) host: String,
    /// Speak TLS and trust this CA
    #[arg(long)]
    pub(crate) ca: Option<PathBuf>,
    /// The proxy's first process
    #[arg(long)]
    pub(crate) pid: u32,
    /// Where the origin tells its counters
    #[arg(long)]
    pub(crate) origin_counts: SocketAddr,
    /// The origin's process
    #[arg(long)]
    pub(crate) origin_pid: u32,
    /// Load before the window, in milliseconds
    #[arg(long, default_value_t = 700)]
    pub(crate) warm_up_ms: u64,
    /// The window, in milliseconds
    #[arg(long, default_value_t = 3000)]
    pub(crate) window_ms: u64,
}

/// The kinds of load.
#[derive(Subcommand)]
enum Load {
    /// Kept connections, each asking again as soon as it is answered
    Requests {
        #[arg(long)]
        connections: usize,
        #[arg(long)]
        path: String,
        /// The length of the body
        #[arg(long)]
        body: usize,
    },
    /// Kept connections, asking at a fixed rate whatever the answers
    Paced {
        #[arg(long)]
        connections: usize,
        #[arg(long)]
        path: String,
        #[arg(long)]
        body: usize,
        /// Requests per second
        #[arg(long)]
        rate: u64,
    },
    /// HTTP/2 by h2load
    H2 {
        #[arg(long)]
        connections: usize,
        /// Requests at once on each connection
        #[arg(long)]
        streams: usize,
        #[arg(long)]
        path: String,
        #[arg(long)]
        body: usize,
        /// The h2load to start
        #[arg(long, default_value = "h2load")]
        h2load: PathBuf,
    },
    /// TLS connections that are made and closed
    Handshakes {
        #[arg(long)]
        connections: usize,
        /// With a ticket of an earlier one
        #[arg(long)]
        resume: bool,
    },
    /// TLS connections that have asked once and then say nothing
    Idle {
        #[arg(long)]
        connections: usize,
    },
}

/// Measures and prints.
pub(crate) async fn run(args: Args) -> Result<()> {
    let common = &args.common;
    let measured = LocalSet::new()
        .run_until(async {
            match args.load {
                Load::Requests {
                    connections,
                    path,
                    body,
                } => requests(common, connections, &path, body).await,
                Load::Paced {
                    connections,
                    path,
                    body,
                    rate,
                } => paced::run(common, connections, &path, body, rate).await,
                Load::H2 {
                    connections,
                    streams,
                    path,
                    body,
                    h2load,
                } => h2::run(common, connections, streams, &path, body, &h2load).await,
                Load::Handshakes {
                    connections,
                    resume,
                } => handshakes::run(common, connections, resume).await,
                Load::Idle { connections } => idle::run(common, connections).await,
            }
        })
        .await?;
    println!("{measured}");
    Ok(())
}

impl Common {
    /// The proxy as its clients reach it.
    pub(crate) fn target(&self, resume: bool) -> Result<Target> {
        let tls = self.ca.as_deref().map(|ca| client::tls(ca, resume));
        Ok(Target {
            address: self.address,
            host: self.host.clone(),
            tls: tls.transpose()?,
        })
    }
}

/// Closed loop: as many requests at once as there are connections.
async fn requests(common: &Common, connections: usize, path: &str, body: usize) -> Result<String> {
    let target = common.target(false)?;
    let tally = Rc::new(Tally::default());
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let mut asker = Asker::connect(&target, path, body).await?;
        let tally = Rc::clone(&tally);
        tasks.spawn_local(async move {
            loop {
                let asked = Instant::now();
                asker.ask().await?;
                tally.done(asked);
            }
        });
    }
    let window = Window::new(common, &tally)?;
    let seen = window.watch(&mut tasks).await?;
    Ok(seen.json(&tally, ""))
}

/// What a load has done. Times are kept only inside the window.
#[derive(Default)]
pub(crate) struct Tally {
    done: Cell<u64>,
    timing: Cell<bool>,
    micros: RefCell<Vec<u32>>,
}

impl Tally {
    /// One more, begun at `asked`.
    pub(crate) fn done(&self, asked: Instant) {
        self.done.set(self.done.get() + 1);
        if self.timing.get() {
            let micros = u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX);
            self.micros.borrow_mut().push(micros);
        }
    }

    /// The time that `per_mille` of a thousand did not exceed, in µs.
    fn percentile(&self, per_mille: usize) -> Option<u32> {
        let mut sorted = self.micros.borrow_mut();
        sorted.sort_unstable();
        let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
        sorted.get(rank - 1).copied()
    }
}

/// The time between two looks at everything that is counted.
pub(crate) struct Window<'c> {
    common: &'c Common,
    tally: Rc<Tally>,
    tree: Tree,
    others: [Tree; 2],
}

/// One look.
struct Look {
    at: Instant,
    cpu: Duration,
    ours: Duration,
    machine: Duration,
    done: u64,
    origin: Counts,
}

impl<'c> Window<'c> {
    /// A window on the processes as they are now.
    pub(crate) fn new(common: &'c Common, tally: &Rc<Tally>) -> Result<Self> {
        Ok(Self {
            common,
            tally: Rc::clone(tally),
            tree: Tree::of(common.pid)?,
            others: [Tree::of(common.origin_pid)?, Tree::of(std::process::id())?],
        })
    }

    /// Warms up, looks, waits, looks. The first of the tasks that ends, ends it with its error.
    pub(crate) async fn watch(&self, tasks: &mut JoinSet<Result<()>>) -> Result<Seen> {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(ended) => match ended.context("a load has panicked")? {
                    Ok(()) => bail!("the load ended too early"),
                    Err(error) => Err(error),
                },
                None => bail!("no load"),
            },
            seen = self.between() => seen,
        }
    }

    /// As [`Self::watch`], while `load` goes on by itself.
    pub(crate) async fn between(&self) -> Result<Seen> {
        tokio::time::sleep(Duration::from_millis(self.common.warm_up_ms)).await;
        let before = self.look()?;
        self.tally.timing.set(true);
        tokio::time::sleep(Duration::from_millis(self.common.window_ms)).await;
        let after = self.look()?;
        self.tally.timing.set(false);
        let cpu = after.cpu.saturating_sub(before.cpu);
        let ours = after.ours.saturating_sub(before.ours);
        let busy = after.machine.saturating_sub(before.machine);
        Ok(Seen {
            took: after.at - before.at,
            cpu,
            elsewhere: busy.saturating_sub(cpu + ours),
            done: after.done - before.done,
            origin: Counts {
                requests: after.origin.requests - before.origin.requests,
                connections: after.origin.connections - before.origin.connections,
            },
        })
    }

    fn look(&self) -> Result<Look> {
        let [origin, load] = &self.others;
        Ok(Look {
            // Everything else is read within a fraction of a millisecond of these.
            cpu: self.tree.cpu()?,
            done: self.tally.done.get(),
            origin: origin::counts(self.common.origin_counts)?,
            at: Instant::now(),
            ours: origin.cpu()? + load.cpu()?,
            machine: machine_busy()?,
        })
    }
}

/// What a window has seen.
pub(crate) struct Seen {
    took: Duration,
    cpu: Duration,
    /// CPU time of everything on the machine that is neither proxy nor load nor origin.
    elsewhere: Duration,
    done: u64,
    origin: Counts,
}

impl Seen {
    /// The requests that the origin has seen are what was done.
    pub(crate) fn count_by_origin(&mut self) {
        self.done = self.origin.requests;
    }

    /// One line; `more` is appended inside the object.
    pub(crate) fn json(&self, tally: &Tally, more: &str) -> String {
        let seconds = self.took.as_secs_f64();
        let mut line = format!(
            "{{\"done\":{},\"seconds\":{seconds:.4},\"cpu_us\":{:.1},\"elsewhere_cores\":{:.3},\
             \"origin_requests\":{},\"origin_connections\":{}",
            self.done,
            self.cpu.as_secs_f64() * 1e6,
            self.elsewhere.as_secs_f64() / seconds,
            self.origin.requests,
            self.origin.connections,
        );
        if let (Some(p50), Some(p99)) = (tally.percentile(500), tally.percentile(990)) {
            line.push_str(&format!(",\"p50_us\":{p50},\"p99_us\":{p99}"));
        }
        line.push_str(more);
        line.push('}');
        line
    }
}

/// Runs `what` in as many tasks as there are connections.
pub(crate) fn spawn<F>(count: usize, mut what: impl FnMut(usize) -> F) -> JoinSet<Result<()>>
where
    F: Future<Output = Result<()>> + 'static,
{
    let mut tasks = JoinSet::new();
    for n in 0..count {
        tasks.spawn_local(what(n));
    }
    tasks
}
