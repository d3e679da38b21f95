//! Auth, compute and gateway together on NATS as the cloud runs it: the committed
//! `deploy/nats/nats.conf`, TLS, and each service with its own key and its own rights.

use std::{collections::HashSet, net::SocketAddr, sync::Arc};

use async_nats::{
    HeaderMap,
    jetstream::{self, consumer::pull},
};
use clap::Parser;
use edd_events::testing::Cloud;
use edd_gateway::{
    config::ServeArgs,
    listener::{Addresses, Inherited},
    shared::Shared,
};
use edd_service::testing::Answer;
use edd_store::{DatabaseUrl, testing::database_of};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Client, DEADLINE, Service, eventually, id_of, make_key, new_folder, private_keys_in,
    ssh_through,
};

const PASSWORD: &str = "correct horse battery";

/// A service in this process.
struct Started<T> {
    api: T,
    admin: Client,
    shutdown: CancellationToken,
    ended: JoinHandle<()>,
    folder: TempDir,
}

impl<T> Started<T> {
    fn new(
        api: T,
        admin: Client,
        folder: TempDir,
        shutdown: CancellationToken,
        ended: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self {
            api,
            admin,
            shutdown,
            ended: tokio::spawn(ended),
            folder,
        }
    }

    /// Waits until it has all that it needs of the world.
    async fn ready(self) -> Self {
        eventually("ready", async || {
            let ready = self.admin.get("/readyz", None).await;
            (ready.body["status"] == "ready").then_some(())
        })
        .await;
        self
    }

    async fn stop(self) {
        self.shutdown.cancel();
        let ended = timeout(DEADLINE, self.ended).await;
        ended.expect("a drain in time").expect("no panic");
    }
}

async fn auth(cloud: &Cloud) -> Started<Client> {
    let folder = tempfile::tempdir().unwrap();
    let mut flags = vec![
        "edd-auth".to_owned(),
        "--addr=127.0.0.1:0".to_owned(),
        "--admin-addr=127.0.0.1:0".to_owned(),
        format!("--database-url={}", database_of(folder.path()).await),
    ];
    flags.extend(cloud.flags("auth"));
    let arguments = edd_auth::config::Arguments::try_parse_from(flags).unwrap();
    let config = edd_auth::config::Config::check(arguments).unwrap();
    let shutdown = CancellationToken::new();
    let running = edd_auth::app::App::start(config, shutdown.clone()).await;
    let running = running.unwrap();
    let (api, admin) = (Client(running.addr), Client(running.admin_addr));
    let started = Started::new(api, admin, folder, shutdown, running.drained());
    started.ready().await
}

/// Compute, which asks the gateway for its key.
async fn compute(cloud: &Cloud, more: &[String]) -> Service {
    let flags = [&cloud.flags("compute"), more].concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let service = Service::start_in(new_folder(), &flags, |config| {
        config.gateway_ssh_key = None;
    });
    let service = service.await;
    service.connected().await;
    service
}

#[derive(Parser)]
struct GatewayFlags {
    #[command(flatten)]
    serve: ServeArgs,
}

/// A gateway's inside, and where it listens.
struct Inside {
    shared: Arc<Shared>,
    addresses: Addresses,
}

type Gateway = Started<Inside>;

async fn gateway(cloud: &Cloud) -> Gateway {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::create_dir(path("certs")).unwrap();
    let routes = "routes: [{host: docs.example.org, target: '127.0.0.1:9'}]\n";
    std::fs::write(path("routes.yaml"), routes).unwrap();
    let database = match database_of(folder.path()).await {
        DatabaseUrl::Sqlite(_) => format!("sqlite://{}", path("gateway.db")),
        url => url.to_string(),
    };
    let mut flags = vec![
        "edd-gateway".to_owned(),
        format!("--routes={}", path("routes.yaml")),
        format!("--certs-dir={}", path("certs")),
        format!("--state-dir={}", path("state")),
        format!("--database-url={database}"),
        "--http-addr=127.0.0.1:0".to_owned(),
        "--https-addr=127.0.0.1:0".to_owned(),
        "--ssh-addr=127.0.0.1:0".to_owned(),
        "--admin-addr=127.0.0.1:0".to_owned(),
        "--ports=".to_owned(),
        "--platform-domain=example.org".to_owned(),
        "--container-cidrs=127.64.0.0/10".to_owned(),
        "--container-ssh-port=2022".to_owned(),
        "--digest-interval=1s".to_owned(),
        "--drain-timeout=2s".to_owned(),
    ];
    flags.extend(cloud.flags("gateway"));
    let config = GatewayFlags::parse_from(flags).serve.check().unwrap();
    let shutdown = CancellationToken::new();
    let running = edd_gateway::app::start(config, Inherited::default(), shutdown.clone()).await;
    let running = running.unwrap();
    let admin = Client(running.addresses.admin);
    let inside = Inside {
        shared: Arc::clone(&running.shared),
        addresses: running.addresses.clone(),
    };
    let started = Started::new(inside, admin, folder, shutdown, running.ended());
    started.ready().await
}

impl Gateway {
    /// Waits until a container has these target ports by port, and runs; none: it is gone.
    async fn until(&self, id: &str, rules: Option<&[(u16, u16)]>) {
        eventually(&format!("{id} {rules:?}"), async || {
            let table = self.api.shared.table();
            let found = table.container(id).filter(|found| found.running.is_some());
            let found = found.map(|found| {
                let rules = found.rules.iter();
                let rules = rules.map(|rule| (rule.port, rule.target_port));
                rules.collect::<Vec<_>>()
            });
            (found.as_deref() == rules).then_some(())
        })
        .await;
    }

    /// Waits until a number of its metrics is so.
    async fn until_metric(&self, name: &str, is_so: impl Fn(u64) -> bool) {
        eventually(name, async || {
            let text = self.admin.get("/metrics", None).await.text;
            let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
            is_so(values.next()?.trim().parse().ok()?).then_some(())
        })
        .await;
    }
}

/// A request with a trace and an id of its own.
async fn traced(api: Client, what: (&str, &str), token: &str, trace: &str, body: &str) -> Answer {
    let headers = format!(
        "Content-Type: application/json\r\nX-Request-ID: request-{trace}\r\n\
         traceparent: 00-{trace}-00f067aa0ba902b7-01\r\nAuthorization: Bearer {token}\r\n"
    );
    api.call(what.0, what.1, &headers, body).await
}

/// All that a stream holds.
async fn kept(cloud: &Cloud, stream: &str) -> Vec<jetstream::Message> {
    let js = jetstream::new(cloud.client("operator").await);
    let mut stream = js.get_stream(stream).await.unwrap();
    let last = stream.info().await.unwrap().state.messages;
    let config = pull::Config::default();
    let consumer = stream.create_consumer(config).await.unwrap();
    let messages = consumer.messages().await.unwrap();
    let messages = messages
        .take(usize::try_from(last).unwrap())
        .map(Result::unwrap);
    timeout(DEADLINE, messages.collect()).await.unwrap()
}

/// Of all that a stream holds, subject and headers.
async fn said(cloud: &Cloud, stream: &str) -> Vec<(String, HeaderMap)> {
    let messages = kept(cloud, stream).await.into_iter();
    let parts = messages.map(|message| {
        let headers = message.headers.clone().unwrap_or_default();
        (message.subject.to_string(), headers)
    });
    parts.collect()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.as_str())
}

/// Those of the events that came of the request with this trace, in full: their subjects.
fn of_trace(events: &[(String, HeaderMap)], causes: &HashSet<String>, trace: &str) -> Vec<String> {
    let mut subjects = Vec::new();
    for (subject, headers) in events {
        let told = header(headers, "traceparent");
        if !told.starts_with(&format!("00-{trace}-")) {
            continue;
        }
        assert!(!told.contains("00f067aa0ba902b7"), "a span of its own");
        let request = format!("request-{trace}");
        assert_eq!(header(headers, "Edd-Correlation-Id"), request, "{subject}");
        let cause = header(headers, "Edd-Causation-Id");
        assert!(causes.contains(cause), "{subject}: {headers:?}");
        subjects.push(subject.clone());
    }
    subjects
}

/// Everything that the services do with each other, with no more rights than they have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_services_do_all_of_their_work_with_the_rights_they_have() {
    const CREATE: &str = "0000000000000000000000000000000a";
    const ADD: &str = "0000000000000000000000000000000b";
    const WITHDRAW: &str = "0000000000000000000000000000000c";
    const DELETE: &str = "0000000000000000000000000000000d";
    let cloud = Cloud::start().await;
    let (auth, compute) = (auth(&cloud).await, compute(&cloud, &[]).await);
    let first = gateway(&cloud).await;
    until_gateway_key(&compute).await;

    // A user, who is known to compute then; a container, in force and confirmed.
    let (token, user) = register(auth.api, "ann").await;
    until_saga(auth.admin, &format!("registration:{user}")).await;
    let key = compute.folder.path().join("ann");
    let line = format!("{} ann@example.net", make_key(&key));
    let body = json!({ "name": "laptop", "public_key": line });
    let answer = compute.api.post("/compute/ssh-keys", Some(&token), &body);
    assert_eq!(answer.await.status, 201);
    let body = json!({ "name": "box", "ssh_enabled": true,
        "ingress": [{ "port": 443, "target_port": 8080 }] });
    let create = ("POST", "/compute/containers");
    let answer = traced(compute.api, create, &token, CREATE, &body.to_string()).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let id = id_of(&answer.body).to_owned();
    first.until(&id, Some(&[(443, 8080)])).await;
    let path = format!("/compute/containers/{id}");
    let until_active = async |ports: &[u16]| {
        eventually(&format!("{ports:?} active"), async || {
            let seen = compute.api.get(&path, Some(&token)).await.body;
            let rules = seen["ingress"].as_array().unwrap().clone();
            let active = rules.iter().filter(|rule| rule["status"] == "active");
            let active: Vec<_> = active.map(|rule| rule["port"].clone()).collect();
            (active == ports).then_some(())
        })
        .await;
    };
    until_active(&[443]).await;
    let body = r#"{"port": 80, "target_port": 9000}"#;
    let ingress = format!("{path}/ingress");
    let answer = traced(compute.api, ("POST", &ingress), &token, ADD, body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    first.until(&id, Some(&[(80, 9000), (443, 8080)])).await;
    until_active(&[80, 443]).await;

    // The comparison of what both know, and after a week and the loss of the database, all of it.
    let mut secrets: Vec<Vec<u8>> = [PASSWORD, &token, "ann@example.net", "PRIVATE KEY"]
        .map(|secret| secret.as_bytes().to_vec())
        .to_vec();
    let before = secrets.len();
    for folder in [&compute.folder, &first.folder] {
        secrets.extend(private_keys_in(folder.path()));
    }
    for service in ["auth", "compute", "gateway"] {
        secrets.push(std::fs::read(cloud.file(service)).unwrap());
    }
    let found = secrets.len() - before;
    // Of ann, the container, compute; host key, client key and certificates of the gateway.
    assert!(found >= 3 + 2 * 7, "{found}");
    let equal = "edd_gateway_digest_equal_timestamp_seconds ";
    first.until_metric(equal, |at| at > 0).await;
    first.stop().await;
    let operator = jetstream::new(cloud.client("operator").await);
    let causes = said(&cloud, "COMPUTE").await;
    operator
        .get_stream("COMPUTE")
        .await
        .unwrap()
        .purge()
        .await
        .unwrap();
    let second = gateway(&cloud).await;
    second.until(&id, Some(&[(80, 9000), (443, 8080)])).await;
    let own = format!("{ingress}/80");
    let answer = traced(compute.api, ("DELETE", &own), &token, WITHDRAW, "").await;
    assert_eq!(answer.status, 204, "{answer:?}");
    second.until(&id, Some(&[(443, 8080)])).await;

    // Her end is the end of all that she had, and auth hears that it is done.
    let account = ("DELETE", &*format!("/api/users/{user}"));
    let answer = traced(auth.api, account, &token, DELETE, "").await;
    assert_eq!(answer.status, 204, "{answer:?}");
    until_saga(auth.admin, &format!("user-deletion:{user}")).await;
    second.until(&id, None).await;
    let gone = async || {
        let answer = second.admin.get("/api/v1/containers", None).await;
        (answer.body["containers"].as_array().map(Vec::len) == Some(0)).then_some(())
    };
    eventually("no container in the table", gone).await;

    // What the gateway said of it all belongs to the requests that it came from.
    let until_said = async |trace: &str, expected: &[&str]| {
        eventually(&format!("{expected:?} of {trace}"), async || {
            let mut ids = HashSet::new();
            let others = [said(&cloud, "COMPUTE").await, said(&cloud, "AUTH").await];
            for (_, headers) in others.iter().flatten().chain(&causes) {
                ids.insert(header(headers, "Nats-Msg-Id").to_owned());
            }
            let events = said(&cloud, "GATEWAY").await;
            let subjects = of_trace(&events, &ids, trace);
            let all = |subject: &&str| subjects.iter().any(|said| said == subject);
            expected.iter().all(all).then_some(())
        })
        .await;
    };
    let created = format!("gateway.ingress.{id}.created");
    let deleted = format!("gateway.ingress.{id}.deleted");
    let refreshed = "gateway.router.refreshed";
    until_said(CREATE, &[&created, refreshed]).await;
    until_said(ADD, &[&created, refreshed]).await;
    until_said(WITHDRAW, &[&deleted, refreshed]).await;
    until_said(DELETE, &[&deleted, refreshed]).await;

    // Nor does it tell what is nobody's business, of whatever kind its events are.
    secrets.extend(private_keys_in(second.folder.path()));
    let mut kinds = HashSet::new();
    for message in kept(&cloud, "GATEWAY").await {
        kinds.insert(message.subject.split('.').nth(1).unwrap().to_owned());
        let headers = format!("{:?}", message.headers);
        for secret in &secrets {
            let holds = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
            let found = holds(&message.payload) || holds(headers.as_bytes());
            assert!(!found, "{}: {:?}", message.subject, message.payload);
        }
    }
    assert_eq!(kinds.len(), 3, "of rules, routes and the table: {kinds:?}");

    second.stop().await;
    compute.stop().await;
    auth.stop().await;
    let log = cloud.server.log();
    assert!(!log.contains("Violation"), "{log}");
    assert!(!log.contains("authentication error"), "{log}");
    // None of them speaks for another.
    for (service, subject) in [
        ("gateway", format!("compute.container.{id}.started")),
        ("gateway", format!("auth.user.{user}.created")),
        ("compute", format!("gateway.ingress.{id}.created")),
        ("auth", format!("compute.user.{user}.purged")),
    ] {
        cloud.refuses(service, &subject).await;
    }
}

/// What `?wait=routable` promises is so for the very next request, with no more waiting: the page
/// and a login with a key that was posted just before. Compute's question is answered by the
/// gateway's own handler.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_routable_container_is_reached_at_once() {
    let cloud = Cloud::start().await;
    let gateway = gateway(&cloud).await;
    let addresses = &gateway.api.addresses;
    let gateways = format!("--gateways=http://{}", addresses.admin);
    let (auth, compute) = (auth(&cloud).await, compute(&cloud, &[gateways]).await);
    until_gateway_key(&compute).await;
    let (token, _) = register(auth.api, "ann").await;
    let token = Some(token.as_str());
    let key = compute.folder.path().join("ann");
    let body = json!({ "name": "laptop", "public_key": make_key(&key) });
    let answer = compute.api.post("/compute/ssh-keys", token, &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let body = json!({ "name": "box", "ssh_enabled": true,
        "ingress": [{ "port": 80, "target_port": 8080 }] });
    let path = "/compute/containers?wait=routable&timeout=60s";
    let answer = compute.api.post(path, token, &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.body["routable"], true, "{answer:?}");
    let (id, host) = (id_of(&answer.body), &answer.body["hostname"]);
    let login = ssh_through(&key, addresses.ssh, id, "echo in").output();
    let (page, login) = tokio::join!(
        page_of(addresses.http, host.as_str().unwrap()),
        timeout(DEADLINE, login)
    );
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    assert!(page.contains(id), "{page}");
    let login = login.expect("ssh ends in time").unwrap();
    assert_eq!(login.stdout, b"in\n", "{login:?}");

    // What nobody serves is not said to be there.
    gateway.stop().await;
    let short = "/compute/containers?wait=routable&timeout=1s";
    let answer = compute.api.post(short, token, &body).await;
    assert_eq!(answer.body["routable"], false, "{answer:?}");
    compute.stop().await;
    auth.stop().await;
}

/// The page of a container, through a gateway.
async fn page_of(gateway: SocketAddr, host: &str) -> String {
    let talk = async {
        let mut stream = TcpStream::connect(gateway).await.unwrap();
        let ask = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        page
    };
    timeout(DEADLINE, talk).await.expect("a page in time")
}

/// Waits until compute has the gateway's key, which it asks for over NATS.
async fn until_gateway_key(compute: &Service) {
    let key = compute.folder.path().join("state/local/gateway.pub");
    eventually("the gateway's key", async || {
        let line = std::fs::read_to_string(&key).ok()?;
        line.starts_with("ssh-ed25519 ").then_some(())
    })
    .await;
}

/// A new user: the token and the id.
async fn register(auth: Client, username: &str) -> (String, i64) {
    let body = json!({ "username": username, "password": PASSWORD });
    let answer = auth.post("/api/register", None, &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let token = answer.body["token"].as_str().unwrap().to_owned();
    (token, answer.body["user_id"].as_i64().unwrap())
}

/// Waits until compute has confirmed what auth began.
async fn until_saga(admin: Client, id: &str) {
    eventually(id, async || {
        let all = admin.get("/api/v1/sagas", None).await.body;
        let all = all["sagas"].as_array()?;
        let saga: &Value = all.iter().find(|saga| saga["id"] == id)?;
        let done = saga["state"] == "completed" && saga["step"] == "confirmed";
        done.then_some(())
    })
    .await;
}
