//! `edd-bench ssh`: SSH through a gateway beside the same straight to the container's sshd.
//!
//! Everything is OpenSSH's but the gateway: client, server, sftp. Both ways are measured by turns
//! in one run. Bulk in both directions and by sftp, the time of a command over a new and over a
//! shared connection, and many sessions at once: whether all answer, and what one costs in memory
//! while it does nothing.

mod bulk;
mod crowd;
mod ground;
mod prompt;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;

use crate::stats::machine_noise;
use ground::Ground;

/// The arguments of `edd-bench ssh`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The gateway's binary
    #[arg(long)]
    gateway: PathBuf,
    /// Bytes of each transfer, in MiB
    #[arg(long, default_value_t = 1024)]
    megabytes: u32,
    /// Transfers of each kind and way; the best counts
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Commands whose time is taken, of each kind and way
    #[arg(long, default_value_t = 30)]
    commands: u32,
    /// Sessions at once
    #[arg(long, default_value_t = 500)]
    sessions: u32,
    /// The container's address; the gateway must accept it
    #[arg(long, default_value = "127.64.254.1")]
    container: IpAddr,
}

/// Runs all of them, prints the figures.
pub(crate) async fn run(args: Args) -> Result<()> {
    println!(
        "machine's noise (lateness of a 1 ms sleep)   {}",
        machine_noise()
    );
    let guest = SocketAddr::new(args.container, 8080);
    let ground = Ground::prepare(args.gateway, guest).await?;
    bulk::measure(&ground, args.megabytes, args.rounds).await?;
    prompt::measure(&ground, args.commands).await?;
    crowd::measure(&ground, args.sessions).await?;
    println!(
        "machine's noise (lateness of a 1 ms sleep)   {}",
        machine_noise()
    );
    ground.stop().await
}
