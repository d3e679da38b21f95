//! There is no cache of answers, and none of routes that could be stale or dead.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use edd_route::decide::{HttpDecision, HttpQuestion};
use edd_route::{
    ContainerId, ContainerSpec, Door, Host, Origin as From, RouteTable, RuleSpec, RunSpec,
    Settings, TableWriter, UserId,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::ask::{Asker, Question, Speaks, unwatched};
use crate::support::{Gateway, Options, Origin, Table, read_head};

/// S8: answers were kept under a key without host, origin or `Vary`, whatever `Cache-Control` said.
/// P4: the cache was one lock for all. There is none: each request is answered anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_the_upstreams_own() {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let origin = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        while !read_head(&mut stream).await.is_empty() {
            let body = format!("{:06}", NEXT.fetch_add(1, Ordering::SeqCst));
            let answer = format!(
                "HTTP/1.1 200 OK\r\nCache-Control: public, max-age=31536000, immutable\r\n\
                 Expires: Tue, 01 Jan 2099 00:00:00 GMT\r\nETag: \"same\"\r\n\
                 Content-Length: 6\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 80, origin.address);
    table.run("c2", 80, origin.address);
    let mut expected = 0;
    for speaks in [Speaks::H1, Speaks::H2] {
        let mut asker = Asker::dial(speaks, gateway.addresses.http).await;
        for (host, path) in [
            ("c1.compute.localhost", "/a%2Fb"),
            ("c1.compute.localhost", "/a%2Fb"),
            ("c1.compute.localhost", "/a/b"),
            ("c2.compute.localhost", "/a/b"),
            ("c1.compute.localhost", "/a/b"),
        ] {
            let heard = asker.ask(&Question::get(host, path), &unwatched()).await;
            assert!(heard.is(200, &format!("{expected:06}")), "{heard:?}");
            let kept = heard.field("cache-control");
            assert_eq!(kept, Some("public, max-age=31536000, immutable"));
            assert_eq!(heard.field("age"), None, "{heard:?}");
            expected += 1;
        }
    }
    gateway.stop().await;
}

fn container(number: usize) -> ContainerSpec {
    let origin = From::Event {
        subject: "test".into(),
        sequence: 1,
        event_id: "test".into(),
        at_ms: 0,
    };
    let id = format!("c{number}");
    ContainerSpec {
        id: ContainerId::new(&id).unwrap(),
        owner: UserId(1),
        name: id,
        running: Some(RunSpec {
            address: [10, 0, 0, 1].into(),
            ssh_host_key: None,
            start: 1,
            origin: origin.clone(),
        }),
        ssh_enabled: false,
        https_enabled: true,
        rules: vec![RuleSpec {
            port: 443,
            target_port: 8080,
            origin: origin.clone(),
        }],
        origin,
    }
}

/// The median cost of a lookup among `size` containers: of ever new names, and of one again.
fn lookup(size: usize) -> (Duration, Duration) {
    const ASKED: usize = 20_000;
    let mut writer = TableWriter::new(RouteTable::empty(Settings::new("example.com", vec![])));
    writer.replace_dynamic((0..size).map(container).collect(), Vec::new());
    let table = writer.publish(0).expect("a table").table;
    let host = |number: usize| {
        Host::parse(&format!("c{}.compute.example.com", number % size)).expect("a host")
    };
    let hosts: Vec<_> = (0..ASKED).map(|n| host(n.wrapping_mul(7919))).collect();
    let cost = |pick: &dyn Fn(usize) -> usize| {
        let mut times: Vec<_> = (0..ASKED)
            .map(|n| {
                let question = HttpQuestion {
                    door: Door::PublicHttps,
                    secure: true,
                    host: &hosts[pick(n)],
                    path: "/some/path",
                    client: [127, 0, 0, 1].into(),
                };
                let begun = Instant::now();
                let decision = table.decide_http(&question);
                let took = begun.elapsed();
                assert!(matches!(decision, HttpDecision::Container(_)));
                took
            })
            .collect();
        times.sort_unstable();
        times[ASKED / 2]
    };
    (cost(&|n| n), cost(&|_| 0))
}

/// P1: every request walked through all routes. P2: the cache that should have helped was never
/// asked. A lookup costs the same among ten and among a hundred thousand, the first time as well.
#[test]
fn a_lookup_does_not_grow_with_the_table() {
    let (few, few_again) = lookup(10);
    let (many, many_again) = lookup(100_000);
    println!("10: {few:?}, again {few_again:?}; 100,000: {many:?}, again {many_again:?}");
    // A walk would cost ten thousand times as much; cold memory costs a few times.
    let noise = Duration::from_micros(5);
    assert!(many < few * 10 + noise, "{few:?} -> {many:?}");
    assert!(many < many_again * 10 + noise, "{many:?}, {many_again:?}");
}
