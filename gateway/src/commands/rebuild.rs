//! `rebuild`: the streams replayed into an empty database.

use anyhow::Context as _;
use clap::Args;
use edd_daemon::cli::Exit;
use edd_daemon::{shutdown, telemetry};

use crate::config::ServeArgs;
use crate::rebuild;

/// Flags of `rebuild`: those of the gateway whose database it is.
#[derive(Args, Debug)]
pub(super) struct RebuildArgs {
    /// Begin anew where the database is not empty: its file is put aside, as FILE.old-SECONDS
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    serve: ServeArgs,
}

pub(super) fn run(args: RebuildArgs) -> Result<(), Exit> {
    let config = args.serve.check()?;
    let _logs = telemetry::init(&config.log, config.log_format).context("cannot start the logs")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let database = config.database_url.clone();
    let progress = |containers| println!("{containers} containers so far");
    let summary = runtime.block_on(async {
        let shutdown = shutdown::on_signals();
        rebuild::run(config, args.yes, progress, shutdown).await
    })?;
    println!(
        "{database}: {} containers, {} keys, revision {}, in {:.1} s",
        summary.containers,
        summary.keys,
        summary.revision,
        summary.took.as_secs_f64()
    );
    if let Some(kept) = summary.kept {
        println!("what it held before: {}", kept.display());
    }
    Ok(())
}
