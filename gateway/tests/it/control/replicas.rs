//! Several gateways on one PostgreSQL, with a real nats-server.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use edd_events::consumer::ACK_WAIT;
use edd_events::stream::{COMPUTE, ensure};
use edd_route::RouteTable;
use edd_store::testing::Postgres;
use rustix::process::Signal;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::{announced, get, runs_at};
use crate::support::daemon::Daemon;
use crate::support::{Bus, DEADLINE, Gateway, Options, eventually, free_port};

/// A gateway on this database.
pub(super) fn on(bus: &Bus, url: &str) -> Options {
    Options::default()
        .bus(bus)
        .flag("--database-url", url.to_owned())
}

/// Containers and rules, for comparison.
fn content(table: &RouteTable) -> Vec<String> {
    let specs = table
        .containers()
        .map(|found| format!("{:?}", found.to_spec()));
    let mut specs: Vec<_> = specs.collect();
    specs.sort();
    specs
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_on_one_database_follow_each_other() {
    let bus = Bus::start().await;
    let url = Postgres::shared().await.database().await.to_string();
    let gateways = [
        Gateway::start(on(&bus, &url)).await,
        Gateway::start(on(&bus, &url)).await,
        Gateway::start(on(&bus, &url)).await,
    ];
    for n in 0..60 {
        let id = format!("c{n}");
        bus.container(&id, 1, &format!("127.64.0.{n}"), &[(80, 8080)])
            .await;
    }
    // A batch of one may overtake a batch of another: rules that are gone before they are there
    // are never told.
    for gateway in &gateways {
        let has_rules = |table: &RouteTable| {
            let rules = table.containers().filter(|c| c.rule(80).is_some());
            rules.count() == 60
        };
        gateway.until("all rules", has_rules).await;
    }
    for n in 0..60 {
        let id = format!("c{n}");
        match n % 3 {
            0 => bus.stopped(&id).await,
            1 => bus.rule_deleted(&id, 80).await,
            _ => bus.deleted(&id, 1).await,
        }
    }
    bus.container("last", 1, "127.64.1.1", &[(443, 443)]).await;
    // Nor does the last one to come mean that those before it are there.
    let at_the_end = |table: &RouteTable| {
        let has_rule = |id: &str, port| table.container(id).is_some_and(|c| c.rule(port).is_some());
        (0..60).all(|n| {
            let id = format!("c{n}");
            let found = table.container(&id);
            match n % 3 {
                0 => found.is_some_and(|c| c.running.is_none()),
                1 => found.is_some() && !has_rule(&id, 80),
                _ => found.is_none(),
            }
        }) && has_rule("last", 443)
            && runs_at(table, "last", "127.64.1.1")
            && table.containers().len() == 41
            && table.containers().all(|c| c.to_spec().ssh_enabled)
    };
    for gateway in &gateways {
        gateway.until("the end", at_the_end).await;
    }
    let expected = content(&gateways[0].table());
    for gateway in &gateways {
        assert_eq!(content(&gateway.table()), expected, "the same");
    }
    let told = 61 + 40;
    eventually("all announcements", || async {
        announced(&bus).await.len() >= told
    })
    .await;
    for gateway in gateways {
        gateway.stop().await;
    }
    let mut all = announced(&bus).await;
    assert_eq!(all.len(), told);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), told, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_has_stored_can_be_waited_for_at_the_other() {
    let bus = Bus::start().await;
    let url = Postgres::shared().await.database().await.to_string();
    let one = Gateway::start(on(&bus, &url)).await;
    let other = Gateway::start(on(&bus, &url)).await;
    bus.container("c1", 1, "127.64.0.1", &[(80, 8080)]).await;
    let wait = "/api/v1/wait?container=c1&address=127.64.0.1&ports=80&ssh=true&timeout=60s";
    let mut revision = 0;
    for gateway in [&one, &other] {
        let (code, answer) = get(gateway.admin, wait).await;
        assert_eq!(code, 200, "{answer}");
        assert!(runs_at(&gateway.table(), "c1", "127.64.0.1"));
        revision = revision.max(answer["revision"].as_u64().expect("a number"));
    }
    for gateway in [&one, &other] {
        let target = format!("/api/v1/wait?revision={revision}&timeout=60s");
        assert_eq!(get(gateway.admin, &target).await.0, 200);
        for late in ["ports=80,443", "ports=80&ssh=false"] {
            let late = format!("/api/v1/wait?container=c1&{late}&timeout=50ms");
            assert_eq!(get(gateway.admin, &late).await.0, 504, "{late}");
        }
    }
    assert_eq!(get(one.admin, "/api/v1/wait").await.0, 400);
    one.stop().await;
    other.stop().await;
}

/// What was switched off and on again at one gateway within one batch has ended at all.
#[tokio::test(flavor = "multi_thread")]
async fn what_ends_and_begins_again_at_one_has_ended_at_the_others() {
    let bus = Bus::start().await;
    let url = Postgres::shared().await.database().await.to_string();
    // The second takes no events: it only follows.
    let alone = Options::default().flag("--database-url", url.clone());
    let gateways = [
        Gateway::start(on(&bus, &url)).await,
        Gateway::start(alone).await,
    ];
    bus.container("c1", 1, "127.64.0.1", &[]).await;
    let mut before = Vec::new();
    for gateway in &gateways {
        gateway
            .until("ssh on", |table| {
                table.container("c1").is_some_and(|c| c.ssh.is_some())
            })
            .await;
        let table = gateway.table();
        before.push(table.container("c1").unwrap().ssh.clone().unwrap());
    }
    bus.ssh("c1", false).await;
    bus.ssh("c1", true).await;
    for (gateway, fact) in gateways.iter().zip(&before) {
        eventually("revoked", || async { fact.is_revoked() }).await;
        gateway
            .until("on again", |table| {
                table.container("c1").is_some_and(|c| c.ssh.is_some())
            })
            .await;
    }
    for gateway in gateways {
        gateway.stop().await;
    }
}

/// The way to a server, which can be cut.
pub(super) struct Way {
    to: SocketAddr,
    pub(super) at: SocketAddr,
    relay: JoinHandle<()>,
}

impl Way {
    pub(super) async fn new(to: SocketAddr) -> Self {
        // Not one that somebody is given while it is cut.
        let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listener = TcpListener::bind(at).await.expect("a port");
        let relay = tokio::spawn(relay(listener, to));
        Self { to, at, relay }
    }

    /// What runs over it breaks off, and nothing new is taken.
    pub(super) async fn cut(&mut self) {
        self.relay.abort();
        let _ = (&mut self.relay).await;
    }

    pub(super) async fn mend(&mut self) {
        let listener = TcpListener::bind(self.at).await.expect("the same port");
        self.relay = tokio::spawn(relay(listener, self.to));
    }
}

async fn relay(listener: TcpListener, to: SocketAddr) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        connections.spawn(async move {
            let Ok(mut server) = TcpStream::connect(to).await else {
                return;
            };
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}

/// Two gateways on one database, both ready, the second one over a way that can be cut.
pub(super) async fn pair(bus: &Bus) -> (Gateway, Gateway, Way) {
    let url = Postgres::shared().await.database().await.to_string();
    let (server, name) = url
        .strip_prefix("postgres://edd@")
        .and_then(|rest| rest.split_once('/'))
        .expect("a URL");
    let way = Way::new(server.parse().expect("an address")).await;
    let over_it = format!("postgres://edd@{}/{name}", way.at);
    let whole = Gateway::start(on(bus, &url)).await;
    let cut_off = Gateway::start(on(bus, &over_it)).await;
    for gateway in [&whole, &cut_off] {
        eventually("ready", || async {
            super::ready(gateway.admin).await.1 == "ready"
        })
        .await;
    }
    (whole, cut_off, way)
}

/// One that has NATS and no database leaves the events to the others, and none is a dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cut_off_from_the_database_holds_nothing_up() {
    const COUNT: usize = 300;
    let bus = Bus::start().await;
    let (whole, cut_off, mut way) = pair(&bus).await;
    // Both take events: half of the next ones are on their way to the one that cannot store them.
    way.cut().await;
    let began = Instant::now();
    for n in 0..COUNT {
        let id = format!("c{n}");
        bus.created(&id, 1).await;
        bus.started(&id, &format!("127.64.{}.{}", n / 200, n % 200), None)
            .await;
    }
    let all_run = |table: &RouteTable| {
        let running = table.containers().filter(|c| c.running.is_some());
        running.count() == COUNT
    };
    whole.until("all of them", all_run).await;
    assert!(began.elapsed() < ACK_WAIT, "{:?}", began.elapsed());
    way.mend().await;
    cut_off.until("all of them, later", all_run).await;
    whole.stop().await;
    cut_off.stop().await;
    let letters = super::messages(&bus, "COMPUTE").await;
    assert!(
        letters
            .iter()
            .all(|(subject, _)| !subject.ends_with(".dlq"))
    );
}

/// What one has found of a stream that was made anew holds for the other, whose sequences are
/// those of the old one: it does not begin once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_is_found_so_once() {
    let bus = Bus::start().await;
    let url = Postgres::shared().await.database().await.to_string();
    let gateway = Gateway::start(on(&bus, &url)).await;
    bus.container("c1", 1, "127.64.0.1", &[]).await;
    for n in 0..20 {
        bus.ssh("c1", n % 2 == 0).await;
    }
    bus.started("c1", "127.64.0.2", None).await;
    gateway
        .until("the last event", |table| runs_at(table, "c1", "127.64.0.2"))
        .await;
    eventually("ready", || async {
        super::ready(gateway.admin).await.1 == "ready"
    })
    .await;
    // It has read the database, and cannot look at the stream yet.
    let mut way = Way::new(([127, 0, 0, 1], bus.server.port()).into()).await;
    way.cut().await;
    let late = Options::default()
        .flag("--database-url", url.clone())
        .flag("--nats-url", format!("nats://{}", way.at));
    let late = Gateway::start(late).await;
    late.until("the database", |table| runs_at(table, "c1", "127.64.0.2"))
        .await;
    bus.js.delete_stream("COMPUTE").await.expect("deleted");
    ensure(&bus.js, &COMPUTE, 1).await.expect("made");
    bus.stopped("c1").await;
    bus.started("c1", "127.64.0.3", None).await;
    gateway
        .until("the new stream", |table| runs_at(table, "c1", "127.64.0.3"))
        .await;
    way.mend().await;
    eventually("ready too", || async {
        super::ready(late.admin).await.1 == "ready"
    })
    .await;
    let stored = sqlx::PgPool::connect(&url).await.expect("connected");
    let sequence: i64 = sqlx::query_scalar("SELECT run_sequence FROM containers WHERE id = 'c1'")
        .fetch_one(&stored)
        .await
        .expect("a row");
    assert_eq!(sequence, 2, "where it stands in the new stream");
    late.stop().await;
    gateway.stop().await;
}

/// A standby takes over that lacks the last transactions, of events that were acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_set_back_while_they_run_gets_the_events_again() {
    let bus = Bus::start().await;
    let postgres = Postgres::shared().await;
    let (database, operator) = (postgres.database().await, postgres.database().await);
    let operator = sqlx::PgPool::connect(&operator.to_string())
        .await
        .expect("connected");
    let url = database.to_string();
    let (server, name) = url
        .strip_prefix("postgres://edd@")
        .and_then(|rest| rest.split_once('/'))
        .expect("a URL");
    let mut way = Way::new(server.parse().expect("an address")).await;
    let over_it = format!("postgres://edd@{}/{name}", way.at);
    let gateways = [
        Gateway::start(on(&bus, &over_it)).await,
        Gateway::start(on(&bus, &over_it)).await,
    ];
    let until_ready = || async {
        for gateway in &gateways {
            eventually("ready", || async {
                super::ready(gateway.admin).await.1 == "ready"
            })
            .await;
        }
    };
    until_ready().await;
    bus.container("c1", 1, "127.64.0.1", &[(80, 8080)]).await;
    for gateway in &gateways {
        let both = |table: &RouteTable| table.container("c1").is_some_and(|c| c.rule(80).is_some());
        gateway.until("c1", both).await;
    }
    let run = |sql: String| {
        let operator = operator.clone();
        async move {
            let done = sqlx::query(sqlx::AssertSqlSafe(sql))
                .execute(&operator)
                .await;
            done.is_ok()
        }
    };
    way.cut().await;
    // As soon as nobody is connected to it.
    let standby = format!("CREATE DATABASE {name}_standby TEMPLATE {name}");
    eventually("a standby", || run(standby.clone())).await;
    way.mend().await;
    bus.container("c2", 1, "127.64.0.2", &[]).await;
    bus.stopped("c1").await;
    let newest = |table: &RouteTable| {
        let c1 = table.container("c1");
        c1.is_some_and(|c| c.running.is_none()) && runs_at(table, "c2", "127.64.0.2")
    };
    for gateway in &gateways {
        gateway.until("what the standby lacks", newest).await;
    }
    until_ready().await;
    let facts = gateways.each_ref().map(|gateway| {
        let table = gateway.table();
        let c2 = table.container("c2").expect("there");
        c2.running.as_ref().expect("it runs").fact.clone()
    });
    way.cut().await;
    eventually("the old one is gone", || {
        run(format!("DROP DATABASE {name}"))
    })
    .await;
    let renamed = format!("ALTER DATABASE {name}_standby RENAME TO {name}");
    eventually("it took over", || run(renamed.clone())).await;
    way.mend().await;
    let stored = sqlx::PgPool::connect(&url).await.expect("connected");
    eventually("stored again", || async {
        let count = sqlx::query_scalar::<_, i64>(
            "SELECT COUNT(*) FROM containers WHERE (id = 'c1' AND address IS NULL) \
             OR (id = 'c2' AND address IS NOT NULL)",
        );
        count.fetch_one(&stored).await.is_ok_and(|count| count == 2)
    })
    .await;
    stored.close().await;
    until_ready().await;
    for (gateway, fact) in gateways.iter().zip(&facts) {
        gateway.until("as before", newest).await;
        assert!(!fact.is_revoked(), "its connections live on");
    }
    for gateway in gateways {
        gateway.stop().await;
    }
}

/// A gateway as a process; its admin address.
pub(super) async fn process(
    folder: &std::path::Path,
    bus: &Bus,
    url: &str,
) -> (Daemon, SocketAddr) {
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join("routes.yaml"), "routes: []\n").expect("a file");
    let flags = [
        format!("--database-url={url}"),
        format!("--nats-url={}", bus.server.url()),
        "--container-cidrs=127.64.0.0/16".to_owned(),
        format!("--ports={}", free_port()),
        "--admin-addr=127.0.0.1:0".to_owned(),
        "--http-addr=127.0.0.1:0".to_owned(),
        "--https-addr=127.0.0.1:0".to_owned(),
        "--ssh-addr=127.0.0.1:0".to_owned(),
    ];
    let mut daemon = Daemon::start(Daemon::command(folder, "exec \"$@\"", &flags));
    let admin = daemon.address("admin").await;
    (daemon, admin)
}

async fn containers(admin: SocketAddr) -> Vec<Value> {
    let (code, answer) = get(admin, "/api/v1/containers").await;
    assert_eq!(code, 200, "{answer}");
    answer["containers"].as_array().expect("a list").clone()
}

/// Killed, stopped in the middle of whatever it does, cut off: the others go on, and nothing is
/// lost or told twice.
#[tokio::test(flavor = "multi_thread")]
async fn one_may_die_or_stall_at_any_time() {
    const COUNT: usize = 400;
    let bus = Bus::start().await;
    let url = Postgres::shared().await.database().await.to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let (survivor, _) = process(&folder.path().join("a"), &bus, &url).await;
    let (mut victim, _) = process(&folder.path().join("b"), &bus, &url).await;
    let (stalled, admin) = process(&folder.path().join("c"), &bus, &url).await;
    for n in 0..COUNT {
        match n {
            100 => {
                victim.signal(Signal::KILL);
                victim.ended().await;
            }
            150 => stalled.signal(Signal::STOP),
            250 => (victim, _) = process(&folder.path().join("b"), &bus, &url).await,
            300 => stalled.signal(Signal::CONT),
            _ => {}
        }
        let id = format!("c{n}");
        let address = format!("127.64.{}.{}", n / 200, n % 200);
        bus.created(&id, 1).await;
        bus.started(&id, &address, None).await;
        bus.rule(&id, 80, 8080).await;
    }
    let began = Instant::now();
    // What a killed process held comes again after the ack wait.
    while containers(admin).await.len() < COUNT
        || announced(&bus).await.len() < COUNT
        || containers(admin)
            .await
            .iter()
            .any(|c| c["address"].is_null() || c["rules"][0].is_null())
    {
        assert!(began.elapsed() < DEADLINE * 3, "not all is there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop((survivor, victim, stalled));
    let mut all = announced(&bus).await;
    assert_eq!(all.len(), COUNT);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), COUNT, "each once");
}
