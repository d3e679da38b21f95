//! A broker, a database and a gateway for one measurement; gone with it.

use std::collections::VecDeque;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use edd_events::testing::NatsServer;
use edd_store::testing::Postgres;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::client::Client;
use crate::publisher::Publisher;

/// Nothing takes longer.
const LIMIT: Duration = Duration::from_secs(300);

/// Events on their way while filling, so that no queue of the client's overflows.
const FILL_WINDOW: usize = 256;

/// How often readiness is asked for.
const POLL: Duration = Duration::from_millis(5);

/// Where the gateway keeps its state.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Engine {
    Sqlite,
    Postgresql,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sqlite => "SQLite",
            Self::Postgresql => "PostgreSQL",
        })
    }
}

/// Dropped, everything ends at once.
pub(crate) struct Site {
    pub(crate) publisher: Publisher,
    gateway: PathBuf,
    process: Option<Child>,
    database_url: String,
    https: u16,
    admin: u16,
    /// Where the gateway's SSH listens.
    pub(crate) ssh: u16,
    /// Further flags for the gateway.
    pub(crate) flags: Vec<String>,
    nats: Arc<NatsServer>,
    /// Lives as long as the gateways on it.
    postgres: Option<Arc<Postgres>>,
    folder: TempDir,
}

impl Site {
    /// Starts broker and database, both empty.
    pub(crate) async fn prepare(
        gateway: PathBuf,
        engine: Engine,
        guest: SocketAddr,
    ) -> Result<Self> {
        let folder = folder()?;
        let (postgres, database_url) = match engine {
            Engine::Sqlite => {
                // Not beside routes.yaml, whose folder is watched.
                let file = folder.path().join("data/gateway.db");
                (None, format!("sqlite://{}", file.display()))
            }
            Engine::Postgresql => {
                let server = Postgres::start().await;
                let url = server.database().await.to_string();
                (Some(Arc::new(server)), url)
            }
        };
        let nats = Arc::new(NatsServer::start().await);
        Self::of(gateway, guest, folder, database_url, nats, postgres).await
    }

    /// Another gateway on the same broker and database, not started yet.
    pub(crate) async fn replica(&self, guest: SocketAddr) -> Result<Self> {
        Self::of(
            self.gateway.clone(),
            guest,
            folder()?,
            self.database_url.clone(),
            Arc::clone(&self.nats),
            self.postgres.clone(),
        )
        .await
    }

    async fn of(
        gateway: PathBuf,
        guest: SocketAddr,
        folder: TempDir,
        database_url: String,
        nats: Arc<NatsServer>,
        postgres: Option<Arc<Postgres>>,
    ) -> Result<Self> {
        Ok(Self {
            publisher: Publisher::connect(&nats.url(), guest).await?,
            gateway,
            process: None,
            database_url,
            https: free_port()?,
            admin: free_port()?,
            ssh: free_port()?,
            flags: Vec::new(),
            nats,
            postgres,
            folder,
        })
    }

    /// Publishes containers that run, three events each.
    pub(crate) async fn fill(&self, containers: u32) -> Result<()> {
        let mut under_way = VecDeque::new();
        for container in 0..containers {
            let id = format!("filled-{container}");
            under_way.extend(self.publisher.create(&id, &[443], 1).await?);
            while under_way.len() > FILL_WINDOW {
                if let Some(ack) = under_way.pop_front() {
                    ack.await.context("the stream did not take an event")?;
                }
            }
        }
        for ack in under_way {
            ack.await.context("the stream did not take an event")?;
        }
        Ok(())
    }

    /// Starts the gateway, without waiting for it.
    pub(crate) fn start(&mut self) -> Result<()> {
        let log = std::fs::File::create(self.folder.path().join("log"))?;
        let loopback = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = Command::new(&self.gateway);
        command
            .args([
                "serve",
                "--platform-domain=localhost",
                "--ports-addr=127.0.0.1",
            ])
            .arg("--http-addr=127.0.0.1:0")
            .arg(format!("--ssh-addr={}", loopback(self.ssh)))
            .arg(format!("--https-addr={}", loopback(self.https)))
            .arg(format!("--admin-addr={}", loopback(self.admin)))
            .arg(format!("--ports={}", free_port()?))
            .arg("--container-cidrs=127.64.0.0/16")
            .arg(format!("--nats-url={}", self.nats.url()))
            .args(&self.flags)
            .current_dir(self.folder.path())
            .env_clear()
            .env("DATABASE_URL", &self.database_url)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        self.process = Some(command.spawn().context("cannot start the gateway")?);
        Ok(())
    }

    /// Waits until it says that everything published is in force.
    pub(crate) async fn until_ready(&mut self) -> Result<()> {
        let began = Instant::now();
        while !self.ready().await.unwrap_or(false) {
            let process = self.process.as_mut().context("no gateway")?;
            if let Some(status) = process.try_wait()? {
                bail!("the gateway ended with {status}");
            }
            ensure!(began.elapsed() < LIMIT, "not ready after {LIMIT:?}");
            sleep(POLL).await;
        }
        Ok(())
    }

    async fn ready(&self) -> Result<bool> {
        let answer = self.ask_admin("/readyz").await?;
        Ok(answer.contains("\"status\":\"ready\""))
    }

    /// What its admin listener answers, head and all.
    pub(crate) async fn ask_admin(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// The first and the last container answer.
    pub(crate) async fn expect_served(&self, containers: u32) -> Result<()> {
        let mut client = self.client()?;
        for container in [0, containers - 1] {
            let host = host(&format!("filled-{container}"));
            let answer = client.get(&host, "/").await?;
            ensure!(
                answer.status == 200 && answer.body == host,
                "{host} is not served"
            );
        }
        Ok(())
    }

    /// The folder of everything here; the gateway's working directory.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The gateway's process, when it runs.
    pub(crate) fn process_id(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }

    /// A client of its containers.
    pub(crate) fn client(&self) -> Result<Client> {
        let ca = self.folder.path().join("data/dev-certs/dev-ca.crt");
        Client::new(&format!("127.0.0.1:{}", self.https), &host("x"), &ca)
    }

    /// An empty database in the place of the old one, while no gateway runs. The
    /// streams and their consumers stay.
    pub(crate) async fn lose_database(&mut self) -> Result<()> {
        if let Some(server) = &self.postgres {
            self.database_url = server.database().await.to_string();
            return Ok(());
        }
        for name in [
            "data/gateway.db",
            "data/gateway.db-wal",
            "data/gateway.db-shm",
        ] {
            let file = self.folder.path().join(name);
            if file.exists() {
                std::fs::remove_file(file)?;
            }
        }
        Ok(())
    }

    /// Ends the gateway as an operator would, and everything else.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.end().await
    }

    /// Ends the gateway as an operator would.
    pub(crate) async fn end(&mut self) -> Result<()> {
        let mut process = self.process.take().context("no gateway")?;
        let pid = process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        kill_process(pid.context("the gateway has ended")?, Signal::TERM)?;
        timeout(LIMIT, process.wait())
            .await
            .context("it does not end")??;
        Ok(())
    }
}

/// What a container is asked by.
pub(crate) fn host(id: &str) -> String {
    format!("{id}.compute.localhost")
}

/// What a gateway needs to start.
fn folder() -> Result<TempDir> {
    let folder = TempDir::with_prefix("edd-bench-")?;
    std::fs::create_dir(folder.path().join("certs"))?;
    std::fs::write(folder.path().join("routes.yaml"), "routes: []\n")?;
    Ok(folder)
}

/// A port that is free now.
pub(crate) fn free_port() -> Result<u16> {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(socket.local_addr()?.port())
}
