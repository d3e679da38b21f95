//! SQLite: one file, one writer.
//!
//! Rows of a batch go in as one JSON array per table, so that a batch costs the
//! same few statements whatever its size.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edd_daemon::store::{DatabaseUrl, SchemaStep, begin_write, migrate, open};
use edd_events::outbox;
use serde_json::{Value, json};
use sqlx::{SqliteConnection, SqlitePool};

use super::{Commit, GatewayStore, KEPT_MS, StoreError, Stored, route_id, rule_id};
use super::{load, tickets};
use crate::control::reconcile::{Effects, State};
use crate::tls::TicketKey;

/// The schema. Released steps never change.
const SCHEMA: &[SchemaStep] = &[
    (
        1,
        "gateway",
        include_str!("../../../migrations/sqlite/0001_gateway.sql"),
    ),
    (
        2,
        "ticket_keys",
        include_str!("../../../migrations/sqlite/0002_ticket_keys.sql"),
    ),
];

/// Longest wait for one operation; the lock waits of SQLite itself are shorter.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Reading everything may take longer.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// gateway_db in a SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    pool: SqlitePool,
    path: PathBuf,
    /// Which file it is.
    file: FileId,
}

/// Device and number: a path can get another file while the old one is open.
pub type FileId = (u64, u64);

impl SqliteStore {
    /// Opens the file, creates it if absent, brings its schema up to date and
    /// makes sure that it can be written.
    ///
    /// # Errors
    /// The file is unreachable, read-only, no database, or of a newer version.
    pub async fn open(url: &DatabaseUrl) -> Result<Self, StoreError> {
        let pool = open(url).await?;
        let opened = Self::prepare(&pool).await;
        match opened.and_then(|()| file_id(url.path())) {
            Ok(file) => Ok(Self {
                pool,
                path: url.path().to_owned(),
                file,
            }),
            Err(error) => {
                pool.close().await;
                Err(error)
            }
        }
    }

    async fn prepare(pool: &SqlitePool) -> Result<(), StoreError> {
        within(LOAD_TIMEOUT, async { Ok(migrate(pool, SCHEMA).await?) }).await?;
        probe(pool).await
    }

    /// Which file it is.
    pub fn file(&self) -> FileId {
        self.file
    }

    /// The pool, for the outbox's relay.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    async fn write(&self, commit: &Commit<'_>) -> Result<(), StoreError> {
        let mut tx = begin_write(&self.pool).await?;
        let conn = &mut *tx;
        if !commit.event_ids.is_empty() {
            let ids = Value::from(commit.event_ids.clone()).to_string();
            sqlx::query(
                "INSERT INTO inbox (event_id, at) SELECT value, ?2 FROM json_each(?1) WHERE true \
                 ON CONFLICT DO NOTHING",
            )
            .bind(ids)
            .bind(int(commit.now_ms))
            .execute(&mut *conn)
            .await?;
        }
        if let Some((state, effects)) = commit.changes {
            write_containers(conn, state, effects).await?;
            write_rules(conn, state, effects).await?;
            write_keys(conn, state, effects).await?;
            write_users(conn, state, effects).await?;
            write_tombstones(conn, state, effects).await?;
        }
        if let Some(statics) = &commit.statics {
            write_statics(conn, statics).await?;
        }
        for entry in &commit.outbox {
            outbox::insert(conn, entry).await?;
        }
        write_meta(conn, commit).await?;
        tx.commit().await?;
        Ok(())
    }
}

impl GatewayStore for SqliteStore {
    async fn load(&self) -> Result<Stored, StoreError> {
        within(LOAD_TIMEOUT, load::load(&self.pool)).await
    }

    async fn seen(&self, event_ids: &[&str]) -> Result<HashSet<String>, StoreError> {
        let ids = Value::from(event_ids.to_vec()).to_string();
        let seen: Vec<String> = bounded(
            TIMEOUT,
            sqlx::query_scalar(
                "SELECT event_id FROM inbox WHERE event_id IN (SELECT value FROM json_each(?))",
            )
            .bind(ids)
            .fetch_all(&self.pool),
        )
        .await?;
        Ok(seen.into_iter().collect())
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<(), StoreError> {
        within(TIMEOUT, self.write(commit)).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        if file_id(&self.path)? != self.file {
            return Err(StoreError::Gone);
        }
        probe(&self.pool).await
    }

    async fn share_ticket_keys(
        &self,
        offered: &[TicketKey],
        oldest: u64,
    ) -> Result<Vec<TicketKey>, StoreError> {
        within(TIMEOUT, tickets::share(&self.pool, offered, oldest)).await
    }

    async fn prune(&self, now_ms: u64) -> Result<(), StoreError> {
        let before = int(now_ms.saturating_sub(KEPT_MS));
        for delete in [
            "DELETE FROM inbox WHERE at < ?",
            "DELETE FROM tombstones WHERE at < ?",
        ] {
            bounded(
                TIMEOUT,
                sqlx::query(delete).bind(before).execute(&self.pool),
            )
            .await?;
        }
        Ok(())
    }
}

fn file_id(path: &Path) -> Result<FileId, StoreError> {
    let found = std::fs::metadata(path).map_err(|_| StoreError::Gone)?;
    Ok((found.dev(), found.ino()))
}

/// Takes the write lock and changes nothing: fails on a read-only file.
async fn probe(pool: &SqlitePool) -> Result<(), StoreError> {
    within(TIMEOUT, async {
        let mut tx = begin_write(pool).await?;
        sqlx::query("UPDATE meta SET value = value WHERE key = 'revision'")
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM inbox WHERE event_id = ''")
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    })
    .await
}

async fn write_containers(
    conn: &mut SqliteConnection,
    state: &State,
    effects: &Effects,
) -> Result<(), StoreError> {
    let (mut rows, mut gone) = (Vec::new(), Vec::new());
    for id in &effects.containers {
        let Some(c) = state.container(id) else {
            gone.push(id.as_str());
            continue;
        };
        let created = c.created.as_ref();
        let running = c.run.running.as_ref();
        rows.push(json!([
            id.as_str(),
            created.map(|c| c.owner.0),
            created.map(|c| c.name.as_str()),
            created.map(|c| int(c.sequence)),
            created.map(|c| text(&c.origin)),
            c.run.stamp.version,
            int(c.run.stamp.sequence),
            running.map(|r| r.address.to_string()),
            running.and_then(|r| r.ssh_host_key.as_deref()),
            running.map(|r| text(&r.origin)),
            c.ssh.stamp.version,
            int(c.ssh.stamp.sequence),
            i64::from(c.ssh.on),
            c.https.stamp.version,
            int(c.https.stamp.sequence),
            i64::from(c.https.on),
        ]));
    }
    if !rows.is_empty() {
        sqlx::query(
            "INSERT OR REPLACE INTO containers (id, owner_id, name, created_sequence, \
             created_origin, run_version, run_sequence, address, ssh_host_key, run_origin, \
             ssh_version, ssh_sequence, ssh_enabled, https_version, https_sequence, \
             https_enabled) \
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, \
             value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, \
             value ->> 12, value ->> 13, value ->> 14, value ->> 15 FROM json_each(?)",
        )
        .bind(Value::Array(rows).to_string())
        .execute(&mut *conn)
        .await?;
    }
    if !gone.is_empty() {
        sqlx::query("DELETE FROM containers WHERE id IN (SELECT value FROM json_each(?))")
            .bind(Value::from(gone).to_string())
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

async fn write_rules(
    conn: &mut SqliteConnection,
    state: &State,
    effects: &Effects,
) -> Result<(), StoreError> {
    let (mut rows, mut gone) = (Vec::new(), Vec::new());
    for (id, port) in &effects.rules {
        let rule = state.container(id).and_then(|c| c.rules.get(port));
        match rule {
            Some(rule) => rows.push(json!([
                rule_id(id.as_str(), *port),
                id.as_str(),
                port,
                rule.target,
                rule.stamp.version,
                int(rule.stamp.sequence),
                text(&rule.origin),
            ])),
            None => gone.push(json!([id.as_str(), port])),
        }
    }
    if !rows.is_empty() {
        sqlx::query(
            "INSERT OR REPLACE INTO ingress_rules (id, container_id, port, target_port, version, \
             sequence, origin) SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, \
             value ->> 4, value ->> 5, value ->> 6 FROM json_each(?)",
        )
        .bind(Value::Array(rows).to_string())
        .execute(&mut *conn)
        .await?;
    }
    if !gone.is_empty() {
        sqlx::query(
            "DELETE FROM ingress_rules WHERE (container_id, port) IN \
             (SELECT value ->> 0, value ->> 1 FROM json_each(?))",
        )
        .bind(Value::Array(gone).to_string())
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

async fn write_keys(
    conn: &mut SqliteConnection,
    state: &State,
    effects: &Effects,
) -> Result<(), StoreError> {
    for id in &effects.keys {
        let query = match state.key(*id) {
            Some(key) => sqlx::query(
                "INSERT OR REPLACE INTO ssh_keys (id, user_id, fingerprint, version, sequence, \
                 origin) VALUES (?, ?, ?, ?, ?, ?)",
            )
            .bind(id)
            .bind(key.user.0)
            .bind(&key.fingerprint)
            .bind(key.stamp.version)
            .bind(int(key.stamp.sequence))
            .bind(text(&key.origin)),
            None => sqlx::query("DELETE FROM ssh_keys WHERE id = ?").bind(id),
        };
        query.execute(&mut *conn).await?;
    }
    Ok(())
}

async fn write_users(
    conn: &mut SqliteConnection,
    state: &State,
    effects: &Effects,
) -> Result<(), StoreError> {
    for id in &effects.users {
        let query = match state.user(*id) {
            Some(user) => sqlx::query(
                "INSERT OR REPLACE INTO users (id, username, display_name, version, sequence) \
                 VALUES (?, ?, ?, ?, ?)",
            )
            .bind(id.0)
            .bind(&user.username)
            .bind(&user.display_name)
            .bind(user.stamp.version)
            .bind(int(user.stamp.sequence)),
            None => sqlx::query("DELETE FROM users WHERE id = ?").bind(id.0),
        };
        query.execute(&mut *conn).await?;
    }
    Ok(())
}

async fn write_tombstones(
    conn: &mut SqliteConnection,
    state: &State,
    effects: &Effects,
) -> Result<(), StoreError> {
    let containers = effects.containers.iter().filter_map(|id| {
        let at = state.container_died(id)?;
        Some(json!(["container", id.as_str(), int(at)]))
    });
    let keys = effects.keys.iter().filter_map(|id| {
        let at = state.key_died(*id)?;
        Some(json!(["key", id.to_string(), int(at)]))
    });
    let users = effects.users.iter().filter_map(|id| {
        let at = state.user_died(*id)?;
        Some(json!(["user", id.to_string(), int(at)]))
    });
    let rows: Vec<Value> = containers.chain(keys).chain(users).collect();
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO tombstones (kind, id, at) \
         SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE true \
         ON CONFLICT DO NOTHING",
    )
    .bind(Value::Array(rows).to_string())
    .execute(conn)
    .await?;
    Ok(())
}

async fn write_statics(
    conn: &mut SqliteConnection,
    statics: &[edd_route::StaticRouteSpec],
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM static_routes")
        .execute(&mut *conn)
        .await?;
    for spec in statics {
        sqlx::query(
            "INSERT OR REPLACE INTO static_routes (id, host, path_prefix, target, strip_prefix, \
             spec) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(route_id(&spec.host, &spec.path))
        .bind(&spec.host)
        .bind(&spec.path)
        .bind(spec.targets_text())
        .bind(spec.strip_prefix)
        .bind(serde_json::to_string(spec).unwrap_or_default())
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

async fn write_meta(conn: &mut SqliteConnection, commit: &Commit<'_>) -> Result<(), StoreError> {
    for (stream, sequence) in &commit.positions {
        sqlx::query(
            "INSERT INTO meta (key, value) VALUES (?, ?) \
             ON CONFLICT DO UPDATE SET value = max(value, excluded.value)",
        )
        .bind(format!("position:{stream}"))
        .bind(int(*sequence))
        .execute(&mut *conn)
        .await?;
    }
    let mut values = BTreeMap::new();
    if let Some(stream) = commit.restarted {
        values.insert(format!("position:{stream}"), 0);
    }
    if let Some(revision) = commit.revision {
        values.insert("revision".into(), int(revision));
    }
    if commit.birth {
        values.insert("born".into(), 1);
    }
    if let Some(rebuilding) = commit.rebuilding {
        values.insert("rebuilding".into(), i64::from(rebuilding));
    }
    for (key, value) in values {
        sqlx::query("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)")
            .bind(key)
            .bind(value)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

async fn within<T>(
    limit: Duration,
    operation: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, operation)
        .await
        .unwrap_or(Err(StoreError::TimedOut))
}

async fn bounded<T>(
    limit: Duration,
    operation: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    within(limit, async { Ok(operation.await?) }).await
}

/// SQLite's integers are signed.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn text(origin: &edd_route::Origin) -> String {
    serde_json::to_string(origin).unwrap_or_default()
}
