//! The past: the table at a time or revision, and what happened to one name.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use edd_daemon::cli::parse_duration;
use edd_route::RouteTable;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Admin, Refused, bad};
use crate::control::history;
use crate::control::store::{Cause, Entry, GatewayStore as _, Origin, Past, SqlStore};

/// Most entries of one answer.
const ENTRIES_MAX: u16 = 1000;

/// Entries when no number is given.
const ENTRIES_DEFAULT: u16 = 50;

/// Which table is asked for.
#[derive(Deserialize)]
pub(super) struct At {
    at: Option<String>,
}

/// The table at that time; none: the one in force is meant.
pub(super) async fn table(admin: &Admin, at: &At) -> Result<Option<RouteTable>, Refused> {
    let Some(at) = &at.at else { return Ok(None) };
    let past = past(at, SystemTime::now()).map_err(|reason| bad(format!("at: {reason}")))?;
    let then = store(admin)?.at(past).await.map_err(unavailable)?;
    let then = then.ok_or_else(|| Refused {
        status: StatusCode::NOT_FOUND,
        code: "not_found",
        message: format!("nothing is kept of {at} (see --history-days)"),
    })?;
    let settings = (*admin.shared.table().settings).clone();
    Ok(Some(history::table(&then, settings)))
}

#[derive(Deserialize)]
pub(super) struct Question {
    name: String,
    limit: Option<u16>,
}

/// `/api/v1/log`.
#[derive(Serialize)]
pub(super) struct Log {
    name: String,
    /// Oldest first.
    entries: Vec<Change>,
}

#[derive(Serialize)]
struct Change {
    /// RFC 3339.
    at: String,
    /// Of the table in force after it.
    revision: u64,
    change: String,
    origin: Origin,
    /// None: neither an event nor a snapshot's fact.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Cause>,
}

pub(super) async fn log(
    State(admin): State<Admin>,
    question: Result<Query<Question>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Log>, Refused> {
    let Query(Question { name, limit }) = question.map_err(|error| bad(error.body_text()))?;
    let name = name.to_ascii_lowercase();
    // A container may be named by its host as well.
    let suffix = &admin.shared.table().settings.container_suffix;
    let name = name.strip_suffix(&**suffix).unwrap_or(&name);
    let limit = limit.unwrap_or(ENTRIES_DEFAULT).min(ENTRIES_MAX);
    let log = store(&admin)?.log(name, limit).await.map_err(unavailable)?;
    let changes = history::describe(&log);
    let seen = |(_, change): &(Entry, String)| !change.is_empty();
    let entries = log.entries.into_iter().zip(changes).filter(seen);
    Ok(Json(Log {
        name: name.to_owned(),
        entries: entries.map(|(entry, change)| told(entry, change)).collect(),
    }))
}

fn told(entry: Entry, change: String) -> Change {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(entry.at_ms);
    let origin = entry.cause.as_ref().map_or(Origin::Routes, Cause::origin);
    let is_told = matches!(origin, Origin::Event | Origin::Snapshot);
    Change {
        at: OffsetDateTime::from(at)
            .format(&Rfc3339)
            .unwrap_or_default(),
        revision: entry.revision,
        change,
        origin,
        event: entry.cause.filter(|_| is_told),
    }
}

/// A revision, a time, or how long ago.
fn past(text: &str, now: SystemTime) -> Result<Past, String> {
    if let Ok(revision) = text.parse() {
        return Ok(Past::Revision(revision));
    }
    let time = match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(time) => SystemTime::from(time),
        Err(_) => {
            let ago = parse_duration(text).map_err(|_| {
                format!("{text:?} is no revision, no time like 2026-01-31T12:00:00Z and no duration like 10m")
            })?;
            now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
        }
    };
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Ok(Past::Time(
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    ))
}

fn store(admin: &Admin) -> Result<SqlStore, Refused> {
    let store = admin.history.borrow().clone();
    store.ok_or_else(|| unavailable("no database is open"))
}

fn unavailable(error: impl std::fmt::Display) -> Refused {
    Refused {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "unavailable",
        message: format!("the database: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_is_a_revision_a_time_or_a_while_ago() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        for (text, expected) in [
            ("0", Past::Revision(0)),
            ("812", Past::Revision(812)),
            ("1970-01-01T00:00:01.5Z", Past::Time(1500)),
            ("1970-01-01T01:00:00+01:00", Past::Time(0)),
            ("10s", Past::Time(990_000)),
            ("1h", Past::Time(0)),
        ] {
            assert_eq!(past(text, now).unwrap(), expected, "{text}");
        }
        for text in ["", "-1", "yesterday", "12:00"] {
            assert!(
                past(text, now).unwrap_err().contains("no revision"),
                "{text}"
            );
        }
    }
}
