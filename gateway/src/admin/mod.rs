//! The admin endpoint: health, readiness, metrics and the live table, on
//! `--admin-addr`. Reads only, but for the dead letters; runs on the control
//! runtime.

mod dlq;
mod history;
mod table;

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use edd_daemon::cli::parse_duration;
use edd_events::dead_letter::Letters;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::control::store::SqlStore;
use crate::control::{DatabaseStatus, Face, NatsStatus, Status};
use crate::shared::Shared;
use history::At;

/// Longest wait of `/api/v1/wait`.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Wait of `/api/v1/wait` when none is given.
const WAIT_DEFAULT: Duration = Duration::from_secs(5);

/// What the handlers look at.
#[derive(Clone)]
struct Admin {
    shared: Arc<Shared>,
    status: watch::Receiver<Status>,
    revision: watch::Receiver<u64>,
    common_revision: watch::Receiver<u64>,
    letters: watch::Receiver<Option<Letters>>,
    history: watch::Receiver<Option<SqlStore>>,
}

/// All routes of the admin endpoint.
pub fn router(shared: Arc<Shared>, control: &Face, registry: Arc<Registry>) -> Router {
    let admin = Admin {
        shared,
        status: control.status(),
        revision: control.revision(),
        common_revision: control.common_revision(),
        letters: control.letters(),
        history: control.history(),
    };
    Router::new()
        .route("/readyz", get(ready))
        .route("/api/v1/routes", get(table::routes))
        .route("/api/v1/containers", get(table::containers))
        .route("/api/v1/dlq", get(dlq::list))
        .route("/api/v1/dlq/{letter}", get(dlq::show).delete(dlq::discard))
        .route("/api/v1/dlq/{letter}/replay", post(dlq::replay))
        .route("/api/v1/explain", get(explain))
        .route("/api/v1/log", get(history::log))
        .route("/api/v1/wait", get(wait))
        .with_state(admin)
        .merge(edd_daemon::admin::router(registry))
}

/// Serves the admin endpoint until `shutdown`.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    edd_daemon::admin::serve(listener, router, shutdown).await;
}

#[derive(Serialize)]
struct Ready {
    status: &'static str,
    nats: NatsStatus,
    database: DatabaseStatus,
    /// `paused` while the world keeps events from being handled.
    consumption: &'static str,
    /// `wanted`: the stream lost events before they were read, and compute has
    /// not answered yet.
    snapshot: &'static str,
    revision: u64,
    /// RFC 3339; none while changes come in and are kept.
    stale_since: Option<String>,
}

async fn ready(State(admin): State<Admin>) -> Response {
    let status = admin.status.borrow().clone();
    let answer = Ready {
        status: if status.is_whole() {
            "ready"
        } else {
            "degraded"
        },
        nats: status.nats,
        database: status.database,
        consumption: if status.paused { "paused" } else { "running" },
        snapshot: match status.snapshot_wanted {
            Some(_) => "wanted",
            None => "ok",
        },
        revision: admin.shared.table().revision,
        stale_since: status.stale_since.and_then(|since| {
            let since = since.duration_since(UNIX_EPOCH).ok()?;
            let seconds = i64::try_from(since.as_secs()).ok()?;
            let time = time::OffsetDateTime::from_unix_timestamp(seconds).ok()?;
            time.format(&time::format_description::well_known::Rfc3339)
                .ok()
        }),
    };
    let code = if status.starting || admin.shared.drain.is_draining() {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    (code, Json(answer)).into_response()
}

#[derive(Deserialize)]
struct Question {
    url: Option<String>,
    ssh: Option<String>,
    tcp: Option<String>,
    /// As whose request a URL is judged.
    client: Option<IpAddr>,
    /// Which table is asked.
    #[serde(flatten)]
    at: At,
}

async fn explain(
    State(admin): State<Admin>,
    question: Result<Query<Question>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refused> {
    let Query(question) = question.map_err(|error| bad(error.body_text()))?;
    let then = history::table(&admin, &question.at).await?;
    let is_now = then.is_none();
    let table = then.map_or_else(|| admin.shared.table(), Arc::new);
    let client = question.client.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let answer = match (question.url, question.ssh, question.tcp) {
        (Some(url), None, None) => {
            let ports = &admin.shared.config.ports;
            let mut answer = table
                .explain_url(&url, client, |port| ports.contains(port))
                .map_err(|error| bad(format!("url: {error}")))?;
            let rule = answer.rule.as_deref();
            let route = rule.and_then(|rule| rule.strip_prefix("static route "));
            let mut specs = table.static_specs();
            let spec = route.and_then(|label| {
                specs.find(|spec| label.strip_prefix(&*spec.host) == Some(&*spec.path))
            });
            if let Some(spec) = spec.filter(|_| is_now && !answer.targets.is_empty()) {
                answer.targets = table::targets(&admin.shared.fleet, spec);
            }
            answer
        }
        (None, Some(name), None) => table.explain_ssh(&name),
        (None, None, Some(port)) => {
            let port = port
                .parse()
                .map_err(|_| bad(format!("tcp: {port:?} is not a port")))?;
            table.explain_tcp(port)
        }
        _ => return Err(bad("one of url, ssh and tcp is needed".into())),
    };
    Ok(Json(answer).into_response())
}

/// What is waited for: all that is given. What is not known here cannot be waited for, and who
/// asks for it must not take a 200 for it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    revision: Option<u64>,
    /// A container that runs,
    container: Option<String>,
    /// at this address,
    address: Option<IpAddr>,
    /// with rules for these ports, comma-separated,
    ports: Option<String>,
    /// SSH on or off,
    ssh: Option<bool>,
    /// and these SSH keys of its owner, comma-separated.
    keys: Option<String>,
    timeout: Option<String>,
}

#[derive(Serialize)]
struct Revision {
    revision: u64,
}

async fn wait(
    State(mut admin): State<Admin>,
    wait: Result<Query<Wait>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refused> {
    let Query(wait) = wait.map_err(|error| bad(error.body_text()))?;
    let timeout = match &wait.timeout {
        Some(text) => parse_duration(text).map_err(|error| bad(format!("timeout: {error}")))?,
        None => WAIT_DEFAULT,
    };
    if wait.revision.is_none() && wait.container.is_none() {
        return Err(bad("one of revision and container is needed".into()));
    }
    let ports: Vec<u16> = numbers("ports", wait.ports.as_deref())?;
    let keys: Vec<i64> = numbers("keys", wait.keys.as_deref())?;
    let shared = Arc::clone(&admin.shared);
    let routable = || {
        let Some(id) = &wait.container else {
            return true;
        };
        let table = shared.table();
        let Some(container) = table.container(id) else {
            return false;
        };
        let run = container.running.as_ref();
        run.is_some_and(|run| wait.address.is_none_or(|address| run.address == address))
            && ports.iter().all(|port| container.rule(*port).is_some())
            && wait.ssh.is_none_or(|on| container.ssh.is_some() == on)
            && {
                let known = table.keys(container.owner);
                let is_known = |id: &i64| known.iter().any(|key| key.spec.id == *id);
                keys.iter().all(is_known)
            }
    };
    let reached = async {
        loop {
            // The table is in force before its revision is told.
            admin.revision.borrow_and_update();
            let common = *admin.common_revision.borrow_and_update();
            if wait.revision.is_none_or(|wanted| common >= wanted) && routable() {
                return;
            }
            tokio::select! {
                Ok(()) = admin.revision.changed() => {}
                Ok(()) = admin.common_revision.changed() => {}
                // It ends.
                else => std::future::pending().await,
            }
        }
    };
    let code = match tokio::time::timeout(timeout.min(WAIT_MAX), reached).await {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::GATEWAY_TIMEOUT,
    };
    let revision = shared.table().revision;
    Ok((code, Json(Revision { revision })).into_response())
}

/// The numbers of a comma-separated list.
fn numbers<N: FromStr>(what: &str, list: Option<&str>) -> Result<Vec<N>, Refused> {
    let numbers = list.unwrap_or_default().split(',');
    numbers
        .filter(|number| !number.is_empty())
        .map(|number| {
            let number = number.parse();
            number.map_err(|_| bad(format!("{what}: not a list of numbers")))
        })
        .collect()
}

/// An error, in the form of all APIs of the cloud.
struct Refused {
    status: StatusCode,
    code: &'static str,
    message: String,
}

fn bad(message: String) -> Refused {
    Refused {
        status: StatusCode::BAD_REQUEST,
        code: "bad_request",
        message,
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = json!({"error": {"code": self.code, "message": self.message}});
        (self.status, Json(body)).into_response()
    }
}
