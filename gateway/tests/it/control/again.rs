//! What the database may lack of what was delivered, and streams that are not the
//! ones it knows, with a real nats-server.

use std::path::Path;
use std::time::{Duration, Instant};

use edd_events::bus::{Bus as _, Durable, Message, NatsBus, Subscription as _};
use edd_events::consumer::{ACK_WAIT, ConsumerSpec};
use edd_events::stream::{COMPUTE, ensure};
use edd_route::RouteTable;
use edd_store::testing::Postgres;
use rustix::process::Signal;

use super::replicas::process;
use super::{announced, get, messages, publish_raw, ready, request, runs_at, started};
use crate::support::{Bus, DEADLINE, Gateway, Options, eventually};

/// The gateway's consumer.
const SPEC: ConsumerSpec = ConsumerSpec {
    stream: COMPUTE,
    durable: "gateway-service",
    filter: "compute.>",
    batch_max: 256,
};

/// The same folder again.
fn again(gateway: &Gateway, bus: &Bus) -> Options {
    let options = Options {
        folder: Some(gateway.folder.clone()),
        ..Options::default()
    };
    options.bus(bus)
}

async fn until_ready(gateway: &Gateway) {
    eventually("ready", || async {
        ready(gateway.admin).await.1 == "ready"
    })
    .await;
}

fn rules(table: &RouteTable) -> usize {
    let containers = table.containers();
    containers.filter(|c| c.rule(80).is_some()).count()
}

/// As a process that is killed: it is given these and never says a word.
async fn given_to_the_dead(bus: &Bus, count: usize) -> Vec<Message> {
    let nats = NatsBus::new(bus.js.clone());
    let binding = nats.bind(&Durable::from(&SPEC), 1).await.expect("bound");
    let mut dead = binding.subscription;
    let mut given = Vec::new();
    while given.len() < count {
        let next = tokio::time::timeout(DEADLINE, dead.next());
        given.push(next.await.expect("in time").expect("a message"));
    }
    given.extend(dead.end().await);
    given
}

/// What a killed process was given is in force at once, not after the ack wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_after_a_kill_waits_for_nothing() {
    const COUNT: usize = 40;
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    bus.container("c0", 1, "127.64.0.1", &[(80, 8080)]).await;
    gateway
        .until("c0", |table| runs_at(table, "c0", "127.64.0.1"))
        .await;
    let options = again(&gateway, &bus);
    gateway.stop().await;
    for n in 1..COUNT {
        bus.created(&format!("c{n}"), 1).await;
        bus.rule(&format!("c{n}"), 80, 8080).await;
    }
    bus.stopped("c0").await;
    let given = given_to_the_dead(&bus, 2 * COUNT - 1).await;
    // Newer than all that was given to the dead.
    bus.started("c0", "127.64.0.2", None).await;
    let begun = Instant::now();
    let gateway = Gateway::start(options).await;
    until_ready(&gateway).await;
    assert!(begun.elapsed() < ACK_WAIT / 2, "{:?}", begun.elapsed());
    let table = gateway.table();
    assert_eq!(rules(&table), COUNT, "ready means in force");
    gateway
        .until("the newest", |table| runs_at(table, "c0", "127.64.0.2"))
        .await;
    // They come again at last, and change nothing.
    for message in &given {
        let kind = async_nats::jetstream::AckKind::Nak(None);
        message.ack_with(kind).await.expect("sent");
    }
    let stream = bus.js.get_stream("COMPUTE").await.expect("a stream");
    eventually("all acknowledged", || async {
        let info = stream.consumer_info(SPEC.durable).await.expect("info");
        info.num_ack_pending == 0 && info.num_pending == 0
    })
    .await;
    assert!(runs_at(&gateway.table(), "c0", "127.64.0.2"));
    eventually("all announcements", || async {
        announced(&bus).await.len() >= COUNT
    })
    .await;
    gateway.stop().await;
    let mut told = announced(&bus).await;
    assert_eq!(told.len(), COUNT);
    told.sort();
    told.dedup();
    assert_eq!(told.len(), COUNT, "each once");
}

/// Nor does one that runs already: what another one had in its hands when it was killed is in
/// force soon.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_dead_was_given_is_in_force_before_it_comes_again() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    until_ready(&gateway).await;
    let nats = NatsBus::new(bus.js.clone());
    let binding = nats.bind(&Durable::from(&SPEC), 1).await.expect("bound");
    let mut dead = binding.subscription;
    let mut given = None;
    for n in 0.. {
        assert!(n < 200, "never given to the other");
        bus.created(&format!("c{n}"), 1).await;
        // Perhaps it is given to the first; or it takes longer, and is not the newest then.
        let next = tokio::time::timeout(Duration::from_millis(200), dead.next());
        if let Ok(next) = next.await {
            given = Some(next.expect("a message"));
            break;
        }
    }
    drop(dead);
    let given = given.expect("a message");
    let id = given.subject.split('.').nth(2).expect("the id");
    let begun = Instant::now();
    gateway
        .until("what the dead was given", |table| {
            table.container(id).is_some()
        })
        .await;
    assert!(begun.elapsed() < ACK_WAIT / 2, "{:?}", begun.elapsed());
    until_ready(&gateway).await;
    gateway.stop().await;
}

/// What is read past the consumer is judged as what comes from it is, and the dead letters are
/// written once.
#[tokio::test(flavor = "multi_thread")]
async fn bad_events_that_are_read_again_are_counted_and_buried_once() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    bus.container("c0", 1, "127.64.0.1", &[]).await;
    gateway
        .until("c0", |table| runs_at(table, "c0", "127.64.0.1"))
        .await;
    let options = again(&gateway, &bus);
    gateway.stop().await;
    let subject = "compute.container.c0.started";
    publish_raw(&bus, subject, [0xff]).await;
    // Outside of all that containers may have.
    publish_raw(&bus, subject, started("c0", "8.8.8.8")).await;
    let given = given_to_the_dead(&bus, 2).await;
    let gateway = Gateway::start(options).await;
    until_ready(&gateway).await;
    let (_, metrics) = request(gateway.admin, "GET", "/metrics").await;
    let counted = |result: &str, count: usize| {
        let labels = format!("subject=\"compute.container.*.started\",result=\"{result}\"");
        let line = format!("edd_gateway_events_total{{{labels}}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    };
    counted("left_out", 2);
    for message in &given {
        let kind = async_nats::jetstream::AckKind::Nak(None);
        message.ack_with(kind).await.expect("sent");
    }
    let stream = bus.js.get_stream("COMPUTE").await.expect("a stream");
    eventually("all acknowledged", || async {
        let info = stream.consumer_info(SPEC.durable).await.expect("info");
        info.num_ack_pending == 0 && info.num_pending == 0
    })
    .await;
    let all = messages(&bus, "COMPUTE").await;
    let letters = all.iter().filter(|(subject, _)| subject.ends_with(".dlq"));
    assert_eq!(letters.count(), 2);
    assert!(runs_at(&gateway.table(), "c0", "127.64.0.1"));
    gateway.stop().await;
}

/// Killed under load, alone and beside others on one database.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_ready_soon() {
    const COUNT: usize = 300;
    let shared = Postgres::shared().await.database().await.to_string();
    for (name, others) in [("sqlite", 0), ("postgres", 1)] {
        let bus = Bus::start().await;
        let folder = tempfile::tempdir().expect("a folder");
        let url = match others {
            0 => format!("sqlite://{}", folder.path().join("a.db").display()),
            _ => shared.clone(),
        };
        let mut running = Vec::new();
        for other in 0..others {
            let at = folder.path().join(format!("other{other}"));
            running.push(process(&at, &bus, &url).await);
        }
        let at = folder.path().join("victim");
        let (mut victim, mut admin) = process(&at, &bus, &url).await;
        let mut slowest = Duration::ZERO;
        for n in 0..COUNT {
            let id = format!("c{n}");
            bus.created(&id, 1).await;
            bus.rule(&id, 80, 8080).await;
            if n % 100 == 50 {
                victim.signal(Signal::KILL);
                victim.ended().await;
                let begun = Instant::now();
                (victim, admin) = process(&at, &bus, &url).await;
                eventually("ready again", || async { ready(admin).await.1 == "ready" }).await;
                slowest = slowest.max(begun.elapsed());
            }
        }
        println!("{name}: ready after a SIGKILL within {slowest:?}");
        assert!(slowest < ACK_WAIT / 2, "{name}: {slowest:?}");
        let begun = Instant::now();
        eventually("all rules", || async {
            let (_, answer) = get(admin, "/api/v1/containers").await;
            let all = answer["containers"].as_array().expect("a list");
            let with_rule = all.iter().filter(|c| !c["rules"][0].is_null());
            with_rule.count() == COUNT
        })
        .await;
        // Alone, nothing is left to wait for.
        assert!(others > 0 || begun.elapsed() < ACK_WAIT / 2, "{name}");
        drop((victim, running));
    }
}

async fn copy(from: &Path, to: &Path) {
    use sqlx::{ConnectOptions as _, Connection as _};
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(from);
    let mut connection = options.connect().await.expect("opened");
    sqlx::query("VACUUM INTO ?")
        .bind(to.display().to_string())
        .execute(&mut connection)
        .await
        .expect("copied");
    connection.close().await.expect("closed");
}

/// A copy is taken while events are in flight at a dead process, behind ones that are
/// handled already; put back when all were acknowledged, it lacks them.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_with_gaps_gets_the_events_that_it_lacks() {
    let bus = Bus::start().await;
    let url = |path: &Path| format!("sqlite://{}", path.display());
    let folder = tempfile::tempdir().expect("a folder");
    let (file, backup) = (folder.path().join("a.db"), folder.path().join("b.db"));
    let options = Options::default().bus(&bus);
    let gateway = Gateway::start(options.flag("--database-url", url(&file))).await;
    bus.container("c0", 1, "127.64.0.1", &[]).await;
    until_ready(&gateway).await;
    gateway
        .until("c0", |table| runs_at(table, "c0", "127.64.0.1"))
        .await;
    // Both have asked for events, and get some of them.
    let nats = NatsBus::new(bus.js.clone());
    let binding = nats.bind(&Durable::from(&SPEC), 1).await.expect("bound");
    let mut dead = binding.subscription;
    let (mut count, mut given) = (0, Vec::new());
    while given.len() < 5 {
        count += 1;
        bus.created(&format!("c{count}"), 1).await;
        let next = tokio::time::timeout(Duration::from_millis(20), dead.next());
        if let Ok(next) = next.await {
            given.push(next.expect("a message"));
        }
    }
    given.extend(dead.end().await);
    // Behind the gap.
    bus.container("last", 1, "127.64.0.9", &[]).await;
    gateway
        .until("the last", |table| runs_at(table, "last", "127.64.0.9"))
        .await;
    assert!(gateway.table().containers().len() < count, "there are gaps");
    copy(&file, &backup).await;
    for message in &given {
        let kind = async_nats::jetstream::AckKind::Nak(None);
        message.ack_with(kind).await.expect("sent");
    }
    gateway
        .until("all", |table| table.containers().len() == count + 2)
        .await;
    let stream = bus.js.get_stream("COMPUTE").await.expect("a stream");
    let info = || async { stream.consumer_info(SPEC.durable).await.expect("info") };
    eventually("all acknowledged", || async {
        info().await.num_ack_pending == 0
    })
    .await;
    let before = info().await;
    let again = again(&gateway, &bus).flag("--database-url", url(&backup));
    let last_good = gateway.folder.path().join("state/last-good-table");
    gateway.stop().await;
    // It is about the database alone.
    std::fs::remove_file(last_good).expect("written at the end");
    let gateway = Gateway::start(again).await;
    until_ready(&gateway).await;
    assert_eq!(gateway.table().containers().len(), count + 2);
    assert_eq!(
        info().await.created,
        before.created,
        "the durable consumer stays"
    );
    gateway.stop().await;
}

/// Another stream of this name, with sequences of its own.
async fn make_anew(bus: &Bus) {
    bus.js.delete_stream("COMPUTE").await.expect("deleted");
    ensure(&bus.js, &COMPUTE, 1).await.expect("made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_while_it_runs_is_followed_from_its_start() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    bus.container("c1", 1, "127.64.0.1", &[(80, 8080)]).await;
    for n in 0..20 {
        bus.ssh("c1", n % 2 == 0).await;
    }
    bus.started("c1", "127.64.0.2", None).await;
    gateway
        .until("the last event", |table| runs_at(table, "c1", "127.64.0.2"))
        .await;
    until_ready(&gateway).await;
    for round in 0..2 {
        make_anew(&bus).await;
        // Without versions, and with sequences far below.
        bus.stopped("c1").await;
        gateway
            .until("the stop", |table| {
                table.container("c1").is_some_and(|c| c.running.is_none())
            })
            .await;
        let address = format!("127.64.1.{round}");
        bus.started("c1", &address, None).await;
        gateway
            .until("the start", |table| runs_at(table, "c1", &address))
            .await;
        until_ready(&gateway).await;
    }
    assert!(
        gateway
            .table()
            .container("c1")
            .is_some_and(|c| c.rule(80).is_some())
    );
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_and_grown_is_noticed_at_the_start() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    bus.container("c1", 1, "127.64.0.1", &[]).await;
    gateway
        .until("c1", |table| runs_at(table, "c1", "127.64.0.1"))
        .await;
    let again = again(&gateway, &bus);
    gateway.stop().await;
    make_anew(&bus).await;
    bus.stopped("c1").await;
    for n in 2..40 {
        bus.created(&format!("c{n}"), 1).await;
    }
    let gateway = Gateway::start(again).await;
    until_ready(&gateway).await;
    let table = gateway.table();
    assert_eq!(table.containers().len(), 39);
    assert!(table.container("c1").is_some_and(|c| c.running.is_none()));
    gateway.stop().await;
}

/// The database hangs over one event, and whoever waits for it is killed: as often as it takes,
/// and then all else is in force.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_ends_every_process_is_left_to_the_durable_consumer() {
    const OTHERS: usize = 10;
    let bus = Bus::start().await;
    let url = Postgres::shared().await.database().await.to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let (mut daemon, admin) = process(folder.path(), &bus, &url).await;
    eventually("ready", || async { ready(admin).await.1 == "ready" }).await;
    daemon.signal(Signal::TERM);
    daemon.ended().await;
    let operator = sqlx::PgPool::connect(&url).await.expect("connected");
    let run = async |sql: &'static str| {
        sqlx::raw_sql(sql).execute(&operator).await.expect(sql);
    };
    run(
        "CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_sleep(600); RETURN NEW; END $$",
    )
    .await;
    run(
        "CREATE TRIGGER hang BEFORE INSERT ON containers FOR EACH ROW \
         WHEN (NEW.id = 'deadly') EXECUTE FUNCTION hang()",
    )
    .await;
    let hangs = async || {
        let pid = sqlx::query_scalar::<_, i32>(
            "SELECT pid FROM pg_stat_activity \
             WHERE datname = current_database() AND wait_event = 'PgSleep'",
        );
        pid.fetch_optional(&operator).await.expect("an answer")
    };
    for n in 0..OTHERS {
        if n == OTHERS / 2 {
            bus.created("deadly", 1).await;
        }
        bus.created(&format!("c{n}"), 1).await;
    }
    let given = given_to_the_dead(&bus, OTHERS + 1).await;
    let mut deaths = 0;
    let (_alive, admin) = loop {
        // However long this takes, the durable consumer does not bring it again.
        for message in &given {
            let kind = async_nats::jetstream::AckKind::Progress;
            message.ack_with(kind).await.expect("sent");
        }
        let (mut daemon, admin) = process(folder.path(), &bus, &url).await;
        eventually("it hangs, or is ready", || async {
            hangs().await.is_some() || ready(admin).await.1 == "ready"
        })
        .await;
        let Some(backend) = hangs().await else {
            break (daemon, admin);
        };
        daemon.signal(Signal::KILL);
        daemon.ended().await;
        // The server does not hear of it.
        sqlx::query("SELECT pg_terminate_backend($1)")
            .bind(backend)
            .execute(&operator)
            .await
            .expect("ended");
        deaths += 1;
        assert!(deaths <= 5, "it goes on dying");
    };
    assert!(deaths >= 3, "{deaths}: nothing is left out at once");
    let known = || async {
        let (_, answer) = get(admin, "/api/v1/containers").await;
        let all = answer["containers"].as_array().expect("a list");
        let ids = all.iter().filter_map(|c| c["id"].as_str());
        ids.map(str::to_owned).collect::<Vec<_>>()
    };
    let ids = known().await;
    assert_eq!(ids.len(), OTHERS, "{ids:?}");
    assert!(!ids.contains(&"deadly".to_owned()));
    // It is not lost: the durable consumer has it still.
    run("DROP TRIGGER hang ON containers").await;
    for message in &given {
        let kind = async_nats::jetstream::AckKind::Nak(None);
        message.ack_with(kind).await.expect("sent");
    }
    eventually("the last one", || async {
        known().await.contains(&"deadly".to_owned())
    })
    .await;
}
