//! Wires the service together and takes it down in order.
//!
//! Start: ports, database, NATS (in the background), then serving. Drain: the
//! REST API finishes its requests, then relay, responder and admin endpoint end.
//! What is still in the outbox is published by the next start.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream;
use edd_daemon::{
    admin,
    api::{ApiLimits, ApiMetrics, serve_api},
    net::bind_all,
    server::{self, Limits},
};
use edd_events::{Metrics, connect, outbox::Relay, stream};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{self, Api},
    config::Config,
    health::{self, Health},
    limit::LoginLimiter,
    password::Passwords,
    store::Store,
    validate,
};

/// How often expired sessions are removed.
const PURGE_INTERVAL: Duration = Duration::from_secs(600);

/// How long background tasks may take to end after the API is drained.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(5);

/// The service.
#[derive(Debug)]
pub struct App;

/// A started service.
#[derive(Debug)]
pub struct Running {
    /// Where the REST API really listens.
    pub addr: SocketAddr,
    /// Where the admin endpoint really listens.
    pub admin_addr: SocketAddr,
    drained: JoinHandle<()>,
}

impl App {
    /// Starts the service; cancelling `shutdown` drains it.
    ///
    /// # Errors
    /// A port is taken, the database cannot be opened, or the NATS options
    /// cannot be used. An unreachable NATS is no error.
    pub async fn start(config: Config, shutdown: CancellationToken) -> anyhow::Result<Running> {
        let [api_listener, admin_listener] =
            bind_all([("--addr", config.addr), ("--admin-addr", config.admin_addr)]).await?;
        let addr = api_listener
            .local_addr()
            .context("cannot read the bound address")?;
        let admin_addr = admin_listener
            .local_addr()
            .context("cannot read the bound address")?;
        let store = Store::open(&config.database, config.events).await?;
        let passwords = Passwords::new(hashing_threads()).await?;

        let mut registry = Registry::with_prefix("edd_auth");
        let event_metrics = Metrics::register(&mut registry);
        let api_metrics = ApiMetrics::register(&mut registry);

        let background = TaskTracker::new();
        let end_background = CancellationToken::new();
        let nats = match &config.nats {
            Some(options) => Some(connect::connect(options).await?),
            None => None,
        };
        let mut waker = None;
        if let Some(client) = &nats {
            if config.events {
                let js = jetstream::new(client.clone());
                let relay = Relay::new(store.pool().clone(), js, event_metrics)
                    .with_streams(&[stream::AUTH], config.nats_replicas);
                waker = Some(relay.waker());
                background.spawn(relay.run(end_background.clone()));
            }
            let validating = validate::run(client.clone(), store.clone(), end_background.clone());
            background.spawn(validating);
        } else if config.events {
            tracing::warn!("no --nats-url: events wait in the outbox until there is one");
        }
        let purging = purge(store.clone());
        background.spawn(end_background.clone().run_until_cancelled_owned(purging));

        let health = Arc::new(Health {
            events: config.events,
            nats,
            shutdown: shutdown.clone(),
            store: store.clone(),
        });
        let admin_router = admin::router(Arc::new(registry)).merge(health::router(health));
        background.spawn(admin::serve(
            admin_listener,
            admin_router,
            end_background.clone(),
        ));

        let api = Arc::new(Api {
            admins: config.admins,
            limiter: LoginLimiter::new(config.login_limits),
            passwords,
            store: store.clone(),
            trusted_proxies: config.trusted_proxies,
            waker,
        });
        let router = serve_api(api::router(api), api_metrics, ApiLimits::default());
        let limits = Limits {
            drain_timeout: config.drain_timeout,
            ..Limits::default()
        };
        let drained = tokio::spawn(async move {
            // Ends the background tasks however this one ends.
            let end_background = end_background.drop_guard();
            server::serve(api_listener, router, limits, shutdown).await;
            drop(end_background);
            background.close();
            if tokio::time::timeout(BACKGROUND_TIMEOUT, background.wait())
                .await
                .is_err()
            {
                tracing::warn!("background tasks did not end in time");
            }
            store.close().await;
            tracing::info!("drained");
        });
        Ok(Running {
            addr,
            admin_addr,
            drained,
        })
    }
}

impl Running {
    /// Waits until the service is drained.
    pub async fn drained(self) {
        if let Err(error) = self.drained.await {
            tracing::error!(%error, "the service ended badly");
        }
    }
}

/// As many hashes at a time as there are cores, and four at most: 76 MiB.
fn hashing_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().min(4))
}

async fn purge(store: Store) {
    let mut ticks = tokio::time::interval(PURGE_INTERVAL);
    loop {
        ticks.tick().await;
        match store.purge_expired().await {
            Ok(0) => {}
            Ok(sessions) => tracing::info!(sessions, "expired sessions removed"),
            Err(error) => tracing::warn!(%error, "cannot remove expired sessions"),
        }
    }
}
