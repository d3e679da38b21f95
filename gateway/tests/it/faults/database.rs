//! The database goes away while events come in.

use edd_store::testing::Postgres;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use super::outage;
use super::site::{CIDRS, Origins, Publisher, Traffic};
use crate::support::{Bus, Gateway, Options};

async fn start(bus: &Bus, database: Option<String>) -> (Gateway, Traffic) {
    let origins = Origins::start().await;
    let mut options = Options::routes(origins.routes())
        .bus(bus)
        .flag("--container-cidrs", CIDRS);
    if let Some(url) = database {
        options = options.flag("--database-url", url);
    }
    let gateway = Gateway::start(options).await;
    let publisher = Publisher::start(bus.server.jetstream().await, 1).await;
    let (https, admin) = (gateway.addresses.https, gateway.admin);
    let traffic = Traffic::start(origins, publisher, https, admin).await;
    (gateway, traffic)
}

/// Somebody who holds the file's write lock.
struct Locked(SqliteConnection);

impl Locked {
    async fn hold(gateway: &Gateway) -> Self {
        let mut other = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(gateway.path("gateway.db"))
            .connect()
            .await
            .expect("the same file");
        sqlx::query("BEGIN EXCLUSIVE")
            .execute(&mut other)
            .await
            .expect("its lock");
        Self(other)
    }

    async fn let_go(mut self) {
        sqlx::query("ROLLBACK")
            .execute(&mut self.0)
            .await
            .expect("let go");
        self.0.close().await.expect("closed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_sqlite_away_requests_are_served_and_events_wait() {
    let bus = Bus::start().await;
    let (gateway, mut traffic) = start(&bus, None).await;
    let locked = Locked::hold(&gateway).await;
    traffic.publisher().change_for(outage()).await;
    traffic
        .until_ready("degraded", "database", "unavailable")
        .await;
    locked.let_go().await;
    traffic.end("SQLite away").await;
    gateway.stop().await;
}

/// NATS goes and returns while the database is away: what it delivers again is
/// nobody's fault either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_nats_and_database_away_nothing_becomes_a_dead_letter() {
    let mut bus = Bus::start().await;
    let (gateway, mut traffic) = start(&bus, None).await;
    let locked = Locked::hold(&gateway).await;
    traffic.publisher().change_for(outage() / 3).await;
    for _ in 0..2 {
        bus.server.stop();
        traffic.publisher().change_for(outage() / 3).await;
        bus.server.resume().await;
        traffic.publisher().change_for(outage() / 6).await;
    }
    locked.let_go().await;
    traffic.end("NATS and SQLite away").await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_postgresql_away_requests_are_served_and_events_wait() {
    let bus = Bus::start().await;
    let mut postgres = Postgres::start().await;
    let url = postgres.database().await.to_string();
    let (gateway, mut traffic) = start(&bus, Some(url)).await;
    postgres.stop();
    traffic.publisher().change_for(outage()).await;
    traffic
        .until_ready("degraded", "database", "unavailable")
        .await;
    postgres.resume().await;
    traffic.end("PostgreSQL away").await;
    gateway.stop().await;
}

/// It neither answers nor ends connections; what it was asked, it does later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_postgresql_frozen_requests_are_served_and_events_wait() {
    let bus = Bus::start().await;
    let postgres = Postgres::start().await;
    let url = postgres.database().await.to_string();
    let (gateway, mut traffic) = start(&bus, Some(url)).await;
    for _ in 0..2 {
        postgres.freeze();
        traffic.publisher().change_for(outage()).await;
        traffic
            .until_ready("degraded", "database", "unavailable")
            .await;
        postgres.thaw();
        traffic.publisher().change_for(outage() / 8).await;
    }
    traffic.end("PostgreSQL frozen twice").await;
    gateway.stop().await;
}
