//! From checked flags to the end of the drain.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use edd_daemon::{
    cli::Exit,
    net::bind_all,
    shutdown,
    telemetry::{self, LogFormat},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Starts logs and runtime, then the service, and waits for the end of its drain,
/// which SIGTERM or SIGINT begins.
///
/// # Errors
/// Logs or runtime cannot be started, or what `start` says.
pub fn run<F>(
    log: &str,
    log_format: LogFormat,
    start: impl FnOnce(CancellationToken) -> F,
) -> Result<(), Exit>
where
    F: Future<Output = anyhow::Result<Running>>,
{
    let _logs = telemetry::init(log, log_format).context("cannot start the logs")?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let running = start(shutdown::on_signals()).await?;
        running.drained().await;
        Ok(())
    })
}

/// A started service.
#[derive(Debug)]
pub struct Running {
    /// Where the REST API really listens.
    pub addr: SocketAddr,
    /// Where the admin endpoint really listens.
    pub admin_addr: SocketAddr,
    /// The task that serves, then drains.
    pub serving: JoinHandle<()>,
}

impl Running {
    /// Waits until the service is drained.
    pub async fn drained(self) {
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "the service ended badly");
        }
    }
}

/// The bound ports of a service.
#[derive(Debug)]
pub struct Listeners {
    /// Of the REST API.
    pub api: TcpListener,
    /// Where it really listens.
    pub addr: SocketAddr,
    /// Of the admin endpoint.
    pub admin: TcpListener,
    /// Where it really listens.
    pub admin_addr: SocketAddr,
}

impl Listeners {
    /// Binds the addresses of `--addr` and `--admin-addr`.
    ///
    /// # Errors
    /// A port is taken or an address is not of this machine.
    pub async fn bind(addr: SocketAddr, admin_addr: SocketAddr) -> anyhow::Result<Self> {
        let [api, admin] = bind_all([("--addr", addr), ("--admin-addr", admin_addr)]).await?;
        let bound = |listener: &TcpListener| {
            listener
                .local_addr()
                .context("cannot read the bound address")
        };
        Ok(Self {
            addr: bound(&api)?,
            admin_addr: bound(&admin)?,
            api,
            admin,
        })
    }
}

/// Tasks that end after the API is drained, and with this value at the latest.
#[derive(Debug, Default)]
pub struct Background {
    /// All of them.
    pub tasks: TaskTracker,
    /// Tells them to end.
    pub end: CancellationToken,
}

impl Background {
    /// For tasks that may be dropped anywhere.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks
            .spawn(self.end.clone().run_until_cancelled_owned(task));
    }

    /// Ends the tasks and waits for them, this long at most.
    pub async fn end(self, wait: Duration) {
        self.end.cancel();
        self.tasks.close();
        if tokio::time::timeout(wait, self.tasks.wait()).await.is_err() {
            tracing::warn!("background tasks did not end in time");
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.end.cancel();
    }
}
