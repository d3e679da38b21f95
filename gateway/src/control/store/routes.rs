//! The static routes as last stored, and what changed in them since: the stored
//! rows are what was announced, so the same file never is announced twice,
//! whoever reads it.

use std::collections::BTreeMap;

use edd_events::envelope::{Cause, seal};
use edd_events::outbox::{self, OutboxEntry};
use edd_events::subject::EntityId;
use edd_proto::gateway;
use edd_route::StaticRouteSpec;
use edd_store::{Rows, Transaction, query};
use serde_json::json;

use super::{Line, StoreError, route_id};
use crate::control::writer::announce::SOURCE;

/// What others are told of a route.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Told {
    target: String,
    strip_prefix: bool,
}

type Routes = BTreeMap<(String, String), Told>;

/// Replaces all of them and writes an event for each that appeared, vanished or
/// leads elsewhere. `revision` orders the events: that of the table. Returns what
/// differs in any way, for the journal.
pub(super) async fn replace(
    tx: &mut Transaction,
    routes: &[StaticRouteSpec],
    revision: i64,
) -> Result<Vec<Line>, StoreError> {
    let rows: Vec<(String, String, String, bool, String)> =
        query("SELECT host, path_prefix, target, strip_prefix, spec FROM static_routes")
            .all(&mut *tx)
            .await?;
    let lines = differences(&rows, routes);
    if lines.is_empty() {
        return Ok(lines);
    }
    let before: Routes = rows
        .into_iter()
        .map(|(host, path, target, strip_prefix, _)| {
            let told = Told {
                target,
                strip_prefix,
            };
            ((host, path), told)
        })
        .collect();
    let after: Routes = routes
        .iter()
        .map(|spec| {
            let told = Told {
                target: spec.targets_text(),
                strip_prefix: spec.strip_prefix,
            };
            ((spec.host.clone(), spec.path.clone()), told)
        })
        .collect();
    store(tx, routes).await?;
    outbox::insert_all(tx, &changes(&before, &after, revision)).await?;
    Ok(lines)
}

fn differences(
    stored: &[(String, String, String, bool, String)],
    routes: &[StaticRouteSpec],
) -> Vec<Line> {
    let stored = stored.iter();
    let stored = stored.map(|(host, path, .., spec)| ((host.as_str(), path.as_str()), &**spec));
    let mut before: BTreeMap<(&str, &str), &str> = stored.collect();
    let mut lines = Vec::new();
    for route in routes {
        let spec = serde_json::to_string(route).unwrap_or_default();
        let (host, path) = (route.host.as_str(), route.path.as_str());
        if before.remove(&(host, path)) != Some(spec.as_str()) {
            lines.push(Line::of_route(host, path, Some(&spec)));
        }
    }
    let gone = before.keys();
    lines.extend(gone.map(|(host, path)| Line::of_route(host, path, None)));
    lines
}

async fn store(tx: &mut Transaction, routes: &[StaticRouteSpec]) -> Result<(), StoreError> {
    query("DELETE FROM static_routes").run(&mut *tx).await?;
    let rows: Rows = routes
        .iter()
        .map(|spec| {
            json!([
                route_id(&spec.host, &spec.path),
                spec.host,
                spec.path,
                spec.targets_text(),
                spec.strip_prefix,
                serde_json::to_string(spec).unwrap_or_default(),
            ])
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    let sql = "INSERT INTO static_routes (id, host, path_prefix, target, strip_prefix, spec) \
               SELECT CAST(value ->> 0 AS BIGINT), value ->> 1, value ->> 2, value ->> 3, \
               CAST(value ->> 4 AS BOOLEAN), value ->> 5 FROM {rows} WHERE true \
               ON CONFLICT (id) DO NOTHING";
    rows.query(tx.engine(), sql).run(tx).await?;
    Ok(())
}

/// First what vanished, then what appeared or leads elsewhere.
fn changes(before: &Routes, after: &Routes, revision: i64) -> Vec<OutboxEntry> {
    let cause = Cause::default();
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let gone = gone.map(|(host, path)| {
        let route_id = route_id(host, path);
        let message = gateway::RouteUnregistered {
            metadata: None,
            route_id,
            host: host.clone(),
            path_prefix: path.clone(),
        };
        seal(SOURCE, &EntityId::from(route_id), revision, message, &cause)
    });
    let new = after
        .iter()
        .filter(|(key, told)| before.get(*key) != Some(told));
    let new = new.map(|((host, path), told)| {
        let route_id = route_id(host, path);
        let message = gateway::RouteRegistered {
            metadata: None,
            route_id,
            host: host.clone(),
            path_prefix: path.clone(),
            target: told.target.clone(),
            strip_prefix: told.strip_prefix,
        };
        seal(SOURCE, &EntityId::from(route_id), revision, message, &cause)
    });
    gone.chain(new).collect()
}
