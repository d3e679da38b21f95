//! A started service, and a client for it.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser as _;
use edd_auth::{
    app::{App, Running},
    config::{Arguments, Config},
};
use serde_json::{Value, json};
use sqlx::{SqlitePool, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Far beyond anything that should take place here.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const PASSWORD: &str = "correct horse battery";

/// A service in this process, with a database of its own.
pub(crate) struct Service {
    pub(crate) client: Client,
    pub(crate) admin: Client,
    pub(crate) folder: TempDir,
    running: Running,
    shutdown: CancellationToken,
}

/// Talks to one address.
#[derive(Clone, Copy)]
pub(crate) struct Client(pub(crate) SocketAddr);

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) text: String,
    /// `Null` when the body is no JSON.
    pub(crate) body: Value,
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
        let url = format!("sqlite://{}", database(&folder).display());
        let common = [
            "edd-auth",
            "--addr=127.0.0.1:0",
            "--admin-addr=127.0.0.1:0",
            "--database-url",
            &url,
        ];
        let arguments = Arguments::try_parse_from(common.iter().chain(flags)).unwrap();
        let mut config = Config::check(arguments).unwrap();
        change(&mut config);
        let shutdown = CancellationToken::new();
        let running = App::start(config, shutdown.clone()).await.unwrap();
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
    pub(crate) async fn database(&self) -> SqlitePool {
        let options = SqliteConnectOptions::new().filename(database(&self.folder));
        SqlitePool::connect_with(options).await.unwrap()
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

pub(crate) fn database(folder: &TempDir) -> PathBuf {
    folder.path().join("auth.db")
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

impl Client {
    pub(crate) async fn get(self, path: &str, token: Option<&str>) -> Answer {
        self.call("GET", path, &bearer(token), "").await
    }

    pub(crate) async fn delete(self, path: &str, token: Option<&str>) -> Answer {
        self.call("DELETE", path, &bearer(token), "").await
    }

    pub(crate) async fn post(self, path: &str, token: Option<&str>, body: &Value) -> Answer {
        self.json("POST", path, token, &body.to_string()).await
    }

    pub(crate) async fn put(self, path: &str, token: Option<&str>, body: &Value) -> Answer {
        self.json("PUT", path, token, &body.to_string()).await
    }

    pub(crate) async fn log_in(self, username: &str, password: &str) -> Answer {
        let body = json!({ "username": username, "password": password });
        self.post("/api/login", None, &body).await
    }

    /// Whether the token opens a session.
    pub(crate) async fn is_valid(self, token: &str) -> bool {
        let answer = self.get("/api/session", Some(token)).await;
        match answer.status {
            200 => true,
            401 => false,
            _ => panic!("{answer:?}"),
        }
    }

    /// A body that need not be JSON at all, said to be JSON.
    pub(crate) async fn json(
        self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> Answer {
        let headers = format!("Content-Type: application/json\r\n{}", bearer(token));
        self.call(method, path, &headers, body).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn call(self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: auth\r\nConnection: close\r\n{headers}\
             Content-Length: {}\r\n\r\n{body}",
            body.len(),
        );
        let answer = timeout(DEADLINE, async {
            let mut stream = TcpStream::connect(self.0).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        })
        .await
        .expect("an answer in time");
        let (head, text) = answer.split_once("\r\n\r\n").expect("a whole head");
        Answer {
            status: head[9..12].parse().unwrap(),
            head: head.to_owned(),
            text: text.to_owned(),
            body: serde_json::from_str(text).unwrap_or(Value::Null),
        }
    }
}

fn bearer(token: Option<&str>) -> String {
    token
        .map(|token| format!("Authorization: Bearer {token}\r\n"))
        .unwrap_or_default()
}

impl Answer {
    /// Checks the error form of contract.md section 8.
    #[track_caller]
    pub(crate) fn assert_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.body["error"]["code"], code, "{self:?}");
        assert!(self.body["error"]["message"].is_string(), "{self:?}");
        let id = self.body["request_id"].as_str().expect("a request id");
        assert!(
            self.head.contains(&format!("x-request-id: {id}")),
            "{self:?}"
        );
    }
}
