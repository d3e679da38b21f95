//! A started service, clients for it, and what stands for auth and gateway.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use async_nats::jetstream::{self, consumer::pull};
use clap::Parser as _;
use edd_compute::{
    app::{App, Running},
    config::{Arguments, Config},
};
use edd_events::{
    envelope::{Cause, EventMessage, seal},
    stream,
    subject::EntityId,
    testing::NatsServer,
};
use edd_proto::auth::{ValidateTokenRequest, ValidateTokenResponse};
pub(crate) use edd_service::testing::{Client, DEADLINE};
use edd_store::{Database, query, testing::database_of};
use futures_util::StreamExt as _;
use prost::Message;
use russh::keys::ssh_key::{Algorithm, LineEnding, PrivateKey};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{process::Command, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// Tokens of the first users.
pub(crate) const ALICE: Option<&str> = Some("user-1");
pub(crate) const BOB: Option<&str> = Some("user-2");

/// Polls until there is a value.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, polling)
        .await
        .unwrap_or_else(|_| panic!("never seen: {what}"))
}

/// A service in this process, with folders of its own.
pub(crate) struct Service {
    pub(crate) api: Client,
    pub(crate) admin: Client,
    pub(crate) folder: TempDir,
    running: Running,
    shutdown: CancellationToken,
}

impl Service {
    /// With this NATS, connected.
    pub(crate) async fn start(nats: &NatsServer) -> Self {
        let service = Self::start_with(&["--nats-url", &nats.url()]).await;
        service.connected().await;
        service
    }

    pub(crate) async fn connected(&self) {
        eventually("a connection to NATS", async || {
            let ready = self.admin.get("/readyz", None).await;
            (ready.body["nats"] == "connected").then_some(())
        })
        .await;
    }

    /// With these flags.
    pub(crate) async fn start_with(flags: &[&str]) -> Self {
        Self::start_in(new_folder(), flags, |_| ()).await
    }

    /// On an existing folder, with changes to the checked configuration.
    pub(crate) async fn start_in(
        folder: TempDir,
        flags: &[&str],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut all = common_flags(folder.path()).await;
        all.insert(0, "edd-compute".to_owned());
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let mut config = Config::check(Arguments::try_parse_from(all).unwrap()).unwrap();
        config.guest_binary = Some(env!("CARGO_BIN_EXE_edd-compute").into());
        change(&mut config);
        let shutdown = CancellationToken::new();
        let running = App::start(config, shutdown.clone()).await.unwrap();
        Self {
            api: Client(running.addr),
            admin: Client(running.admin_addr),
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
        let url = database_of(self.folder.path()).await;
        Database::open(&url).await.unwrap()
    }

    /// The subjects in the outbox, oldest first.
    pub(crate) async fn outbox(&self) -> Vec<String> {
        query("SELECT subject FROM outbox ORDER BY id")
            .values(&self.database().await)
            .await
            .unwrap()
    }

    /// A container of Alice's, as answered.
    pub(crate) async fn create(&self, body: &Value) -> Value {
        let answer = self.api.post("/compute/containers", ALICE, body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.body
    }

    /// A container of Alice's that runs.
    pub(crate) async fn create_running(&self, body: &Value) -> Value {
        let created = self.create(body).await;
        self.wait_for(id_of(&created), "running").await
    }

    pub(crate) async fn wait_for(&self, id: &str, status: &str) -> Value {
        self.api.wait_for(id, status).await
    }

    /// The private key that opens containers.
    pub(crate) fn gateway_key(&self) -> PathBuf {
        gateway_key(self.folder.path())
    }
}

/// A folder with the gateway's key pair.
pub(crate) fn new_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    make_key(&gateway_key(folder.path()));
    folder
}

pub(crate) fn gateway_key(folder: &Path) -> PathBuf {
    folder.join("gateway_key")
}

/// What every start here has.
pub(crate) async fn common_flags(folder: &Path) -> Vec<String> {
    let given = std::env::var_os("EDD_SSHD").map(PathBuf::from);
    let sshd = edd_compute::runtime::sshd::find(given.as_deref())
        .expect("no sshd found: run `cargo xtask test`, which fetches it");
    vec![
        format!("--sshd={}", sshd.display()),
        "--addr=127.0.0.1:0".to_owned(),
        "--admin-addr=127.0.0.1:0".to_owned(),
        format!("--database-url={}", database_of(folder).await),
        format!("--state-dir={}", folder.join("state").display()),
        format!("--gateway-ssh-key={}.pub", gateway_key(folder).display()),
        "--platform-domain=example.org".to_owned(),
    ]
}

/// An Ed25519 pair in `file` and `file.pub`; returns the public line.
pub(crate) fn make_key(file: &Path) -> String {
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    key.write_openssh_file(file, LineEnding::LF).unwrap();
    let line = key.public_key().to_openssh().unwrap().trim().to_owned();
    std::fs::write(file.with_extension("pub"), format!("{line} gateway\n")).unwrap();
    line
}

/// The middle of every private key under a folder.
pub(crate) fn private_keys_in(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let file = entry.path();
            if file.is_dir() {
                folders.push(file);
            } else if let Ok(text) = std::fs::read_to_string(&file)
                && text.contains("PRIVATE KEY")
            {
                let lines: Vec<_> = text.lines().filter(|line| !line.contains("---")).collect();
                // The first of OpenSSH's says only what kind of key it is; PEM may have just two.
                let lines = lines.iter().skip(1).take(2);
                found.extend(lines.map(|line| line.as_bytes().to_vec()));
            }
        }
    }
    found
}

pub(crate) fn id_of(container: &Value) -> &str {
    container["id"].as_str().expect("an id")
}

pub(crate) fn ip_of(container: &Value) -> &str {
    container["external_ip"].as_str().expect("an address")
}

/// What tests ask compute for.
pub(crate) trait ComputeClient {
    /// A container of Alice's, once it has this status.
    async fn wait_for(self, id: &str, status: &str) -> Value;
}

impl ComputeClient for Client {
    async fn wait_for(self, id: &str, status: &str) -> Value {
        let path = format!("/compute/containers/{id}");
        eventually(status, async || {
            let answer = self.get(&path, ALICE).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let body = answer.body;
            assert!(body["status"] != "failed" || status == "failed", "{body}");
            (body["status"] == status).then_some(body)
        })
        .await
    }
}

/// The user of a token of these tests.
fn user_of(token: &str) -> Option<(i64, String)> {
    let id: i64 = token.strip_prefix("user-")?.parse().ok()?;
    Some((id, format!("name{id}")))
}

/// Ends a task with its test.
pub(crate) struct Ends(JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Answers `auth.validate.request` as auth would.
pub(crate) async fn auth_on(nats: &NatsServer) -> Ends {
    let client = nats.client().await;
    let mut requests = client.subscribe("auth.validate.request").await.unwrap();
    // Whatever the answer: the server knows the subscription.
    let _ = jetstream::new(client.clone()).get_stream("AUTH").await;
    Ends(tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let asked = ValidateTokenRequest::decode(request.payload).unwrap();
            let answer = match user_of(&asked.token) {
                Some((user_id, username)) => ValidateTokenResponse {
                    valid: true,
                    user_id,
                    username,
                },
                None => ValidateTokenResponse::default(),
            };
            let reply = request.reply.unwrap();
            let _ = client.publish(reply, answer.encode_to_vec().into()).await;
        }
    }))
}

/// Answers `GET /api/session` as auth would; its URL.
pub(crate) async fn auth_over_http() -> (String, Ends) {
    use axum::{
        Json, Router,
        http::{HeaderMap, StatusCode},
        routing::get,
    };
    let session = async |headers: HeaderMap| {
        let token = headers
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        match token.and_then(|token| user_of(token.strip_prefix("Bearer ")?)) {
            Some((id, name)) => Ok(Json(
                json!({ "user_id": id, "username": name, "more": true }),
            )),
            None => Err(StatusCode::UNAUTHORIZED),
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/api/session", get(session));
    let serving = edd_daemon::admin::serve(listener, router, CancellationToken::new());
    (url, Ends(tokio::spawn(serving)))
}

/// A stream from its beginning.
pub(crate) struct Events(pull::Stream);

impl Events {
    /// All that compute says.
    pub(crate) async fn of_compute(nats: &NatsServer) -> Self {
        let js = nats.jetstream().await;
        stream::ensure(&js, &stream::COMPUTE, 1).await.unwrap();
        let stream = js.get_stream(stream::COMPUTE.name).await.unwrap();
        let config = pull::Config {
            // However long it takes until somebody asks.
            inactive_threshold: Duration::from_secs(600),
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.unwrap();
        Self(consumer.messages().await.unwrap())
    }

    pub(crate) async fn next(&mut self) -> jetstream::Message {
        let waiting = async {
            loop {
                // A heartbeat that was missed on a busy machine is no event.
                if let Ok(event) = self.0.next().await.expect("the stream goes on") {
                    return event;
                }
            }
        };
        let event = timeout(DEADLINE, waiting).await.expect("an event in time");
        event.ack().await.unwrap();
        event
    }

    /// The next event, which has this subject; decoded, with its version.
    pub(crate) async fn expect<M: EventMessage>(&mut self, subject: &str) -> (M, i64) {
        let message = self.next().await;
        assert_eq!(message.subject.as_str(), subject);
        let event = M::decode(message.payload.clone()).unwrap();
        let metadata = event.metadata().expect("metadata");
        assert_eq!(metadata.source, "edd-compute");
        assert_eq!(
            Some(metadata.entity_id.as_str()),
            subject.split('.').nth(2),
            "{metadata:?}"
        );
        let headers = message.headers.as_ref().expect("headers");
        assert_eq!(
            headers.get("Nats-Msg-Id").expect("a message id").as_str(),
            metadata.event_id
        );
        let version = metadata.version;
        (event, version)
    }
}

/// Publishes an event as its service would; `times` times, with one event id.
pub(crate) async fn publish<M: EventMessage>(
    nats: &NatsServer,
    entity: &str,
    version: i64,
    message: M,
    times: usize,
) {
    let js = nats.jetstream().await;
    for spec in [stream::AUTH, stream::GATEWAY] {
        stream::ensure(&js, &spec, 1).await.unwrap();
    }
    let entity = EntityId::try_from(entity).unwrap();
    let entry = seal("test", &entity, version, message, &Cause::default());
    for _ in 0..times {
        // Without a message id: the stream takes it again each time.
        let subject = entry.subject.clone();
        let ack = js
            .publish(subject, entry.payload.clone().into())
            .await
            .unwrap();
        timeout(DEADLINE, ack)
            .await
            .expect("an ack in time")
            .unwrap();
    }
}

/// Living processes whose command line holds `text`.
pub(crate) fn processes_with(text: &str) -> Vec<i32> {
    let mut found = Vec::new();
    let own = i32::try_from(std::process::id()).unwrap();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|pid| *pid != own) else {
            continue;
        };
        if command_line(pid).contains(text) {
            found.push(pid);
        }
    }
    found
}

/// Empty for processes that ended, reaped or not.
pub(crate) fn command_line(pid: i32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

pub(crate) async fn gone(text: &str) {
    eventually(&format!("no process with {text}"), async || {
        processes_with(text).is_empty().then_some(())
    })
    .await;
}

/// Who may log in to containers here.
fn login_user() -> String {
    let output = std::process::Command::new("id")
        .arg("-un")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The machine's ssh client, straight into a container. With a host key line it
/// accepts no other.
pub(crate) fn ssh(key: &Path, ip: &str, host_key: Option<&str>, command: &str) -> Command {
    let addr = SocketAddr::new(ip.parse().unwrap(), 2022);
    ssh_as(&login_user(), key, addr, host_key, command)
}

/// The same through a gateway.
pub(crate) fn ssh_through(key: &Path, gateway: SocketAddr, id: &str, command: &str) -> Command {
    let user = format!("{}.{id}", login_user());
    ssh_as(&user, key, gateway, None, command)
}

fn ssh_as(
    user: &str,
    key: &Path,
    addr: SocketAddr,
    host_key: Option<&str>,
    command: &str,
) -> Command {
    let (ip, port) = (addr.ip(), addr.port().to_string());
    let known_hosts = key.with_extension(format!("known.{ip}"));
    let strict = match host_key {
        Some(line) => {
            std::fs::write(&known_hosts, format!("[{ip}]:{port} {line}\n")).unwrap();
            "yes"
        }
        None => "no",
    };
    let mut ssh = Command::new("ssh");
    ssh.args([
        "-F",
        "none",
        "-p",
        &port,
        "-o",
        "BatchMode=yes",
        "-o",
        "LogLevel=ERROR",
    ])
    .args(["-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=60", "-o"])
    .arg(format!("StrictHostKeyChecking={strict}"))
    .arg("-o")
    .arg(format!("UserKnownHostsFile={}", known_hosts.display()))
    .arg("-i")
    .arg(key)
    .arg(format!("{user}@{ip}"))
    .arg(command)
    .stdin(std::process::Stdio::null())
    .kill_on_drop(true);
    ssh
}
