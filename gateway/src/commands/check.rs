//! `check`: is this routes.yaml good?

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use edd_daemon::cli::Exit;
use edd_route::StaticRouteSpec;

use crate::control::sources::routes_file;

/// Flags of `check`.
#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub(super) file: FileArgs,
}

/// Which file, and what it is checked against.
#[derive(Args, Clone, Debug)]
pub(super) struct FileArgs {
    /// The file
    #[arg(
        long,
        env = "EDD_GATEWAY_ROUTES",
        default_value = "routes.yaml",
        value_name = "FILE"
    )]
    pub(super) routes: PathBuf,
    /// Containers are <id>.compute.<platform-domain>
    #[arg(
        long,
        env = "EDD_GATEWAY_PLATFORM_DOMAIN",
        default_value = "cloud.eddisonso.com",
        value_name = "DOMAIN"
    )]
    pub(super) platform_domain: String,
}

pub(super) fn run(args: &CheckArgs) -> Result<(), Exit> {
    let routes = load(&args.file.routes, &args.file.platform_domain)?;
    let hosts: BTreeSet<_> = routes.iter().map(|route| route.host.as_str()).collect();
    let file = args.file.routes.display();
    println!(
        "{file}: {} routes of {} hosts, no mistakes",
        routes.len(),
        hosts.len()
    );
    Ok(())
}

/// Reads and checks the file; prints its mistakes, one a line.
pub(super) fn load(file: &Path, platform_domain: &str) -> Result<Vec<StaticRouteSpec>, Exit> {
    let domain = platform_domain.trim_end_matches('.').to_ascii_lowercase();
    let name = file.display();
    // That it cannot be read is no mistake in it.
    std::fs::metadata(file)
        .map_err(|error| Exit::Failure(anyhow::Error::new(error).context(name.to_string())))?;
    routes_file::read(file, &domain).1.map_err(|mistakes| {
        for mistake in &mistakes {
            println!("{mistake}");
        }
        let count = mistakes.len();
        let noun = if count == 1 { "mistake" } else { "mistakes" };
        Exit::Failure(anyhow::anyhow!("{count} {noun} in {name}"))
    })
}
