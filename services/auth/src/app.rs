//! Wires the service together and takes it down in order.
//!
//! Start: ports, database, NATS (in the background), then serving. Drain: the
//! REST API finishes its requests, then relay, responder and admin endpoint end.
//! What is still in the outbox is published by the next start.

use std::{sync::Arc, time::Duration};

use edd_daemon::{
    admin,
    api::{ApiLimits, ApiMetrics, serve_api},
    server::{self, Limits},
};
use edd_events::{Metrics, bus::AnyBus, consumer::Consumer, stream};
pub use edd_service::run::Running;
use edd_service::{
    bus::{self, EventBus},
    health::{self, Health},
    retention,
    run::{Background, Listeners},
};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, Api},
    config::Config,
    limit::LoginLimiter,
    password::Passwords,
    sagas::{self, Confirmations, Timer},
    store::Store,
    validate,
};

/// How often expired sessions are removed.
const PURGE_INTERVAL: Duration = Duration::from_secs(600);

/// How long background tasks may take to end after the API is drained: a batch
/// of events in work has five seconds.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(8);

/// The service.
#[derive(Debug)]
pub struct App;

impl App {
    /// Starts the service; cancelling `shutdown` drains it.
    ///
    /// # Errors
    /// A port is taken, the database cannot be opened, or the NATS options
    /// cannot be used. An unreachable NATS is no error.
    pub async fn start(mut config: Config, shutdown: CancellationToken) -> anyhow::Result<Running> {
        let bus = bus::connect(config.event_bus, config.nats.as_ref()).await?;
        if config.event_bus == EventBus::Memory {
            // Nobody else is on it: each saga would end as failed, with an error line.
            config.saga_timeout = None;
        }
        Self::start_on(bus, config, shutdown).await
    }

    /// As [`App::start`], on a bus that is there already, perhaps shared with
    /// other services of this process; none: events wait in the outbox.
    ///
    /// # Errors
    /// As [`App::start`].
    pub async fn start_on(
        bus: Option<AnyBus>,
        config: Config,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Running> {
        let listeners = Listeners::bind(config.addr, config.admin_addr).await?;
        // Without a bus nobody could confirm anything.
        let saga_timeout = config
            .saga_timeout
            .filter(|_| bus.is_some() && config.events);
        let store = Store::open(&config.database, config.events)
            .await?
            .with_archive(config.event_store_days > 0)
            .with_saga_timeout(saga_timeout)
            .with_undo_registrations(config.undo_registrations);
        let passwords = Passwords::new(hashing_threads()).await?;

        let mut registry = Registry::with_prefix("edd_auth");
        let event_metrics = Metrics::register(&mut registry);
        let api_metrics = ApiMetrics::register(&mut registry);

        let background = Background::default();
        let waker = bus::relay(
            store.database(),
            bus.as_ref(),
            stream::AUTH,
            config.nats_replicas,
            config.signer,
            &event_metrics,
            &background,
        );
        if let Some(timeout) = saga_timeout {
            let timer = Timer::new(store.clone(), waker.clone(), timeout, &mut registry);
            background.spawn(timer.run());
        }
        if let Some(bus) = bus.as_ref().filter(|_| saga_timeout.is_some()) {
            let metrics = event_metrics.clone();
            let archive = store.database().archive_of_letters();
            let consumer = Consumer::new(bus.clone(), sagas::SPEC, config.nats_replicas, metrics)
                .with_verifier(config.verifier.clone())
                .with_archive(archive);
            let confirmations = Confirmations {
                store: store.clone(),
            };
            let consuming = consumer.run(confirmations, background.end.clone());
            background.tasks.spawn(consuming);
        }
        if let Some(bus) = &bus {
            let validating = validate::run(bus.clone(), store.clone(), background.end.clone());
            background.tasks.spawn(validating);
        }
        background.spawn(purge(store.clone()));
        background.spawn(retention::run(
            store.database().clone(),
            config.event_store_days,
        ));

        let health = Arc::new(Health {
            database: store.database().clone(),
            bus,
            shutdown: shutdown.clone(),
        });
        let admin_router = admin::router(Arc::new(registry))
            .merge(health::router(health))
            .merge(sagas::router(store.clone()));
        let admin = admin::serve(listeners.admin, admin_router, background.end.clone());
        background.tasks.spawn(admin);

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
        let serving = tokio::spawn(async move {
            server::serve(listeners.api, router, limits, shutdown).await;
            background.end(BACKGROUND_TIMEOUT).await;
            store.database().sql().close().await;
            tracing::info!("drained");
        });
        Ok(Running {
            addr: listeners.addr,
            admin_addr: listeners.admin_addr,
            serving,
        })
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
