//! A new gateway takes the listening sockets of a running one, and nobody notices.

use std::sync::Arc;
use std::time::{Duration, Instant};

use edd_gateway::take_over::{Predecessor, TakeOverError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::client::{Greeting, dial, request};
use crate::support::{
    Bus, DEADLINE, Gateway, Options, Origin, REVOCATION, eventually, free_port, read_head,
};

fn routes(host: &str, origin: &Origin) -> String {
    format!("routes:\n- host: {host}\n  target: {}\n", origin.address)
}

/// The gateway of these options, and the options of one that takes over from it.
struct Site {
    ports: String,
    routes: String,
    nats: Option<String>,
}

impl Site {
    fn new(routes: String) -> Self {
        let ports = [free_port(), free_port()].map(|port| port.to_string());
        Self {
            ports: ports.join(","),
            routes,
            nats: None,
        }
    }

    fn options(&self, workers: &str) -> Options {
        Options {
            nats_url: self.nats.clone(),
            ..Options::routes(&*self.routes)
        }
        .flag("--ports", &*self.ports)
        .flag("--workers", workers)
        .flag("--drain-timeout", "30s")
    }

    async fn first(&self, workers: &str) -> Gateway {
        Gateway::start(self.options(workers)).await
    }

    async fn successor(&self, of: &Gateway, workers: &str) -> Gateway {
        let mut options = self.options(workers);
        options.folder = Some(Arc::clone(&of.folder));
        options.flags.push("--take-over".into());
        Gateway::start(options).await
    }
}

async fn metrics(gateway: &Gateway) -> String {
    let mut stream = dial(gateway.admin).await;
    let text = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The number behind a series.
fn value(metrics: &str, series: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0, |line| line.trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_socket_is_accepted_from_whatever_the_number_of_threads() {
    let origin = Origin::friendly("127.0.0.1").await;
    let site = Site::new(routes("a.localhost", &origin));
    let mut old = site.first("3").await;
    let addresses = old.addresses.clone();
    for workers in ["1", "4", "2"] {
        let new = site.successor(&old, workers).await;
        assert_eq!(new.addresses, addresses);
        old.ended().await;
        // With three sockets behind the address, some of these would wait for ever if one of
        // them had nobody.
        for _ in 0..40 {
            let mut stream = Greeting::anyone("a.localhost")
                .dial(addresses.https)
                .await
                .unwrap();
            let answer = request(&mut stream, "a.localhost").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            drop(dial(addresses.ssh).await);
        }
        let mut banner = [0; 8];
        let mut ssh = dial(addresses.ssh).await;
        timeout(DEADLINE, ssh.read_exact(&mut banner))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&banner, b"SSH-2.0-");
        let port = dial(addresses.ports[1]).await;
        eventually("closed: no rule", || async {
            port.try_read(&mut [0]).is_ok_and(|read| read == 0)
        })
        .await;
        let text = metrics(&new).await;
        let answered =
            "edd_gateway_http_requests_total{route=\"a.localhost/\",method=\"GET\",status=\"200\"}";
        assert_eq!(value(&text, answered), 40, "{text}");
        old = new;
    }
    old.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_wait_are_the_successors_and_those_that_live_are_finished() {
    let origin = Origin::friendly("127.0.0.1").await;
    let site = Site::new(routes("a.localhost", &origin));
    let old = site.first("2").await;
    let https = old.addresses.https;
    let greeting = Greeting::anyone("a.localhost");
    let mut kept = greeting.dial(https).await.unwrap();
    let ask = "GET / HTTP/1.1\r\nHost: a.localhost\r\n\r\n";
    let ask_last = "GET / HTTP/1.1\r\nHost: a.localhost\r\nConnection: close\r\n\r\n";
    kept.write_all(ask.as_bytes()).await.unwrap();
    let mut some = vec![0; 4096];
    let read = kept.read(&mut some).await.unwrap();
    assert!(some[..read].starts_with(b"HTTP/1.1 200 "));

    // Connections come all the time.
    let coming = tokio::spawn(async move {
        let begun = Instant::now();
        let mut count = 0;
        // However few of them a busy machine serves.
        while count < 10 || begun.elapsed() < Duration::from_millis(1500) {
            let mut stream = Greeting::anyone("a.localhost").dial(https).await.unwrap();
            let answer = request(&mut stream, "a.localhost").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            count += 1;
        }
        count
    });
    let new = site.successor(&old, "2").await;
    // A kept connection's next request was on its way when the old process stopped: it is
    // answered, and the connection ends with it.
    kept.write_all(ask_last.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, kept.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    coming.await.unwrap();
    old.ended().await;
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_ends_before_it_is_ready_changes_nothing() {
    let origin = Origin::friendly("127.0.0.1").await;
    let site = Site::new(routes("a.localhost", &origin));
    let old = site.first("2").await;
    let state = old.path("state");
    for steps in 0..2 {
        let asked = Predecessor::ask(&state).await.unwrap();
        let (mut predecessor, inherited) = asked.unwrap();
        assert_eq!(inherited.len(), 2 * 4 + 2);
        if steps == 1 {
            predecessor.release().await.unwrap();
        }
        drop((predecessor, inherited));
        // Its control path goes on: a changed file is in force.
        let host = format!("b{steps}.localhost");
        std::fs::write(old.path("routes.yaml"), routes(&host, &origin)).unwrap();
        old.until(&host, |table| {
            table.static_specs().any(|spec| spec.host == host)
        })
        .await;
        let mut stream = Greeting::anyone(&host)
            .dial(old.addresses.https)
            .await
            .unwrap();
        let answer = request(&mut stream, &host).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    // One that cannot start: a port of its own is taken.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = site
        .options("2")
        .flag("--admin-addr", taken.local_addr().unwrap().to_string());
    options.folder = Some(Arc::clone(&old.folder));
    options.flags.push("--take-over".into());
    assert!(Gateway::try_start(options).await.is_err());
    assert!(metrics(&old).await.contains("edd_gateway_panics_total 0"));
    // And the next one that can, does.
    let new = site.successor(&old, "2").await;
    old.ended().await;
    new.stop().await;
}

/// Two control paths at once would write one database and answer each event twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_control_path_waits_until_that_of_a_failed_successor_has_ended() {
    let origin = Origin::friendly("127.0.0.1").await;
    let site = Site::new(routes("a.localhost", &origin));
    let old = site.first("2").await;
    let asked = Predecessor::ask(&old.path("state")).await.unwrap();
    let (mut successor, inherited) = asked.unwrap();
    drop(inherited);
    successor.release().await.unwrap();
    // What it must not say now: the take-over has failed. But nobody has said that what it
    // has begun has ended.
    let told = successor.release().await.unwrap_err();
    assert!(matches!(told, TakeOverError::Gone), "{told}");
    std::fs::write(old.path("routes.yaml"), routes("b.localhost", &origin)).unwrap();
    let is_followed = || {
        old.table()
            .static_specs()
            .any(|spec| spec.host == "b.localhost")
    };
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        assert!(!is_followed(), "two control paths");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut stream = Greeting::anyone("a.localhost")
        .dial(old.addresses.https)
        .await
        .unwrap();
    let answer = request(&mut stream, "a.localhost").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // It ends, and says so by closing the socket.
    drop(successor);
    eventually("the old control path goes on", || async { is_followed() }).await;
    old.stop().await;
}

/// A file that is away when the old one goes on may come back: a mount, a secret being replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_control_path_goes_on_as_soon_as_it_can() {
    let bus = Bus::start().await;
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let seed = folder.path().join("gateway.nk");
    let away = folder.path().join("away.nk");
    let text = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY\n";
    std::fs::write(&seed, text).unwrap();
    let options = Options {
        folder: Some(folder),
        ..Options::default()
    };
    let options = options.flag("--nats-nkey", seed.display().to_string());
    let old = Gateway::start(options.bus(&bus)).await;
    let asked = Predecessor::ask(&old.path("state")).await.unwrap();
    let (mut successor, inherited) = asked.unwrap();
    drop(inherited);
    successor.release().await.unwrap();
    std::fs::rename(&seed, &away).unwrap();
    drop(successor);
    bus.container("c1", 1, "127.64.0.1", &[]).await;
    // It has begun, and cannot.
    let ready = || crate::control::ready(old.admin);
    eventually("it says so", || async { ready().await.1 == "degraded" }).await;
    std::fs::rename(&away, &seed).unwrap();
    old.until("c1", |table| table.container("c1").is_some())
        .await;
    eventually("ready", || async { ready().await.1 == "ready" }).await;
    old.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_gateway_to_take_over_from_it_starts_by_itself() {
    let mut options = Options::default();
    options.flags.push("--take-over".into());
    let gateway = Gateway::start(options).await;
    assert!(gateway.path("state/take-over.sock").exists());
    gateway.stop().await;
}

/// Answers one byte for each request head, so that a connection is known to live.
async fn alive(stream: &mut TcpStream) -> bool {
    stream.write_all(b"?").await.is_ok() && stream.read_u8().await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_handled_once_and_removed_things_end_in_both_processes() {
    let bus = Bus::start().await;
    let echo = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        while let Ok(byte) = stream.read_u8().await {
            stream.write_all(&[byte]).await.unwrap();
        }
    })
    .await;
    let origin = Origin::friendly("127.0.0.1").await;
    let mut site = Site::new(routes("a.localhost", &origin));
    site.nats = Some(bus.server.url());
    let old = site.first("2").await;
    let port = old.addresses.ports[0];
    let target = echo.address.port();
    bus.container("c0", 1, "127.64.0.2", &[(port.port(), target)])
        .await;
    old.until("the rule", |table| table.port_has_rules(port.port()))
        .await;
    let mut in_old = dial(port).await;
    assert!(alive(&mut in_old).await);

    // Rules come all the time.
    let rules = async {
        for n in 1..=60 {
            bus.container(&format!("c{n}"), 1, "127.64.0.3", &[(443, 8080)])
                .await;
        }
    };
    let (new, ()) = tokio::join!(site.successor(&old, "2"), rules);
    new.until("all of them", |table| table.containers().len() == 61)
        .await;
    // The connection of the old process is one of the things that a removal ends.
    assert!(alive(&mut in_old).await);
    let mut in_new = dial(port).await;
    assert!(alive(&mut in_new).await);
    bus.stopped("c0").await;
    let begun = Instant::now();
    for stream in [&mut in_old, &mut in_new] {
        let ended = timeout(DEADLINE, stream.read(&mut [0])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    assert!(begun.elapsed() < REVOCATION, "{:?}", begun.elapsed());
    old.ended().await;

    // Each rule was answered once, whoever did it.
    eventually("all answers", || async {
        crate::control::announced(&bus).await.len() >= 61
    })
    .await;
    let mut told = crate::control::announced(&bus).await;
    told.sort();
    told.dedup();
    assert_eq!(told.len(), 61);
    assert_eq!(crate::control::announced(&bus).await.len(), 61);
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_is_finished_by_the_process_that_began_it() {
    let (go, going) = tokio::sync::oneshot::channel::<()>();
    let going = Arc::new(tokio::sync::Mutex::new(Some(going)));
    let origin = Origin::raw("127.0.0.1", move |_, mut stream: TcpStream| {
        let going = Arc::clone(&going);
        async move {
            read_head(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf";
            stream.write_all(head.as_bytes()).await.unwrap();
            if let Some(going) = going.lock().await.take() {
                going.await.unwrap();
            }
            stream.write_all(b"half").await.unwrap();
        }
    })
    .await;
    let site = Site::new(routes("a.localhost", &origin));
    let old = site.first("1").await;
    let mut stream = Greeting::anyone("a.localhost")
        .dial(old.addresses.https)
        .await
        .unwrap();
    let ask = "GET / HTTP/1.1\r\nHost: a.localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"half") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
    }
    let new = site.successor(&old, "1").await;
    go.send(()).unwrap();
    timeout(DEADLINE, stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.ends_with(b"halfhalf"));
    old.ended().await;
    new.stop().await;
}
