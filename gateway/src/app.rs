//! Wires the parts together, in the order they must start.
//!
//! First everything that must be right (the routes or the last good table, the
//! certificates, every listener), then what may come late (NATS, the database).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use edd_daemon::cli::Exit;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin;
use crate::config::Config;
use crate::control::{self, Boot, Control};
use crate::drain::Drain;
use crate::listener::{self, Gate, Workers};
use crate::shared::Shared;
use crate::ssh::SshServer;
use crate::telemetry::{AccessLog, Metrics};
use crate::tls::{CertError, CertStore};

pub use crate::listener::Addresses;

/// A gateway that serves.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addresses: Addresses,
    /// The admin listener.
    pub admin: SocketAddr,
    /// Its table, metrics and state.
    pub shared: Arc<Shared>,
    control: Control,
    workers: Workers,
    /// Ends what only watches: certificates, the admin listener.
    background: CancellationToken,
    shutdown: CancellationToken,
}

/// Starts everything on the caller's runtime; data-plane threads of its own.
///
/// It serves until `shutdown` is cancelled; [`Running::ended`] then drains it.
///
/// # Errors
/// [`Exit::Usage`] for routes or certificates that leave nothing to serve,
/// [`Exit::Failure`] for addresses that cannot be bound and files that cannot be
/// written.
pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Running, Exit> {
    let mut registry = Registry::with_prefix("edd_gateway");
    let metrics = Metrics::register(&mut registry);
    let events_metrics = edd_events::Metrics::register(&mut registry);
    let access = AccessLog::start(&mut registry).context("cannot start the access log")?;
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("cannot create {}", config.state_dir.display()))?;

    let boot = Boot::read(&config).map_err(|error| {
        let mut lines = vec![error.to_string()];
        lines.extend(error.mistakes);
        Exit::Usage(lines)
    })?;
    let bound = listener::bind(&config).map_err(|error| Exit::Failure(error.into()))?;
    let admin_listener = TcpListener::bind(config.admin_addr)
        .await
        .with_context(|| format!("cannot listen on --admin-addr {}", config.admin_addr))?;
    let admin_addr = admin_listener
        .local_addr()
        .context("the admin listener has no address")?;

    let certs = CertStore::open(&config, metrics.clone()).map_err(|error| match error {
        CertError::OnlyBadPairs(_) => Exit::Usage(vec![error.to_string()]),
        CertError::DevCa(_) | CertError::Library(_) => Exit::Failure(error.into()),
    })?;
    let table = boot.table();
    certs.cover(table.static_specs().map(|route| route.host.clone()));
    let gate = Gate::new(
        config.max_connections,
        config.max_connections_per_ip,
        config.max_upstream_connections,
    );
    let mut own = bound.addresses().all();
    own.push(admin_addr);
    gate.listening_on(own);
    let shared = Arc::new(Shared {
        config,
        table: ArcSwap::new(table),
        certs: Arc::new(certs),
        gate,
        metrics,
        access,
        drain: Drain::new(),
    });

    let addresses = bound.addresses();
    let (bound, ssh_listener) = bound.split_ssh();
    let ssh = SshServer::start(Arc::clone(&shared), ssh_listener).await?;
    let background = CancellationToken::new();
    tokio::spawn(Arc::clone(&shared.certs).watch(background.clone()));
    let control = control::start(control::Inputs {
        shared: Arc::clone(&shared),
        boot,
        ssh_public_key: ssh.public_key_line(),
        events_metrics,
    })
    .await?;
    let workers = listener::spawn(Arc::clone(&shared), bound, ssh)
        .context("cannot start the data threads")?;
    let router = admin::router(Arc::clone(&shared), &control, Arc::new(registry));
    tokio::spawn(admin::serve(admin_listener, router, background.clone()));
    announce(&addresses, admin_addr);
    Ok(Running {
        addresses,
        admin: admin_addr,
        shared,
        control,
        workers,
        background,
        shutdown,
    })
}

fn announce(addresses: &Addresses, admin: SocketAddr) {
    let named = [
        ("http", addresses.http),
        ("https", addresses.https),
        ("ssh", addresses.ssh),
        ("admin", admin),
    ];
    for (listener, addr) in named {
        info!(listener, %addr, "listening");
    }
    if let (Some(first), Some(last)) = (addresses.ports.first(), addresses.ports.last()) {
        info!(listener = "ports", %first, %last, count = addresses.ports.len(), "listening");
    }
}

impl Running {
    /// Waits for the shutdown, drains, and returns when everything has ended.
    ///
    /// Bounded by `--drain-timeout` and some seconds for cutting the rest.
    pub async fn ended(self) {
        self.shutdown.cancelled().await;
        let drain = &self.shared.drain;
        let timeout = self.shared.config.timeouts.drain;
        info!(connections = self.shared.gate.open(), ?timeout, "draining");
        match drain.run(timeout).await {
            0 => info!("drained"),
            cut => warn!(cut, "the drain's time is over, connections cut"),
        }
        self.control.stop().await;
        self.workers.join().await;
        // Last, so that it can be asked to the end.
        self.background.cancel();
        let access = self.shared.access.clone();
        let flush = move || access.flush(FLUSH_LIMIT);
        if tokio::task::spawn_blocking(flush).await.is_err() {
            warn!("the access log was not written to its end");
        }
    }
}

/// What is left of the access log at the end is written within this.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
