//! Wires the parts together, in the order they must start.

use std::net::SocketAddr;
use std::sync::Arc;

use edd_daemon::cli::Exit;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::shared::Shared;

/// Where the gateway listens.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Behind public port 80.
    pub http: SocketAddr,
    /// Behind public port 443.
    pub https: SocketAddr,
    /// Behind public port 22.
    pub ssh: SocketAddr,
    /// Admin.
    pub admin: SocketAddr,
    /// The dynamic ports, in the order of `--ports`.
    pub ports: Vec<SocketAddr>,
}

/// A gateway that serves.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addresses: Addresses,
    /// Its table, metrics and state.
    pub shared: Arc<Shared>,
}

/// Starts everything; ends by itself after `shutdown` is cancelled.
pub async fn start(_config: Config, _shutdown: CancellationToken) -> Result<Running, Exit> {
    Err(Exit::Failure(anyhow::anyhow!("not wired yet")))
}

impl Running {
    /// Waits until the drain is over.
    pub async fn ended(self) {}
}
