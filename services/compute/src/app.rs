//! Wires the service together and takes it down in order.
//!
//! Start: ports, database, NATS (in the background), runtime, then serving, and
//! containers that ran before are started again. Drain: the REST API finishes
//! its requests, the containers end, then consumers, relay and admin endpoint.
//! What is still in the outbox is published by the next start.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use edd_daemon::{
    admin,
    api::{ApiLimits, ApiMetrics, serve_api},
    server::{self, Limits},
};
use edd_events::{Metrics, bus::AnyBus, consumer::Consumer, stream};
pub use edd_service::run::Running;
use edd_service::{
    bus,
    health::{self, Health},
    retention,
    run::{Background, Listeners},
};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, Api},
    auth::Auth,
    config::Config,
    digest::Digests,
    events::{gateway::Confirmations, users::Users},
    gateways::Gateways,
    lifecycle::Lifecycle,
    runtime::{
        gateway_key::{GatewayKey, Source},
        local::{LocalOptions, LocalRuntime},
        sshd::{self, Sshd},
    },
    snapshot::Snapshots,
    store::Store,
};

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
    /// A port is taken, the database or the state folder cannot be used, or the
    /// NATS options make no sense. An unreachable NATS is no error.
    pub async fn start(config: Config, shutdown: CancellationToken) -> anyhow::Result<Running> {
        let bus = bus::connect(config.event_bus, config.nats.as_ref()).await?;
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
        let store = Store::open(&config.database, config.events)
            .await?
            .with_archive(config.event_store_days > 0);

        let mut registry = Registry::with_prefix("edd_compute");
        let event_metrics = Metrics::register(&mut registry);
        let api_metrics = ApiMetrics::register(&mut registry);

        let background = Background::default();
        let waker = bus::relay(
            store.database(),
            bus.as_ref(),
            stream::COMPUTE,
            config.nats_replicas,
            config.signer.clone(),
            &event_metrics,
            &background,
        );
        let runtime = local_runtime(&config, &store, bus.as_ref(), &background).await?;
        let lifecycle = Lifecycle::new(store.clone(), Arc::new(runtime), waker.clone());
        if let Some(bus) = &bus {
            let consumer = |spec| {
                Consumer::new(
                    bus.clone(),
                    spec,
                    config.nats_replicas,
                    event_metrics.clone(),
                )
                .with_verifier(config.verifier.clone())
                .with_archive(store.database().archive_of_letters())
            };
            let users = Users {
                store: store.clone(),
                lifecycle: lifecycle.clone(),
                waker: waker.clone(),
            };
            let confirmations = Confirmations {
                store: store.clone(),
            };
            let end = &background.end;
            let snapshots = Snapshots {
                bus: bus.clone(),
                store: store.clone(),
                signer: config.signer.clone(),
            };
            background.tasks.spawn(snapshots.run(end.clone()));
            let digests = Digests {
                bus: bus.clone(),
                store: store.clone(),
                signer: config.signer.clone(),
            };
            background.tasks.spawn(digests.run(end.clone()));
            let consuming = consumer(crate::events::users::SPEC).run(users, end.clone());
            background.tasks.spawn(consuming);
            let consuming = consumer(crate::events::gateway::SPEC).run(confirmations, end.clone());
            background.tasks.spawn(consuming);
        }
        background.spawn(retention::run(
            store.database().clone(),
            config.event_store_days,
        ));

        let health = Arc::new(Health {
            database: store.database().clone(),
            bus: bus.clone(),
            shutdown: shutdown.clone(),
        });
        let admin_router = admin::router(Arc::new(registry)).merge(health::router(health));
        let admin = admin::serve(listeners.admin, admin_router, background.end.clone());
        background.tasks.spawn(admin);

        let api = Arc::new(Api {
            auth: Auth::new(bus, config.auth_url),
            gateways: Gateways::new(config.gateways),
            containers_per_user: config.containers_per_user,
            keys_per_user: config.keys_per_user,
            lifecycle: lifecycle.clone(),
            platform_domain: config.platform_domain,
            ports: config.ports,
            public_ssh_port: config.public_ssh_port,
            store: store.clone(),
            waker,
        });
        lifecycle
            .resume()
            .await
            .context("cannot read the containers")?;
        let router = serve_api(api::router(api), api_metrics, ApiLimits::default());
        let limits = Limits {
            drain_timeout: config.drain_timeout,
            ..Limits::default()
        };
        let serving = tokio::spawn(async move {
            server::serve(listeners.api, router, limits, shutdown).await;
            lifecycle.end().await;
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

async fn local_runtime(
    config: &Config,
    store: &Store,
    bus: Option<&AnyBus>,
    background: &Background,
) -> anyhow::Result<LocalRuntime> {
    let sshd = match sshd::find(config.sshd.as_deref()) {
        Some(binary) => Some(
            Sshd::new(binary.clone(), config.sshd_session.clone())
                .await
                .with_context(|| format!("cannot use {}", binary.display()))?,
        ),
        None => {
            tracing::warn!("no sshd on this machine: containers start without SSH");
            None
        }
    };
    let source = match (&config.gateway_ssh_key, bus) {
        (Some(file), _) => Source::File(file.clone()),
        (None, Some(bus)) => Source::Bus(bus.clone()),
        (None, None) => Source::None,
    };
    let guest_binary = match &config.guest_binary {
        Some(binary) => binary.clone(),
        None => current_binary()?,
    };
    let folder = config.state_dir.join("local");
    let gateway_key = GatewayKey::new(folder.join("gateway.pub"), source);
    let options = LocalOptions {
        guest_binary,
        folder,
        sshd,
    };
    let runtime = LocalRuntime::new(options, store.clone(), gateway_key.clone())
        .with_context(|| format!("cannot use {}", config.state_dir.display()))?;
    background.spawn(gateway_key.run());
    Ok(runtime)
}

fn current_binary() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find the service's own binary")
}
