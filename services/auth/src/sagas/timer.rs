//! The task that looks for sagas whose deadline is over, and how sagas show.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{Router, extract::State, routing::get};
use edd_daemon::api::{ApiError, Json};
use edd_events::{
    outbox::Waker,
    saga::{self, Status},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::confirmed::{Deletion, Registration, Which};
use crate::store::Store;

/// How often to look, at least; with short time-outs ten times within one.
const INTERVAL_MAX: Duration = Duration::from_secs(30);
const INTERVAL_MIN: Duration = Duration::from_millis(50);
/// Completed sagas are shown for so long.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// Sagas shown at once.
const SHOWN_MAX: u32 = 200;

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct Labels {
    kind: &'static str,
    state: &'static str,
}

/// Looks for deadlines, and counts.
#[derive(Debug)]
pub(crate) struct Timer {
    store: Store,
    waker: Option<Waker>,
    timeout: Duration,
    counts: Family<Labels, Gauge>,
}

impl Timer {
    pub(crate) fn new(
        store: Store,
        waker: Option<Waker>,
        timeout: Duration,
        registry: &mut Registry,
    ) -> Self {
        let counts = Family::default();
        registry.register("sagas", "Sagas, by kind and state", Family::clone(&counts));
        Self {
            store,
            waker,
            timeout,
            counts,
        }
    }

    /// Drives what is due, until dropped. A step is one transaction.
    pub(crate) async fn run(self) {
        let period = (self.timeout / 10).clamp(INTERVAL_MIN, INTERVAL_MAX);
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.store.drive_due(SystemTime::now()).await {
                Ok(0) => {}
                Ok(_announced) => {
                    if let Some(waker) = &self.waker {
                        waker.wake();
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot look after sagas"),
            }
            if let Err(error) = self.count().await {
                tracing::debug!(%error, "cannot count sagas");
            }
        }
    }

    async fn count(&self) -> edd_store::Result<()> {
        let database = self.store.database().sql();
        saga::prune(database, KEEP).await?;
        let found = saga::counts(database).await?;
        for kind in [Registration::KIND, Deletion::KIND] {
            for status in Status::ALL {
                let state = status.as_str();
                let of = found.iter().find(|(k, s, _)| k == kind && s == state);
                self.counts
                    .get_or_create(&Labels { kind, state })
                    .set(of.map_or(0, |(_, _, count)| *count));
            }
        }
        Ok(())
    }
}

/// `GET /api/v1/sagas` of the admin endpoint: those that changed last.
pub(crate) fn router(store: Store) -> Router {
    Router::new()
        .route("/api/v1/sagas", get(show))
        .with_state(Arc::new(store))
}

async fn show(State(store): State<Arc<Store>>) -> Result<Json<Value>, ApiError> {
    let sagas = saga::list(store.database().sql(), None, SHOWN_MAX).await?;
    Ok(Json(json!({ "sagas": sagas })))
}
