//! Clients that come back by ticket: over a restart, to another replica, and not for ever.

use std::process::Stdio;
use std::sync::Arc;

use rustls::HandshakeKind::{self, Full, FullWithHelloRetryRequest, Resumed};
use rustls::version::{TLS12, TLS13};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::tls::Client;
use crate::support::{DEADLINE, Gateway, Options, eventually, program};

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

/// `openssl s_client` with these arguments; what it prints.
async fn openssl(gateway: &Gateway, args: &[&str], input: &str) -> String {
    let mut child = Command::new(program("openssl", "EDD_OPENSSL"))
        .args(["s_client", "-servername", HOST, "-connect"])
        .arg(gateway.addresses.https.to_string())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = timeout(DEADLINE, child.wait_with_output()).await;
    String::from_utf8_lossy(&output.expect("an end").unwrap().stdout).into_owned()
}

/// Not rustls at the other end: OpenSSL takes our tickets and brings them back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_resumes_with_both_versions() {
    let gateway = Gateway::start(Options::default()).await;
    let session = gateway.path("session.pem").display().to_string();
    let ask = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    for (flag, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let first = openssl(&gateway, &[flag, "-ign_eof", "-sess_out", &session], &ask).await;
        assert!(first.contains(&format!("\nNew, {version}, ")), "{first}");
        assert!(first.contains("HTTP/1.1 404 "), "{first}");
        let again = openssl(&gateway, &[flag, "-ign_eof", "-sess_in", &session], &ask).await;
        assert!(again.contains(&format!("\nReused, {version}, ")), "{again}");
        assert!(again.contains("HTTP/1.1 404 "), "{again}");
    }
    // One connection and five more, as its manual says.
    let six = openssl(&gateway, &["-tls1_2", "-reconnect"], "").await;
    let count = |text: &str| six.matches(text).count();
    assert_eq!(
        (count("\nNew, TLSv1.2, "), count("\nReused, TLSv1.2, ")),
        (1, 5),
        "{six}"
    );
    gateway.stop().await;
}

impl Gateway {
    /// Waits until the keys in its database are those that it seals with.
    async fn keys_shared(&self, database: &str) {
        let url = format!("sqlite://{database}").parse().unwrap();
        let tickets = self.shared.certs.tickets();
        eventually("the ticket keys are in the database", || async {
            let Ok(database) = edd_store::Database::open(&url).await else {
                return false;
            };
            let kept = edd_store::query("SELECT name FROM ticket_keys ORDER BY slot")
                .values(&database)
                .await;
            database.close().await;
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
