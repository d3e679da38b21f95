//! `edd-bench relay`: the floor under every proxy.
//!
//! Copies bytes between a client and a connection of its own to the origin and looks at none of
//! them: per request on a kept connection two reads and two writes, which no proxy between two
//! sockets can do without.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

/// Bytes per read, each way.
const BUFFER: usize = 64 * 1024;

/// The arguments of `edd-bench relay`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to listen
    #[arg(long)]
    address: SocketAddr,
    /// Where every byte goes
    #[arg(long)]
    origin: SocketAddr,
}

/// Relays until the process is ended.
pub(crate) async fn run(args: Args) -> Result<()> {
    let listener = TcpListener::bind(args.address)
        .await
        .with_context(|| format!("cannot listen on {}", args.address))?;
    LocalSet::new()
        .run_until(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    continue;
                };
                tokio::task::spawn_local(relay(client, args.origin));
            }
        })
        .await
}

async fn relay(mut client: TcpStream, origin: SocketAddr) {
    let Ok(mut upstream) = TcpStream::connect(origin).await else {
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = upstream.set_nodelay(true);
    // A side that breaks ends the pair: the load tells when that was too early.
    let _ =
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await;
}
