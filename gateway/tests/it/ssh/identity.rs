//! Who the gateway is for clients and containers: the same tomorrow, and at every replica.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use edd_store::testing::Postgres;
use russh::client;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use tokio::net::TcpStream;

use super::fake::{Fake, Vice};
use super::rig::{free_address, within};
use crate::support::{Bus, DEADLINE, Gateway, Options, eventually};

/// Remembers the host key that it is shown.
#[derive(Clone, Default)]
struct Watcher(Arc<Mutex<String>>);

impl client::Handler for Watcher {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let line = shown.public_key().to_openssh().unwrap();
        *self.0.lock().unwrap() = line;
        Ok(true)
    }
}

async fn connect(address: SocketAddr) -> (client::Handle<Watcher>, String) {
    let watcher = Watcher::default();
    let stream = TcpStream::connect(address).await.unwrap();
    let config = Arc::new(client::Config::default());
    let connected = client::connect_stream(config, stream, watcher.clone());
    let handle = within(DEADLINE, "a handshake", connected).await.unwrap();
    let shown = watcher.0.lock().unwrap().clone();
    (handle, shown)
}

/// The host key that clients see.
async fn host_key(gateway: &Gateway) -> String {
    connect(gateway.addresses.ssh).await.1
}

/// Logs in to `c1` and runs something there.
async fn log_in(gateway: &Gateway, key: &PrivateKey) -> bool {
    let (mut handle, _) = connect(gateway.addresses.ssh).await;
    let key = PrivateKeyWithHashAlg::new(Arc::new(key.clone()), None);
    let login = handle.authenticate_publickey("dev.c1", key).await;
    if !login.is_ok_and(|result| result.success()) {
        return false;
    }
    let Ok(channel) = handle.channel_open_session().await else {
        return false;
    };
    channel.exec(true, "x").await.is_ok()
}

fn client_line(gateway: &Gateway) -> String {
    std::fs::read_to_string(gateway.path("state/ssh_client_ed25519.pub")).unwrap()
}

fn on(url: &str) -> Options {
    Options::default().flag("--database-url", url.to_owned())
}

/// S9: the host key was new at every start, and another one in each process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_key_is_the_same_after_a_restart() {
    let gateway = Gateway::start(Options::default()).await;
    let (before, line) = (host_key(&gateway).await, client_line(&gateway));
    let folder = Some(gateway.folder.clone());
    gateway.stop().await;
    let gateway = Gateway::start(Options {
        folder,
        ..Options::default()
    })
    .await;
    assert_eq!(host_key(&gateway).await, before);
    assert_eq!(client_line(&gateway), line);
    gateway.stop().await;
}

/// S9, of replicas, and R2: a login asked the database for the keys, each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_one_gateway_and_log_ins_need_no_database() {
    let mut postgres = Postgres::start().await;
    let url = postgres.database().await.to_string();
    let bus = Bus::start().await;
    let start = || Gateway::start(on(&url).bus(&bus));
    // At once, with an empty database: one of three keys wins.
    let (one, two, three) = tokio::join!(start(), start(), start());
    let shown = host_key(&one).await;
    for other in [&two, &three] {
        assert_eq!(host_key(other).await, shown);
        assert_eq!(client_line(other), client_line(&one));
    }
    let mut fake = Fake::start(SocketAddr::new(free_address(), 2022), Vice::None).await;
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    let fingerprint = key.public_key().fingerprint(HashAlg::Sha256).to_string();
    bus.created("c1", 1).await;
    bus.started("c1", &fake.address.to_string(), Some(&fake.host_key))
        .await;
    bus.ssh("c1", true).await;
    bus.key(5, 1, &fingerprint).await;
    for gateway in [&one, &two, &three] {
        gateway
            .until("the login is allowed", |table| {
                table.decide_ssh("dev.c1", &fingerprint).is_ok()
            })
            .await;
    }
    assert!(log_in(&one, &key).await);
    assert_eq!(fake.seen.recv().await.unwrap(), "login dev");

    // It neither answers nor refuses.
    postgres.freeze();
    let begun = Instant::now();
    assert!(log_in(&one, &key).await && log_in(&two, &key).await);
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    postgres.thaw();
    // The table in force is in the state directory before it is needed.
    let folder = two.folder.clone();
    two.stop().await;
    postgres.stop();
    let begun = Instant::now();
    let two = Gateway::start(Options {
        folder: Some(folder),
        ..on(&url).bus(&bus)
    })
    .await;
    assert_eq!(host_key(&two).await, shown, "from the copy");
    assert!(log_in(&two, &key).await && log_in(&one, &key).await);
    assert!(begun.elapsed() < DEADLINE);
    for gateway in [one, two, three] {
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_takes_over_the_keys_of_the_database_that_it_joins() {
    let url = Postgres::shared().await.database().await.to_string();
    let alone = on(&url).flag("--ssh-keys", "state-dir");
    let joining = Gateway::start(alone).await;
    let own = host_key(&joining).await;
    let folder = joining.folder.clone();
    joining.stop().await;

    let first = Gateway::start(on(&url)).await;
    let shared = host_key(&first).await;
    assert_ne!(
        shared, own,
        "with state-dir, nothing was put into the database"
    );
    let joining = Gateway::start(Options {
        folder: Some(folder),
        ..on(&url)
    })
    .await;
    assert_eq!(host_key(&joining).await, shared, "waits for the database");
    assert_eq!(client_line(&joining), client_line(&first));
    let kept = joining.path("state/ssh_host_ed25519.replaced");
    let kept = PrivateKey::read_openssh_file(&kept).unwrap();
    assert_eq!(kept.public_key().to_openssh().unwrap(), own);
    first.stop().await;
    joining.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_keys_serve_when_the_database_never_answers() {
    let mut postgres = Postgres::start().await;
    let url = postgres.database().await.to_string();
    let alone = Gateway::start(on(&url).flag("--ssh-keys", "state-dir")).await;
    let own = host_key(&alone).await;
    let folder = alone.folder.clone();
    alone.stop().await;
    postgres.stop();
    let gateway = Gateway::start(Options {
        folder: Some(folder),
        ..on(&url)
    })
    .await;
    assert_eq!(host_key(&gateway).await, own);
    // The database comes and has none: it is given these.
    postgres.resume().await;
    let copied = gateway.path("state/ssh_keys.of-database");
    eventually("they are the database's", || async { copied.exists() }).await;
    let other = Gateway::start(on(&url)).await;
    assert_eq!(host_key(&other).await, own);
    gateway.stop().await;
    other.stop().await;
}
