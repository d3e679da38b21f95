//! `edd-bench container`: makes the gateway route one container to the origin, by the events that
//! compute would publish.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use crate::publisher::Publisher;

/// The arguments of `edd-bench container`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to publish
    #[arg(long)]
    nats_url: String,
    /// The container's id
    #[arg(long)]
    id: String,
    /// The container's web server; the gateway must accept its address
    #[arg(long)]
    origin: SocketAddr,
    /// The ports that lead to it
    #[arg(required = true)]
    ports: Vec<u16>,
}

/// Publishes, and returns once the stream has stored all of it.
pub(crate) async fn run(args: Args) -> Result<()> {
    let publisher = Publisher::connect(&args.nats_url, args.origin).await?;
    for ack in publisher.create(&args.id, &args.ports, 1).await? {
        ack.await.context("the stream did not take an event")?;
    }
    Ok(())
}
