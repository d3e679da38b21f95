//! Several targets: shares, failures that nobody notices, active checks, the retry budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use edd_route::RouteTable;
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::caller::Caller;
use super::process::Server;
use super::{admin, admin_text, states};
use crate::support::{Gateway, Options, Origin, eventually, free_port, read_head, replace_file};

/// Answers every request on a connection with its name.
async fn named(name: &'static str) -> Origin {
    Origin::raw("127.0.0.1", move |_, mut stream: TcpStream| async move {
        while !read_head(&mut stream).await.is_empty() {
            let length = name.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// R9: one of three is killed under load and comes back; no GET fails, no POST arrives twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_killed_costs_no_get_and_no_post_is_sent_twice() {
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("posts");
    let start = async |name: &str, address: &str| Server::start(name, address, &log).await;
    let any = "127.0.0.1:0";
    // Free again when it is to come back.
    let kept = format!("127.0.0.1:{}", free_port());
    let (a, b, c) = (
        start("a", any).await,
        start("b", &kept).await,
        start("c", any).await,
    );
    let gateway = Gateway::start(Options::routes(format!(
        "routes:\n- host: a.test\n  targets: [{{target: '{}'}}, {{target: '{}'}}, {{target: '{}'}}]\n",
        a.address, b.address, c.address
    )))
    .await;
    let over = AtomicBool::new(false);
    let (gets, posts) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let load = async |number: usize| {
        let mut caller = Caller::new(&gateway, "a.test");
        let mut failures = Vec::new();
        while !over.load(Ordering::Relaxed) {
            if number.is_multiple_of(3) {
                let n = posts.fetch_add(1, Ordering::Relaxed);
                // Whether it arrived may be unknown: 502 is the honest answer.
                let answer = caller.post("/", &format!("post-{n}")).await;
                if !matches!(answer.status, 200 | 502) {
                    failures.push(format!("{answer:?}"));
                }
            } else {
                gets.fetch_add(1, Ordering::Relaxed);
                let answer = caller.get("/").await;
                if answer.status != 200 {
                    failures.push(format!("{answer:?}"));
                }
            }
        }
        failures
    };
    let events = async {
        let enough = |more| {
            let (gets, goal) = (&gets, gets.load(Ordering::Relaxed) + more);
            eventually("enough requests", move || async move {
                gets.load(Ordering::Relaxed) >= goal
            })
        };
        enough(300).await;
        let address = b.address;
        b.kill().await;
        let out = |gateway| async move {
            let states = states(gateway).await;
            states
                .iter()
                .filter(|(_, state)| !state.starts_with("up"))
                .count()
        };
        eventually("it is left out", || async { out(&gateway).await == 1 }).await;
        enough(300).await;
        let back = start("b", &address.to_string()).await;
        eventually("it is back", || async { out(&gateway).await == 0 }).await;
        enough(100).await;
        // Which one is chosen depends on how busy each is.
        eventually("it answers", || async {
            Caller::new(&gateway, "a.test").get("/").await.body == "b"
        })
        .await;
        over.store(true, Ordering::Relaxed);
        back
    };
    let (failures, _back) = tokio::join!(join_all((0..12).map(load)), events);
    let failures: Vec<_> = failures.into_iter().flatten().collect();
    assert!(
        failures.is_empty(),
        "{} of {gets:?}: {failures:?}",
        failures.len()
    );
    let arrived = std::fs::read_to_string(&log).unwrap();
    let mut counts = HashMap::new();
    for line in arrived.lines() {
        *counts.entry(line).or_insert(0) += 1;
    }
    assert!(counts.len() > 20, "{posts:?}");
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    let metrics = admin_text(&gateway, "/metrics").await;
    assert!(metrics.contains("edd_gateway_upstream_trips_total{reason=\"ejected\"}"));
    assert!(
        metrics.contains("edd_gateway_upstream_targets{state=\"closed\"} 3"),
        "{metrics}"
    );
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_follow_the_weights() {
    let (a, b) = (named("a").await, named("b").await);
    let gateway = Gateway::start(
        Options::routes(format!(
            "routes:\n- host: a.test\n  targets: [{{target: '{}', weight: 3}}, {{target: '{}'}}]\n",
            a.address, b.address
        ))
        .flag("--workers", "1"),
    )
    .await;
    // At once, who is done first has a say too.
    for (at_once, shares) in [(1, 298..=302), (8, 255..=345)] {
        let callers = (0..at_once).map(async |_| {
            let mut caller = Caller::new(&gateway, "a.test");
            let mut count = 0;
            for _ in 0..400 / at_once {
                count += usize::from(caller.get("/").await.body == "a");
            }
            count
        });
        let count: usize = join_all(callers).await.into_iter().sum();
        assert!(shares.contains(&count), "{at_once} at once: {count} of 400");
    }
    gateway.stop().await;
}

/// Well for requests, but its check says otherwise: nobody gets an error before it is left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_takes_a_target_out_before_any_request_fails() {
    let sick = Arc::new(AtomicBool::new(false));
    let is_sick = Arc::clone(&sick);
    let probed = Origin::raw("127.0.0.1", move |_, mut stream: TcpStream| {
        let is_sick = Arc::clone(&is_sick);
        async move {
            loop {
                let head = read_head(&mut stream).await;
                let answer = match () {
                    () if head.is_empty() => return,
                    () if head.starts_with("GET /up ") && is_sick.load(Ordering::SeqCst) => {
                        "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"
                    }
                    () if head.starts_with("GET /up ") => {
                        assert!(head.contains("\r\nhost: 127.0.0.1:"), "{head}");
                        "HTTP/1.1 204 Yes\r\n\r\n"
                    }
                    () => "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nprobed",
                };
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let other = Origin::friendly("127.0.0.1").await;
    let gateway = Gateway::start(Options::routes(format!(
        "routes:\n- host: a.test\n  health: {{path: /up, interval: 100ms, timeout: 1s}}\n  \
         targets: [{{target: '{}'}}, {{target: '{}'}}]\n",
        probed.address, other.address
    )))
    .await;
    let mut caller = Caller::new(&gateway, "a.test");
    let mut share = async || {
        let mut count = 0;
        for _ in 0..20 {
            let answer = caller.get("/").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            count += usize::from(answer.body == "probed");
        }
        count
    };
    assert_eq!(share().await, 10);
    sick.store(true, Ordering::SeqCst);
    let target = probed.address.to_string();
    let state = async |wanted: &str| {
        let wanted = (target.clone(), wanted.to_owned());
        let states = states(&gateway).await;
        states
            .iter()
            .any(|(target, state)| *target == wanted.0 && state.starts_with(&wanted.1))
    };
    eventually("it is down", || state("down: status 503")).await;
    assert_eq!(share().await, 0);
    let explained = admin(&gateway, "/api/v1/explain?url=https://a.test/x").await;
    assert_eq!(
        explained["targets"][0]["state"],
        "down: status 503 Service Unavailable"
    );
    assert_eq!(explained["targets"][1]["state"], "up");
    let metrics = admin_text(&gateway, "/metrics").await;
    assert!(
        metrics.contains("upstream_targets{state=\"down\"} 1\n"),
        "{metrics}"
    );
    sick.store(false, Ordering::SeqCst);
    eventually("it is up", || state("up")).await;
    assert_eq!(share().await, 10);
    gateway.stop().await;
}

/// A target that speaks nothing but HTTP/2 is asked in HTTP/2, and by its verdict left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_of_h2c_targets_speak_http2() {
    let sick = Arc::new(AtomicBool::new(false));
    let is_sick = Arc::clone(&sick);
    let probed = Origin::raw("127.0.0.1", move |_, stream: TcpStream| {
        let is_sick = Arc::clone(&is_sick);
        async move {
            let Ok(mut h2) = h2::server::handshake(stream).await else {
                return;
            };
            while let Some(Ok((request, mut respond))) = h2.accept().await {
                let uri = request.uri();
                let is_check = uri.path() == "/up" && uri.query() == Some("q");
                let is_its_own = uri.authority().is_some_and(|to| to.host() == "127.0.0.1");
                assert_eq!(is_check, is_its_own, "{uri}");
                let status = match is_check && is_sick.load(Ordering::SeqCst) {
                    true => 503,
                    false => 200,
                };
                let answer = http::Response::builder().status(status).body(()).unwrap();
                let mut body = respond.send_response(answer, false).unwrap();
                body.send_data(bytes::Bytes::from_static(b"ok"), true)
                    .unwrap();
            }
        }
    })
    .await;
    let gateway = Gateway::start(Options::routes(format!(
        "routes:\n- host: a.test\n  health: {{path: '/up?q', interval: 100ms, timeout: 1s}}\n  \
         targets: [{{target: 'h2c://{}'}}, {{target: 'h2c://127.0.0.1:9'}}]\n",
        probed.address
    )))
    .await;
    let state = async |place: usize, wanted: &str| {
        let states = states(&gateway).await;
        states
            .get(place)
            .is_some_and(|(_, state)| state.starts_with(wanted))
    };
    eventually("the other one is down", || state(1, "down")).await;
    assert!(state(0, "up").await);
    assert_eq!(Caller::new(&gateway, "a.test").get("/").await.status, 200);
    sick.store(true, Ordering::SeqCst);
    eventually("it is down", || state(0, "down: status 503")).await;
    sick.store(false, Ordering::SeqCst);
    eventually("it is up", || state(0, "up")).await;
    gateway.stop().await;
}

/// Threads that have served from a route and nothing since do not keep its checks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_end_with_their_route_though_nobody_asks_for_another() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let probed = Origin::raw("127.0.0.1", move |_, mut stream: TcpStream| {
        let counted = Arc::clone(&counted);
        async move {
            let head = read_head(&mut stream).await;
            counted.fetch_add(usize::from(head.starts_with("GET /up ")), Ordering::SeqCst);
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await;
    let routes = |host: &str, more: &str| {
        let health = "health: {path: /up, interval: 100ms, timeout: 1s}";
        let target = probed.address;
        format!("routes:\n- {{host: {host}, {health}, target: '{target}'{more}}}\n")
    };
    let gateway = Gateway::start(Options::routes(routes("a.test", ""))).await;
    // Each thread has met the route.
    for _ in 0..20 {
        let answer = Caller::new(&gateway, "a.test").get("/").await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let goes_on = async |what| {
        let before = count.load(Ordering::SeqCst);
        eventually(what, || async { count.load(Ordering::SeqCst) > before + 2 }).await;
    };
    goes_on("checks").await;
    // One that stays keeps its check.
    let file = gateway.path("routes.yaml");
    replace_file(&file, &routes("b.test", ", timeout: 3s"));
    let has = |table: &RouteTable, host: &str| table.static_specs().any(|s| s.host == host);
    gateway.until("b.test", |table| has(table, "b.test")).await;
    goes_on("the same check").await;
    replace_file(&file, "routes: []\n");
    gateway
        .until("nothing", |table| !has(table, "b.test"))
        .await;
    let begun = Instant::now();
    let mut last = count.load(Ordering::SeqCst);
    let mut quiet_since = begun;
    while quiet_since.elapsed() < Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = count.load(Ordering::SeqCst);
        if now != last {
            (last, quiet_since) = (now, Instant::now());
        }
        let asked_for = quiet_since.duration_since(begun);
        assert!(asked_for < Duration::from_secs(5), "checks go on");
    }
    gateway.stop().await;
}

/// All targets take requests and close: the load on them stays near what clients ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_upstreams_do_not_get_twice_the_load() {
    let heads = Arc::new(AtomicUsize::new(0));
    let broken = async || {
        let heads = Arc::clone(&heads);
        Origin::raw("127.0.0.1", move |_, mut stream: TcpStream| {
            let heads = Arc::clone(&heads);
            async move {
                if !read_head(&mut stream).await.is_empty() {
                    heads.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
        .await
    };
    let (a, b) = (broken().await, broken().await);
    let gateway = Gateway::start(Options::routes(format!(
        "routes:\n- host: a.test\n  targets: [{{target: '{}'}}, {{target: '{}'}}]\n",
        a.address, b.address
    )))
    .await;
    let mut caller = Caller::new(&gateway, "a.test");
    let begun = Instant::now();
    let mut statuses = HashMap::new();
    for _ in 0..300 {
        *statuses.entry(caller.get("/").await.status).or_insert(0) += 1;
    }
    // Ten for little traffic, and a probe now and then.
    let heads = heads.load(Ordering::SeqCst);
    let probes = 2 + 4 * usize::try_from(begun.elapsed().as_secs()).unwrap();
    assert!(
        heads <= 3 + 10 + 10 + probes,
        "{heads} arrived, {statuses:?}"
    );
    assert!(
        statuses.keys().all(|status| matches!(status, 502 | 503)),
        "{statuses:?}"
    );
    assert!(statuses[&503] > 200, "{statuses:?}");
    gateway.stop().await;
}

/// Idle connections make room at the cap before anybody is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_cap_idle_connections_make_room() {
    let (a, b) = (named("a").await, named("b").await);
    let options = Options {
        tune: |config| config.max_upstream_connections = 1,
        ..Options::routes(format!(
            "routes:\n- {{host: a.test, target: '{}'}}\n- {{host: a.test, path: /b, target: '{}'}}\n",
            a.address, b.address
        ))
    };
    let gateway = Gateway::start(options).await;
    // Two connections, so that both threads keep one now and then.
    let (mut one, mut two) = (
        Caller::new(&gateway, "a.test"),
        Caller::new(&gateway, "a.test"),
    );
    let begun = Instant::now();
    for _ in 0..10 {
        for (caller, path, name) in [(&mut one, "/", "a"), (&mut two, "/b", "b")] {
            let answer = caller.get(path).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, name));
        }
    }
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "room is made at once"
    );
    gateway.stop().await;
}
