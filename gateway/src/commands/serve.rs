//! `serve`: the daemon.

use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::Context as _;
use edd_daemon::cli::Exit;
use edd_daemon::{shutdown, telemetry};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::app;
use crate::config::ServeArgs;
use crate::{systemd, upgrade};

/// Threads of the runtime for control and admin, one for each core and at least these: what
/// keeps one busy for a while does not stop the others. (Data and SSH have threads of their own.)
const CONTROL_THREADS_MIN: usize = 2;

/// At the end, for what still blocks a thread.
const END_MAX: Duration = Duration::from_secs(1);

pub(super) fn run(args: ServeArgs) -> Result<(), Exit> {
    raise_file_limit();
    keep_freed_memory();
    let config = args.check()?;
    let _logs = telemetry::init(&config.log, config.log_format).context("cannot start the logs")?;
    let cores = available_parallelism().map_or(1, Into::into);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.max(CONTROL_THREADS_MIN))
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let program = upgrade::program().context("this program has no path")?;
    let inherited = systemd::inherited().map_err(|error| Exit::Usage(vec![error.to_string()]))?;
    let served = runtime.block_on(async {
        let shutdown = shutdown::on_signals();
        let asked = upgrade::asked().context("cannot watch for SIGUSR2")?;
        let running = app::start(config, inherited, shutdown.clone()).await?;
        systemd::notify(systemd::State::Ready);
        tokio::spawn(upgrade::whenever(asked, program, shutdown));
        running.ended().await;
        Ok(())
    });
    // Whoever waits for a disk that is away waits in vain.
    runtime.shutdown_timeout(END_MAX);
    served
}

/// Makes glibc keep up to 4 MiB of freed memory for each heap, instead of 128 KiB.
///
/// It gives what is beyond back to the kernel at once; what carries data gets the same pages again
/// a moment later, one fault each, a tenth of the time of a large transfer. Its mark follows the
/// largest block that was mapped by itself and freed (mallopt(3), at `M_MMAP_THRESHOLD`): twice as
/// much. Other allocators take no notice.
fn keep_freed_memory() {
    const BLOCK: usize = 2 << 20;
    drop(std::hint::black_box(Vec::<u8>::with_capacity(BLOCK)));
}

/// Every connection takes descriptors, and the soft limit is often 1,024.
///
/// Without the right to raise it the caps on connections follow what there is.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}
