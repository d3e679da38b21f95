//! Slow attackers beside a normal client, and a judge of TLS servers.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::ask::{Asker, Question, Speaks, unwatched};
use crate::support::process::Process;
use crate::support::{Bus, DEADLINE, Gateway, Options, Origin, eventually, free_port, program};

const HOST: &str = "slow1.compute.localhost";

/// Latencies of a client that asks one after the other, half of the time on a new connection;
/// the 99th percentile.
async fn p99(http: std::net::SocketAddr, count: usize) -> Duration {
    let seen = unwatched();
    let mut latencies = Vec::with_capacity(count);
    let mut kept = Asker::dial(Speaks::H1, http).await;
    for number in 0..count {
        let begun = Instant::now();
        let heard = if number % 2 == 0 {
            kept.ask(&Question::get(HOST, "/"), &seen).await
        } else {
            let mut fresh = Asker::dial(Speaks::H1, http).await;
            fresh.ask(&Question::get(HOST, "/"), &seen).await
        };
        latencies.push(begun.elapsed());
        assert_eq!(heard.status, 200, "{heard:?}");
    }
    latencies.sort_unstable();
    latencies[count * 99 / 100]
}

/// S13: two thousand clients that never finish their heads, and come back when they are sent
/// away, leave a normal client's 99th percentile within twice of what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_slow_heads_do_not_slow_others_down() {
    const ATTACKERS: usize = 2000;
    const ASKED: usize = 2000;
    /// What the machine itself adds now and then.
    const NOISE: Duration = Duration::from_millis(2);
    let origin = Origin::friendly("127.64.0.2").await;
    let bus = Bus::start().await;
    let folder = tempfile::TempDir::new().unwrap();
    let nats = format!("--nats-url={}", bus.server.url());
    let ports = format!("--ports={}", free_port());
    let flags = [
        "--platform-domain=localhost",
        "--container-cidrs=127.64.0.0/16",
        "--header-timeout=3s",
        "--workers=1",
        &nats,
        &ports,
    ];
    let process = Process::start(folder.path(), 10_000, &flags).await;
    let http = process.addresses["http"];
    bus.container("slow1", 1, "127.64.0.2", &[(80, origin.address.port())])
        .await;
    eventually("the container is routed", || async {
        let mut asker = Asker::dial(Speaks::H1, http).await;
        let heard = asker.ask(&Question::get(HOST, "/"), &unwatched()).await;
        heard.status == 200
    })
    .await;
    p99(http, 200).await;
    let mut figures = Vec::new();
    // A busy machine may disturb a measurement; a gateway that suffers does so each time.
    for _ in 0..4 {
        let calm = p99(http, ASKED).await;
        let stop = Arc::new(AtomicBool::new(false));
        let attacking = Arc::new(AtomicUsize::new(0));
        let mut attackers = Vec::new();
        for number in 0..ATTACKERS {
            let (stop, attacking) = (Arc::clone(&stop), Arc::clone(&attacking));
            attackers.push(tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    attack(http, number, &stop, &attacking).await;
                }
            }));
        }
        eventually("all attack", || async {
            attacking.load(Ordering::SeqCst) >= ATTACKERS * 95 / 100
        })
        .await;
        let attacked = p99(http, ASKED).await;
        stop.store(true, Ordering::SeqCst);
        for attacker in attackers {
            attacker.abort();
        }
        figures.push((calm, attacked));
        println!("p99 {calm:?} alone, {attacked:?} beside {ATTACKERS} slow heads");
        if attacked <= calm * 2 + NOISE {
            return;
        }
    }
    panic!("p99 alone and attacked, each time: {figures:?}");
}

/// One slow head, a byte now and then, until the gateway has had enough.
async fn attack(
    http: std::net::SocketAddr,
    number: usize,
    stop: &AtomicBool,
    attacking: &AtomicUsize,
) {
    let Ok(mut stream) = TcpStream::connect(http).await else {
        return;
    };
    let head = format!("GET /{number} HTTP/1.1\r\nHost: {HOST}\r\nX-Slow: ");
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    attacking.fetch_add(1, Ordering::SeqCst);
    let mut answer = [0; 512];
    while !stop.load(Ordering::SeqCst) {
        // The pace of the attack, not a wait for a condition.
        match timeout(Duration::from_millis(700), stream.read(&mut answer)).await {
            Ok(_) => break,
            Err(_) if stream.write_all(b"a").await.is_err() => break,
            Err(_) => {}
        }
    }
    attacking.fetch_sub(1, Ordering::SeqCst);
}

/// S13: slowhttptest's attacks, all four at once: slow heads, slow bodies, ranges, slow reading.
/// It asks for a page itself meanwhile, and must get it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slowhttptest_cannot_take_the_gateway_away() {
    let origin = Origin::friendly("127.0.0.1").await;
    let routes = format!(
        "routes:\n- {{host: localhost, target: '{}'}}\n",
        origin.address
    );
    let options = Options::routes(routes)
        .flag("--header-timeout", "2s")
        .flag("--body-timeout", "2s");
    let gateway = Gateway::start(options).await;
    let port = gateway.addresses.https.port();
    let url = format!("https://localhost:{port}/download?mib=1");
    let mut attacks = Vec::new();
    for more in [
        &["-H"][..],
        &["-B", "-s", "4096"],
        &["-R"],
        &["-X", "-n", "1", "-w", "1", "-y", "16", "-z", "8", "-k", "2"],
    ] {
        let mut command = Command::new(program("slowhttptest", "EDD_SLOWHTTPTEST"));
        // 200 connections at 200 a second for 6 s, a bit of data each second; unanswered for 3 s
        // means unavailable.
        command
            .args(more)
            .args(["-c", "200", "-r", "200", "-i", "1", "-l", "6", "-p", "3"])
            .args(["-u", &url])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        attacks.push(tokio::spawn(async move { (more, command.output().await) }));
    }
    for attack in attacks {
        let (more, output) = timeout(2 * DEADLINE, attack)
            .await
            .expect("an end in time")
            .unwrap();
        let output = output.expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let plain: String = said.chars().filter(|c| !c.is_control()).collect();
        assert!(
            plain.contains("service available") || plain.contains("Exit status"),
            "{more:?}: {said}"
        );
        assert!(!unavailable(&said), "{more:?}: {said}");
        let got = gateway.https("localhost", "/x", &[]).await;
        assert_eq!(got.status, 200, "after {more:?}");
    }
    eventually("nothing is held", || async {
        gateway.shared.gate.open() == 0
    })
    .await;
    gateway.stop().await;
}

/// Whether one of its reports says that the page did not come.
fn unavailable(said: &str) -> bool {
    said.lines()
        .any(|line| line.contains("service available") && line.contains("NO"))
}

/// testssl.sh finds no protocol, cipher or weakness to complain about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn testssl_finds_nothing_to_complain_about() {
    let gateway = Gateway::start(Options::default()).await;
    let folder = tempfile::TempDir::new().unwrap();
    let report = folder.path().join("report.json");
    let testssl = program("testssl", "EDD_TESTSSL");
    let mut command = Command::new(&testssl);
    command
        .args([
            "--quiet",
            "--color",
            "0",
            "--warnings",
            "off",
            "--ip",
            "one",
        ])
        // Protocols, kinds of ciphers, weaknesses.
        .args(["--protocols", "--std", "--vulnerable", "--nodns", "min"])
        .arg("--jsonfile")
        .arg(&report)
        .arg(format!("localhost:{}", gateway.addresses.https.port()))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    // Where its tables are when it was only unpacked.
    let unpacked = testssl.ancestors().find_map(|folder| {
        let tables = folder.join("etc/testssl");
        (folder != std::path::Path::new("/") && tables.is_dir()).then_some(tables)
    });
    if let Some(tables) = unpacked {
        command.env("TESTSSL_INSTALL_DIR", tables);
    }
    let output = timeout(8 * DEADLINE, command.output()).await;
    let output = output.expect("an end in time").expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let report = std::fs::read_to_string(&report).unwrap_or_else(|e| panic!("{e}: {said}"));
    let findings: Vec<serde_json::Value> = serde_json::from_str(&report).expect("JSON");
    let mut seen = std::collections::HashMap::new();
    for finding in &findings {
        let text = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        let (id, severity) = (text("id"), text("severity"));
        assert!(
            matches!(severity.as_str(), "OK" | "INFO" | "DEBUG")
                // About the machine's own openssl.
                || id == "engine_problem",
            "{finding}"
        );
        seen.insert(id, text("finding"));
    }
    for (id, expected) in [
        ("SSLv3", "not offered"),
        ("TLS1", "not offered"),
        ("TLS1_1", "not offered"),
        ("TLS1_2", "offered"),
        ("TLS1_3", "offered"),
        ("heartbleed", "not vulnerable"),
        ("ROBOT", "not vulnerable"),
    ] {
        let found = seen.get(id).unwrap_or_else(|| panic!("no {id}: {said}"));
        assert!(found.starts_with(expected), "{id}: {found}");
    }
    gateway.stop().await;
}
