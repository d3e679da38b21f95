//! `GET /readyz` of the admin endpoint.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use edd_daemon::api::Json;
use edd_events::{
    bus::{AnyBus, Bus as _},
    outbox,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::store::Database;

/// How long the database may take to answer.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(1);

/// What readiness depends on.
#[derive(Debug)]
pub struct Health {
    /// The service's own.
    pub database: Database,
    /// What carries its events, if there is something.
    pub bus: Option<AnyBus>,
    /// Cancelled while the service drains.
    pub shutdown: CancellationToken,
}

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    nats: &'static str,
    database: &'static str,
    events: &'static str,
    outbox_pending: Option<u64>,
}

/// 200 `ready`, or `degraded` without NATS, when events wait in the outbox; 503
/// without the database, which everything here needs, and while draining.
pub fn router(health: Arc<Health>) -> Router {
    Router::new().route("/readyz", get(async move || health.readiness().await))
}

impl Health {
    async fn readiness(&self) -> Response {
        let database = tokio::time::timeout(DATABASE_TIMEOUT, async {
            self.database.sql().ping().await?;
            outbox::pending(self.database.sql()).await
        })
        .await;
        let outbox_pending = database.ok().and_then(Result::ok);
        let nats = match &self.bus {
            None => "off",
            Some(AnyBus::Memory(_)) => "memory",
            Some(bus) if bus.is_connected() => "connected",
            Some(_) => "disconnected",
        };
        let draining = self.shutdown.is_cancelled();
        let status = match (draining, outbox_pending, nats) {
            (true, _, _) => "draining",
            (_, None, _) | (_, _, "disconnected") => "degraded",
            _ => "ready",
        };
        let code = if draining || outbox_pending.is_none() {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        };
        let readiness = Readiness {
            status,
            nats,
            database: if outbox_pending.is_some() {
                "ok"
            } else {
                "unavailable"
            },
            events: if self.database.events() { "on" } else { "off" },
            outbox_pending,
        };
        (code, Json(readiness)).into_response()
    }
}
