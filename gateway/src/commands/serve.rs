//! `serve`: the daemon.

use anyhow::Context as _;
use edd_daemon::cli::Exit;
use edd_daemon::{shutdown, telemetry};

use crate::app;
use crate::config::ServeArgs;

/// Threads of the runtime for control, SSH and admin; data has its own.
const CONTROL_THREADS: usize = 4;

pub(super) fn run(args: ServeArgs) -> Result<(), Exit> {
    let config = args.check()?;
    let _logs = telemetry::init(&config.log, config.log_format).context("cannot start the logs")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let shutdown = shutdown::on_signals();
        let running = app::start(config, shutdown).await?;
        running.ended().await;
        Ok(())
    })
}
