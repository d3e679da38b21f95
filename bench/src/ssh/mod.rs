//! `edd-bench ssh`: SSH through a gateway beside the same straight to the container's sshd.
//!
//! Everything is OpenSSH's but the gateway: client, server, sftp. Both ways are measured by turns
//! in one run. Bulk in both directions and by sftp, with the processor time of everybody; the time
//! of a command over a new and over a shared connection; many sessions at once: whether all
//! answer, and what one costs in memory while it does nothing; bulk over links of a given speed.

mod bulk;
mod cost;
mod crowd;
mod ground;
mod link;
mod prompt;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum as _;

use crate::stats::machine_noise;
use bulk::Kind;
use ground::Ground;

/// The arguments of `edd-bench ssh`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The gateway's binary
    #[arg(long)]
    gateway: PathBuf,
    /// Another one, whose transfers are measured by turns with the first one's
    #[arg(long)]
    beside: Option<PathBuf>,
    /// Kinds of transfers
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "download,upload,sftp-get,sftp-put"
    )]
    kinds: Vec<Kind>,
    /// Bytes of each transfer, in MiB
    #[arg(long, default_value_t = 1024)]
    megabytes: u32,
    /// Transfers of each kind and way
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Commands whose time is taken, of each kind and way
    #[arg(long, default_value_t = 30)]
    commands: u32,
    /// Sessions at once
    #[arg(long, default_value_t = 500)]
    sessions: u32,
    /// Speed of the links over which transfers are measured once more, in Mbit/s; 0: not measured
    #[arg(long, default_value_t = 1000)]
    link: u32,
    /// Only that, here: the network is nobody else's
    #[arg(long, hide = true)]
    apart: bool,
    /// The container's address; the gateway must accept it
    #[arg(long, default_value = "127.64.254.1")]
    container: IpAddr,
}

/// Transfers over links: enough of them, and large enough, for what the network decides.
const LINK_ROUNDS: u32 = 3;

/// As the command line has them.
fn names(kinds: &[Kind]) -> String {
    let names = kinds.iter().filter_map(|kind| kind.to_possible_value());
    let names: Vec<_> = names.map(|name| name.get_name().to_owned()).collect();
    names.join(",")
}

/// Runs all of them, prints the figures.
pub(crate) async fn run(args: Args) -> Result<()> {
    let guest = SocketAddr::new(args.container, 8080);
    if args.apart {
        link::open().await?;
        let ground = Ground::prepare(args.gateway, guest).await?;
        link::shape(&ground, args.link).await?;
        bulk::measure(&ground, None, &args.kinds, args.megabytes, args.rounds).await?;
        return ground.stop().await;
    }
    println!(
        "machine's noise (lateness of a 1 ms sleep)   {}",
        machine_noise()
    );
    let ground = Ground::prepare(args.gateway.clone(), guest).await?;
    let beside = match &args.beside {
        Some(gateway) => Some(Ground::prepare(gateway.clone(), guest).await?),
        None => None,
    };
    bulk::measure(
        &ground,
        beside.as_ref(),
        &args.kinds,
        args.megabytes,
        args.rounds,
    )
    .await?;
    if let Some(beside) = beside {
        beside.stop().await?;
    }
    prompt::measure(&ground, args.commands).await?;
    crowd::measure(&ground, args.sessions).await?;
    ground.stop().await?;
    if args.link > 0 {
        println!("over links of {} Mbit/s each:", args.link);
        let rest = [
            "--apart".to_owned(),
            format!("--link={}", args.link),
            format!("--kinds={}", names(&args.kinds)),
            format!("--megabytes={}", (args.megabytes / 2).max(1)),
            format!("--rounds={}", args.rounds.min(LINK_ROUNDS)),
            format!("--container={}", args.container),
        ];
        if let Err(error) = link::run_apart(&args.gateway, &rest).await {
            println!("not measured, it needs root, unshare and tc: {error:#}");
        }
    }
    println!(
        "machine's noise (lateness of a 1 ms sleep)   {}",
        machine_noise()
    );
    Ok(())
}
