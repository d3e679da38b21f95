//! A gateway under load, a publisher with an outbox, and what the table must be.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use edd_bench::load::{Load, Plan, Protocol};
use edd_events::Metrics;
use edd_events::envelope::{Cause, EventMessage, seal};
use edd_events::outbox::{self, OutboxEntry, Relay, Waker};
use edd_events::stream::COMPUTE;
use edd_events::subject::EntityId;
use edd_proto::compute;
use edd_store::Database;
use edd_store::testing::database_of;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::control::get;
use crate::support::containers::container_address;
use crate::support::{Origin, eventually};

/// Addresses of containers.
pub(super) const CIDRS: &str = "127.64.0.0/10";

const STATIC_HOST: &str = "site.localhost";
const CONTAINER: &str = "steady";
const CONTAINER_HOST: &str = "steady.compute.localhost";

/// Pause between changes while something is broken.
const CHANGE_EVERY: Duration = Duration::from_millis(40);

/// Pause between looks at the table.
const POLL: Duration = Duration::from_millis(20);

/// After the world is whole again, the end state is there within this and as
/// long as it was broken: unoptimised, on a machine that does much else.
const SETTLE_MAX: Duration = Duration::from_secs(60);

fn settle_max() -> Duration {
    SETTLE_MAX + super::outage()
}

/// The routes file of a gateway under load, and who answers.
pub(super) struct Origins {
    site: Origin,
    container: Origin,
    address: String,
}

impl Origins {
    pub(super) async fn start() -> Self {
        let address = container_address().to_string();
        Self {
            site: answering("127.0.0.1").await,
            container: answering(&address).await,
            address,
        }
    }

    pub(super) fn routes(&self) -> String {
        let target = self.site.address;
        format!("routes:\n- host: {STATIC_HOST}\n  target: {target}\n")
    }
}

async fn answering(ip: &str) -> Origin {
    Origin::raw(ip, async |_, mut stream: TcpStream| {
        let mut bytes = Vec::new();
        while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
            while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                bytes.drain(..end + 4);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhere\n";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// What a container must look like: its address while it runs, its rules.
type Expected = BTreeMap<String, (Option<String>, Vec<(u64, u64)>)>;

/// Compute in small: events by way of an outbox in a database of its own.
pub(super) struct Publisher {
    database: Database,
    waker: Waker,
    relay: JoinHandle<()>,
    shutdown: CancellationToken,
    expected: Expected,
    steps: usize,
    pub(super) events: usize,
    _folder: TempDir,
}

impl Publisher {
    pub(super) async fn start(js: Context, replicas: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = database_of(folder.path()).await;
        let database = Database::open(&url).await.unwrap();
        database.migrate(outbox::TABLE).await.unwrap();
        let shutdown = CancellationToken::new();
        let relay =
            Relay::new(database.clone(), js, Metrics::default()).with_streams(&[COMPUTE], replicas);
        let waker = relay.waker();
        Self {
            database,
            waker,
            relay: tokio::spawn(relay.run(shutdown.clone())),
            shutdown,
            expected: Expected::new(),
            steps: 0,
            events: 0,
            _folder: folder,
        }
    }

    async fn write(&mut self, entries: Vec<OutboxEntry>) {
        let mut transaction = self.database.begin().await.unwrap();
        for entry in &entries {
            outbox::insert(&mut transaction, entry).await.unwrap();
        }
        transaction.commit().await.unwrap();
        self.events += entries.len();
        self.waker.wake();
    }

    /// A container that runs with one rule.
    async fn run(&mut self, id: &str, address: &str, port: u16, target: u16) {
        let container_id = id.to_owned();
        let created = compute::ContainerCreated {
            container_id: container_id.clone(),
            user_id: 7,
            name: container_id.clone(),
            ..Default::default()
        };
        let started = compute::ContainerStarted {
            container_id: container_id.clone(),
            external_ip: address.into(),
            ..Default::default()
        };
        let rule = compute::IngressRuleRequested {
            container_id,
            port: port.into(),
            target_port: target.into(),
            ..Default::default()
        };
        let entries = vec![event(id, created), event(id, started), event(id, rule)];
        self.write(entries).await;
        let rules = vec![(port.into(), target.into())];
        let expected = (Some(address.to_owned()), rules);
        self.expected.insert(id.to_owned(), expected);
    }

    /// One more container, and something happens to an older one.
    async fn step(&mut self) {
        let n = self.steps;
        self.steps += 1;
        let address = format!("127.100.{}.{}", n / 250, n % 250 + 2);
        self.run(&format!("f{n}"), &address, 80, 8080).await;
        let older = |by: usize| n.checked_sub(by).map(|n| format!("f{n}"));
        match n % 4 {
            1 => {
                let id = older(1).expect("there");
                let container_id = id.clone();
                let stopped = compute::ContainerStopped {
                    container_id,
                    ..Default::default()
                };
                self.write(vec![event(&id, stopped)]).await;
                self.expected.get_mut(&id).expect("there").0 = None;
            }
            3 => {
                let id = older(2).expect("there");
                let container_id = id.clone();
                let deleted = compute::ContainerDeleted {
                    container_id,
                    user_id: 7,
                    ..Default::default()
                };
                self.write(vec![event(&id, deleted)]).await;
                self.expected.remove(&id);
            }
            _ => {}
        }
    }

    /// Changes, one after the other, for so long.
    pub(super) async fn change_for(&mut self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.step().await;
            tokio::time::sleep(CHANGE_EVERY).await;
        }
    }

    /// Events that no stream has taken yet.
    pub(super) async fn waiting(&self) -> u64 {
        outbox::pending(&self.database).await.unwrap()
    }

    /// Waits until the gateway's table is what the events say; how long it took.
    pub(super) async fn until_right(&self, admin: SocketAddr) -> Duration {
        let begun = Instant::now();
        loop {
            let looked = Instant::now();
            let found = containers(admin).await;
            if found == self.expected && self.waiting().await == 0 {
                return begun.elapsed();
            }
            // A look at a large table costs more than the changes.
            let pause = POLL.max(looked.elapsed() * 4);
            if begun.elapsed() > settle_max() {
                let differ = self
                    .expected
                    .iter()
                    .filter(|(id, expected)| found.get(*id) != Some(expected))
                    .take(5)
                    .collect::<Vec<_>>();
                panic!(
                    "not right after {:?}: {} of {} containers, {} events wait, for \
                     example {differ:?}",
                    begun.elapsed(),
                    found.len(),
                    self.expected.len(),
                    self.waiting().await
                );
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.relay.await.expect("no panic");
    }
}

fn event<M: EventMessage>(id: &str, message: M) -> OutboxEntry {
    let entity = EntityId::try_from(id).expect("a good id");
    seal("edd-compute", &entity, 0, message, &Cause::default())
}

async fn containers(admin: SocketAddr) -> Expected {
    let (_, body) = get(admin, "/api/v1/containers").await;
    let containers = body["containers"].as_array().expect("a list");
    let one = |container: &Value| {
        let id = container["id"].as_str().expect("an id").to_owned();
        let address = container["running"].as_bool().expect("a truth");
        let address = address
            .then(|| container["address"].as_str().map(str::to_owned))
            .flatten();
        let rules = container["rules"].as_array().expect("a list");
        let number = |rule: &Value, key: &str| rule[key].as_u64().expect("a number");
        let rules = rules
            .iter()
            .map(|rule| (number(rule, "port"), number(rule, "target_port")));
        (id, (address, rules.collect()))
    };
    containers.iter().map(one).collect()
}

/// A load on a static route and on a container, on HTTP/1.1 and HTTP/2.
pub(super) struct Traffic {
    loads: Vec<(String, Load)>,
    publisher: Publisher,
    admin: SocketAddr,
    begun: Instant,
    _origins: Origins,
}

impl Traffic {
    /// Publishes the container that is asked for, waits for it and begins.
    pub(super) async fn start(
        origins: Origins,
        mut publisher: Publisher,
        https: SocketAddr,
        admin: SocketAddr,
    ) -> Self {
        let port = origins.container.address.port();
        publisher.run(CONTAINER, &origins.address, 443, port).await;
        // Some more, of before.
        for _ in 0..20 {
            publisher.step().await;
        }
        publisher.until_right(admin).await;
        eventually("ready", || async {
            get(admin, "/readyz").await.1["status"] == "ready"
        })
        .await;
        let mut loads = Vec::new();
        for host in [STATIC_HOST, CONTAINER_HOST] {
            for protocol in [Protocol::Http1, Protocol::Http2] {
                let plan = Plan {
                    address: https,
                    host: host.into(),
                    path: "/".into(),
                    connections: 4,
                    per_second: 50,
                };
                loads.push((format!("{host} {protocol:?}"), Load::start(&plan, protocol)));
            }
        }
        Self {
            loads,
            publisher,
            admin,
            begun: Instant::now(),
            _origins: origins,
        }
    }

    pub(super) fn publisher(&mut self) -> &mut Publisher {
        &mut self.publisher
    }

    /// Waits until `/readyz` says `status` and `field` is `value`.
    pub(super) async fn until_ready(&self, status: &str, field: &str, value: &str) {
        eventually(&format!("{status}, {field} {value}"), || async {
            let (_, body) = get(self.admin, "/readyz").await;
            body["status"] == status && body[field] == value
        })
        .await;
    }

    /// The end state, and that no client noticed anything; tells the figures.
    pub(super) async fn end(mut self, fault: &str) {
        let settled = self.publisher.until_right(self.admin).await;
        // What is right stays right, and new changes come through.
        let begun = Instant::now();
        self.publisher.step().await;
        self.publisher.until_right(self.admin).await;
        let next = begun.elapsed();
        // What died with a server, acknowledgements too, is read at the binding.
        let begun = Instant::now();
        while get(self.admin, "/readyz").await.1["status"] != "ready" {
            assert!(begun.elapsed() < settle_max(), "not ready in time");
            tokio::time::sleep(POLL).await;
        }
        // A broken world is no event's fault.
        let begun = Instant::now();
        let letters = loop {
            let (code, letters) = get(self.admin, "/api/v1/dlq").await;
            if code == 200 {
                break letters;
            }
            // Whoever leads one of the streams may just have come back.
            assert!(begun.elapsed() < settle_max(), "{letters}");
            tokio::time::sleep(POLL).await;
        };
        assert_eq!(letters["letters"], serde_json::json!([]));
        let mut sent = 0;
        for (name, load) in self.loads {
            let counts = load.stop().await;
            sent += counts.sent;
            assert!(counts.answered > 0, "{name}: {counts:#?}");
            let noticed = (counts.failed, counts.closed, counts.reset);
            assert_eq!(noticed, (0, 0, 0), "{name}: {counts:#?}");
        }
        println!(
            "{fault}: {:?} of outage; {sent} requests in {:.1} s, 0 failed, 0 closed, 0 reset; {} \
             events, {} containers right {:.2} s after the return, the next change in {:.0} ms",
            super::outage(),
            self.begun.elapsed().as_secs_f64(),
            self.publisher.events,
            self.publisher.expected.len(),
            settled.as_secs_f64(),
            next.as_secs_f64() * 1000.0,
        );
        self.publisher.stop().await;
    }
}
