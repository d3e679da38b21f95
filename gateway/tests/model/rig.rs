//! The processes of a run: nats-server, PostgreSQL, the gateway; killed by their ids.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, OrderedPullConsumer, pull};
use async_nats::jetstream::message::PublishMessage;
use edd_events::connect::is_connected;
use edd_events::consumer::{ACK_PENDING_MAX, DELIVERIES_MAX};
use edd_events::stream::{AUTH, COMPUTE, GATEWAY, ensure};
use edd_events::testing::NatsServer;
use edd_store::DatabaseUrl;
use edd_store::testing::Postgres;
use futures_util::StreamExt as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::oracle::Stored;
use crate::script::{KIND, Message, PORTS, Route, Victim};

/// How long a run waits for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// What was delivered to a killed gateway comes again after this: the consumers are
/// made here, an existing one is used as it is.
const ACK_WAIT: Duration = Duration::from_secs(4);

/// A publish without an answer for so long is done again.
const ACK_TIMEOUT: Duration = Duration::from_secs(3);

const POLL: Duration = Duration::from_millis(10);

/// Where the gateway keeps its state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Engine {
    Postgres,
    Sqlite,
}

impl Engine {
    /// As the tests are named.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgresql",
            Self::Sqlite => "sqlite",
        }
    }

    pub(crate) fn victims(self) -> &'static [Victim] {
        match self {
            Self::Postgres => &[Victim::Gateway, Victim::Nats, Victim::Postgres],
            Self::Sqlite => &[Victim::Gateway, Victim::Gateway, Victim::Nats],
        }
    }
}

/// Everything that runs for one seed; ended when dropped.
pub(crate) struct Rig {
    pub(crate) nats: NatsServer,
    pub(crate) js: Context,
    pub(crate) database: DatabaseUrl,
    pub(crate) ports: Vec<u16>,
    postgres: Option<Postgres>,
    folder: TempDir,
    admin: SocketAddr,
    gateway: Option<Child>,
}

impl Rig {
    /// Starts NATS and the database, not the gateway.
    pub(crate) async fn start(engine: Engine) -> Self {
        let folder = TempDir::new().expect("a folder");
        let (postgres, database) = match engine {
            Engine::Sqlite => (None, DatabaseUrl::Sqlite(folder.path().join("gateway.db"))),
            Engine::Postgres => {
                let server = Postgres::start().await;
                let url = server.database().await;
                (Some(server), url)
            }
        };
        let nats = NatsServer::start().await;
        let js = nats.jetstream().await;
        for (stream, filter) in [(AUTH, "auth.user.>"), (COMPUTE, "compute.>")] {
            let stream = ensure(&js, &stream, 1).await.expect("a stream");
            let config = pull::Config {
                durable_name: Some("gateway-service".into()),
                filter_subject: filter.into(),
                ack_policy: AckPolicy::Explicit,
                ack_wait: ACK_WAIT,
                max_deliver: i64::try_from(DELIVERIES_MAX).expect("small"),
                max_ack_pending: ACK_PENDING_MAX,
                ..pull::Config::default()
            };
            stream.create_consumer(config).await.expect("a consumer");
        }
        ensure(&js, &GATEWAY, 1).await.expect("a stream");
        std::fs::create_dir(folder.path().join("certs")).expect("a folder");
        let rig = Self {
            nats,
            js,
            database,
            ports: (0..PORTS).map(|_| free_port()).collect(),
            postgres,
            folder,
            admin: ([127, 0, 0, 1], free_port()).into(),
            gateway: None,
        };
        rig.write_routes(&[]);
        rig
    }

    /// Replaces routes.yaml as editors do.
    pub(crate) fn write_routes(&self, routes: &[Route]) {
        let mut text = String::from("routes:\n");
        for (host, path, target) in routes {
            text += &format!("  - {{host: \"{host}\", path: {path}, target: \"{target}\"}}\n");
        }
        if routes.is_empty() {
            text = "routes: []\n".into();
        }
        let file = self.path("routes.yaml");
        std::fs::write(file.with_extension("new"), text).expect("written");
        std::fs::rename(file.with_extension("new"), file).expect("renamed");
    }

    /// Starts the gateway's process, without waiting for it.
    pub(crate) fn start_gateway(&mut self) {
        assert!(self.gateway.is_none(), "the gateway is running already");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"));
        let log = log.expect("a log file");
        let level = std::env::var("EDD_MODEL_LOG").unwrap_or_else(|_| "info".into());
        let ports: Vec<_> = self.ports.iter().map(u16::to_string).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_edd-gateway"));
        command
            .args(["serve", "--platform-domain=localhost", "--workers=1"])
            .args(["http", "https", "ssh"].map(|name| format!("--{name}-addr=127.0.0.1:0")))
            .arg(format!("--admin-addr={}", self.admin))
            .args(["--ports-addr=127.0.0.1", "--container-cidrs=127.64.0.0/16"])
            .arg(format!("--ports={}", ports.join(",")))
            .arg(format!("--nats-url={}", self.nats.url()))
            .arg(format!("--log={level}"))
            .current_dir(self.folder.path())
            .env_clear()
            .env("DATABASE_URL", self.url())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log)
            .kill_on_drop(true);
        self.gateway = Some(command.spawn().expect("it starts"));
    }

    fn url(&self) -> String {
        self.database.to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// SIGKILL, or PostgreSQL's immediate end: whatever was on its way is lost.
    pub(crate) async fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Gateway => self.end_gateway(Signal::KILL).await,
            Victim::Nats => self.nats.stop(),
            Victim::Postgres => {
                let postgres = self.postgres.as_mut().expect("a PostgreSQL");
                tokio::task::block_in_place(|| postgres.stop());
            }
        }
    }

    /// Starts what was killed.
    pub(crate) async fn revive(&mut self, victim: Victim) {
        match victim {
            Victim::Gateway => self.start_gateway(),
            Victim::Nats => self.nats.resume().await,
            Victim::Postgres => {
                self.postgres.as_mut().expect("a PostgreSQL").resume().await;
            }
        }
    }

    pub(crate) async fn end_gateway(&mut self, signal: Signal) {
        let mut child = self.gateway.take().expect("the gateway runs");
        let pid = child.id().unwrap_or_else(|| {
            panic!("the gateway ended by itself:\n{}", self.log());
        });
        let pid = Pid::from_raw(pid.cast_signed()).expect("an id");
        kill_process(pid, signal).expect("sent");
        let ended = timeout(DEADLINE, child.wait()).await;
        ended.expect("an end in time").expect("a status");
    }

    /// JSON of the admin endpoint; none while the gateway does not answer.
    pub(crate) async fn get(&self, target: &str) -> Option<(u16, Value)> {
        let ask = async {
            let mut stream = TcpStream::connect(self.admin).await.ok()?;
            let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            let status = answer.split(' ').nth(1)?.parse().ok()?;
            let (_, body) = answer.split_once("\r\n\r\n")?;
            Some((status, serde_json::from_str(body).ok()?))
        };
        timeout(Duration::from_secs(10), ask).await.ok()?
    }

    /// The revision in force, if the gateway answers.
    pub(crate) async fn revision(&self) -> Option<u64> {
        let (_, ready) = self.get("/readyz").await?;
        ready["revision"].as_u64()
    }

    /// Waits until everything in both streams is acknowledged and the gateway is ready.
    pub(crate) async fn caught_up(&self) {
        let begun = Instant::now();
        loop {
            let seen = format!(
                "{:?} {:?}",
                self.consumers().await,
                self.get("/readyz").await
            );
            let through = self
                .consumers()
                .await
                .is_some_and(|left| left == [(0, 0); 2]);
            let ready = self.get("/readyz").await;
            if through && ready.is_some_and(|(_, ready)| ready["status"] == "ready") {
                return;
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "not caught up: {seen}\n{}",
                self.log()
            );
            sleep(POLL * 5).await;
        }
    }

    /// Not delivered and not acknowledged, of both consumers.
    async fn consumers(&self) -> Option<[(u64, usize); 2]> {
        let mut left = [(0, 0); 2];
        for (left, stream) in left.iter_mut().zip(["AUTH", "COMPUTE"]) {
            let stream = self.js.get_stream(stream).await.ok()?;
            let info = stream.consumer_info("gateway-service").await.ok()?;
            *left = (info.num_pending, info.num_ack_pending);
        }
        Some(left)
    }

    /// Everything in a stream.
    pub(crate) async fn read(&self, name: &'static str) -> Vec<Stored> {
        let mut stream = self.js.get_stream(name).await.expect("the stream");
        let last = stream.info().await.expect("its state").state.last_sequence;
        let mut all = Vec::new();
        if last == 0 {
            return all;
        }
        let config = pull::OrderedConfig::default();
        let consumer: OrderedPullConsumer =
            stream.create_consumer(config).await.expect("a consumer");
        let mut messages = consumer.messages().await.expect("messages");
        while all
            .last()
            .is_none_or(|stored: &Stored| stored.sequence < last)
        {
            let next = timeout(DEADLINE, messages.next())
                .await
                .expect("a message in time");
            let message = next.expect("a message").expect("a good message");
            all.push(Stored {
                stream: name,
                sequence: message.info().expect("a position").stream_sequence,
                subject: message.subject.to_string(),
                payload: message.payload.to_vec(),
                headers: message.headers.clone().unwrap_or_default(),
            });
        }
        all
    }

    /// The end of the gateway's log.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<_> = log
            .lines()
            .filter(|line| !line.contains("\"event\""))
            .collect();
        let lines: Vec<_> = lines
            .into_iter()
            .filter(|line| !line.contains(" event id="))
            .collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

/// Publishes all of it, whatever happens to NATS meanwhile: what has no answer goes again.
pub(crate) async fn publish(js: &Context, messages: &[Message]) {
    let begun = Instant::now();
    let mut rest: Vec<&Message> = messages.iter().collect();
    while !rest.is_empty() {
        assert!(begun.elapsed() < DEADLINE, "cannot publish");
        if !is_connected(&js.client()) {
            sleep(POLL).await;
            continue;
        }
        let mut sent = Vec::new();
        for message in rest {
            let mut headers = HeaderMap::new();
            headers.insert(KIND, message.kind.name());
            let mut publish = PublishMessage::build().payload(message.payload.clone().into());
            publish = publish.headers(headers);
            if let Some(id) = &message.message_id {
                publish = publish.message_id(id);
            }
            let ack = js.send_publish(message.subject.clone(), publish);
            sent.push((message, timeout(ACK_TIMEOUT, ack).await));
        }
        rest = Vec::new();
        let deadline = tokio::time::Instant::now() + ACK_TIMEOUT;
        for (message, ack) in sent {
            let stored = match ack {
                Ok(Ok(ack)) => {
                    let ack = IntoFuture::into_future(ack);
                    tokio::select! {
                        ack = tokio::time::timeout_at(deadline, ack) => matches!(ack, Ok(Ok(_))),
                        () = disconnected(js) => false,
                    }
                }
                _ => false,
            };
            if !stored {
                rest.push(message);
            }
        }
    }
}

async fn disconnected(js: &Context) {
    while is_connected(&js.client()) {
        sleep(POLL).await;
    }
}

/// A port that is free now and that the system gives to nobody who asks for any.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = std::process::id() * 97;
    loop {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(10_000 + (begin + step) % 20_000).expect("a port");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
