//! Clients that come back by ticket: over a restart, to another replica, and not for ever.

use std::sync::Arc;

use rustls::HandshakeKind::{self, Full, FullWithHelloRetryRequest, Resumed};
use rustls::version::{TLS12, TLS13};
use tempfile::TempDir;

use crate::support::tls::Client;
use crate::support::{Gateway, Options, eventually};

const HOST: &str = "localhost";

async fn kind(gateway: &Gateway, client: &Client) -> HandshakeKind {
    let (kind, answer) = client.visit(gateway.addresses.https, HOST).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert_ne!(kind, FullWithHelloRetryRequest);
    kind
}

fn over(folder: &Arc<TempDir>, database: &str) -> Options {
    let options = Options {
        folder: Some(Arc::clone(folder)),
        ..Options::default()
    };
    options.flag("--database-url", format!("sqlite://{database}"))
}

#[tokio::test]
async fn both_versions_resume_and_it_is_counted() {
    let gateway = Gateway::start(Options::default()).await;
    for version in [&TLS12, &TLS13] {
        let client = Client::with(None, &[version], &[]);
        assert_eq!(kind(&gateway, &client).await, Full);
        for _ in 0..3 {
            assert_eq!(kind(&gateway, &client).await, Resumed);
        }
    }
    let metrics = gateway.metrics().await;
    assert!(
        metrics.contains("edd_gateway_tls_resumptions_total 6\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn without_a_database_tickets_are_the_processs_own() {
    let folder = Arc::new(TempDir::new().unwrap());
    // No SQLite file can be made below a file.
    let gateway = Gateway::start(over(&folder, "/dev/null/gateway.db")).await;
    let client = Client::new(None);
    assert_eq!(kind(&gateway, &client).await, Full);
    assert_eq!(kind(&gateway, &client).await, Resumed);
}

#[tokio::test]
async fn a_ticket_of_before_a_restart_resumes_after_it() {
    let folder = Arc::new(TempDir::new().unwrap());
    let database = folder.path().join("gateway.db").display().to_string();
    let gateway = Gateway::start(over(&folder, &database)).await;
    let client = Client::new(None);
    // Keys are offered to the database as soon as it is open.
    gateway.keys_shared(&database).await;
    assert_eq!(kind(&gateway, &client).await, Full);
    gateway.stop().await;

    let gateway = Gateway::start(over(&folder, &database)).await;
    gateway.keys_shared(&database).await;
    assert_eq!(kind(&gateway, &client).await, Resumed);
    // A rotated-out key: a full handshake, and a ticket of the new one.
    let tickets = gateway.shared.certs.tickets();
    let slot = edd_gateway::tls::TicketKeys::slot_now();
    tickets.turn(slot + 2);
    assert_eq!(kind(&gateway, &client).await, Full);
    tickets.turn(slot);
    assert_eq!(kind(&gateway, &client).await, Full);
    assert_eq!(kind(&gateway, &client).await, Resumed);
}

#[tokio::test]
async fn a_ticket_of_one_replica_resumes_at_the_other() {
    let database = TempDir::new().unwrap();
    let path = database.path().join("gateway.db").display().to_string();
    let folders = [(); 2].map(|()| Arc::new(TempDir::new().unwrap()));
    let one = Gateway::start(over(&folders[0], &path)).await;
    let two = Gateway::start(over(&folders[1], &path)).await;
    eventually("the replicas have the same keys", || async {
        let client = Client::new(None);
        let visits = [
            kind(&one, &client).await,
            kind(&two, &client).await,
            kind(&one, &client).await,
        ];
        visits == [Full, Resumed, Resumed]
    })
    .await;
}

impl Gateway {
    /// Waits until the keys in its database are those that it seals with.
    async fn keys_shared(&self, database: &str) {
        let url = format!("sqlite://{database}").parse().unwrap();
        let tickets = self.shared.certs.tickets();
        eventually("the ticket keys are in the database", || async {
            let Ok(pool) = edd_daemon::store::open(&url).await else {
                return false;
            };
            let kept = sqlx::query_scalar("SELECT name FROM ticket_keys ORDER BY slot")
                .fetch_all(&pool)
                .await;
            pool.close().await;
            let kept: Vec<Vec<u8>> = kept.unwrap_or_default();
            let slot = edd_gateway::tls::TicketKeys::slot_now();
            let used = tickets.offer(slot);
            let used: Vec<_> = used.iter().map(|key| key.name.to_vec()).collect();
            kept == used
        })
        .await;
    }

    async fn metrics(&self) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut admin = crate::support::client::dial(self.admin).await;
        let ask = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        admin.write_all(ask.as_bytes()).await.unwrap();
        let mut text = String::new();
        admin.read_to_string(&mut text).await.unwrap();
        text
    }
}
