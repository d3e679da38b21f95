//! A started service, and a client for it.

use clap::Parser as _;
use edd_auth::{
    app::{App, Running},
    config::{Arguments, Config},
};
use edd_events::bus::{AnyBus, MemoryBus};
pub(crate) use edd_service::testing::{Answer, Client, DEADLINE};
use edd_store::{Database, DatabaseUrl, testing::database_of};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub(crate) const PASSWORD: &str = "correct horse battery";

/// A service in this process, with a database of its own.
pub(crate) struct Service {
    pub(crate) client: Client,
    pub(crate) admin: Client,
    pub(crate) folder: TempDir,
    running: Running,
    shutdown: CancellationToken,
}

/// Somebody who registered.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) id: i64,
    pub(crate) username: String,
    pub(crate) token: String,
    pub(crate) session_id: String,
    pub(crate) public_id: String,
}

impl Service {
    /// Without NATS.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more flags.
    pub(crate) async fn start_with(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, flags, |_| ()).await
    }

    /// On an existing folder, with changes to the checked configuration.
    pub(crate) async fn start_in(
        folder: TempDir,
        flags: &[&str],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let database_url = format!("--database-url={}", database(&folder).await);
        let common = [
            "edd-auth",
            "--addr=127.0.0.1:0",
            "--admin-addr=127.0.0.1:0",
            &database_url,
        ];
        let arguments = Arguments::try_parse_from(common.iter().chain(flags)).unwrap();
        let mut config = Config::check(arguments).unwrap();
        change(&mut config);
        let bus = edd_service::bus::connect(config.event_bus, config.nats.as_ref());
        Self::run(bus.await.unwrap(), folder, config).await
    }

    /// On a bus of this process.
    pub(crate) async fn start_on(bus: MemoryBus, folder: TempDir, flags: &[&str]) -> Self {
        let database_url = format!("--database-url={}", database(&folder).await);
        let common = [
            "edd-auth",
            "--addr=127.0.0.1:0",
            "--admin-addr=127.0.0.1:0",
            &database_url,
        ];
        let arguments = Arguments::try_parse_from(common.iter().chain(flags)).unwrap();
        let config = Config::check(arguments).unwrap();
        Self::run(Some(bus.into()), folder, config).await
    }

    async fn run(bus: Option<AnyBus>, folder: TempDir, config: Config) -> Self {
        let shutdown = CancellationToken::new();
        let running = App::start_on(bus, config, shutdown.clone()).await.unwrap();
        let (client, admin) = (Client(running.addr), Client(running.admin_addr));
        Self {
            client,
            admin,
            folder,
            running,
            shutdown,
        }
    }

    /// Drains the service and hands over its folder.
    pub(crate) async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        timeout(DEADLINE, self.running.drained())
            .await
            .expect("a drain in time");
        self.folder
    }

    /// A second connection to the service's database.
    pub(crate) async fn database(&self) -> Database {
        Database::open(&database(&self.folder).await).await.unwrap()
    }

    /// Registers a user.
    pub(crate) async fn register(&self, username: &str) -> Account {
        let body = json!({ "username": username, "password": PASSWORD });
        let answer = self.client.post("/api/register", None, &body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        Account::from(&answer)
    }

    /// Logs a user in, returns the token.
    pub(crate) async fn log_in(&self, username: &str) -> Account {
        let answer = self.client.log_in(username, PASSWORD).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        Account::from(&answer)
    }
}

pub(crate) async fn database(folder: &TempDir) -> DatabaseUrl {
    database_of(folder.path()).await
}

impl From<&Answer> for Account {
    fn from(Answer { body, .. }: &Answer) -> Self {
        let text = |field: &str| body[field].as_str().unwrap().to_owned();
        Self {
            id: body["user_id"].as_i64().unwrap(),
            username: text("username"),
            token: text("token"),
            session_id: text("session_id"),
            public_id: text("public_id"),
        }
    }
}

/// What tests ask auth for.
pub(crate) trait AuthClient {
    async fn log_in(self, username: &str, password: &str) -> Answer;

    /// Whether the token opens a session.
    async fn is_valid(&self, token: &str) -> bool;
}

impl AuthClient for Client {
    async fn log_in(self, username: &str, password: &str) -> Answer {
        let body = json!({ "username": username, "password": password });
        self.post("/api/login", None, &body).await
    }

    async fn is_valid(&self, token: &str) -> bool {
        let answer = self.get("/api/session", Some(token)).await;
        match answer.status {
            200 => true,
            401 => false,
            _ => panic!("{answer:?}"),
        }
    }
}
