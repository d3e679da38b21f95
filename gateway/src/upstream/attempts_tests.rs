//! The tries of requests, with targets that are only spoken of.

use std::cell::RefCell;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use edd_route::{
    ContainerId, Origin, RouteTable, Settings, StaticRouteSpec, TableWriter, TargetSpec, UserId,
};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::time::{Instant, advance};

use super::*;
use crate::listener::Gate;
use crate::telemetry::Metrics;

struct Rig {
    fleet: Fleet,
    upstreams: Upstreams,
    table: RefCell<TableWriter>,
    registry: Registry,
}

impl Rig {
    fn new(routes: Vec<StaticRouteSpec>) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let silent = Arc::new(|_| Box::pin(pending()) as _);
        let fleet = Fleet::with_ask(Gate::new(9, None, 9), metrics, silent, Handle::current());
        fleet.register(&mut registry);
        let table = TableWriter::new(RouteTable::empty(Settings::new("example", vec![])));
        let rig = Self {
            fleet,
            upstreams: Upstreams::default(),
            table: RefCell::new(table),
            registry,
        };
        rig.put(routes);
        rig
    }

    /// Makes these the routes in force.
    fn put(&self, routes: Vec<StaticRouteSpec>) {
        let mut table = self.table.borrow_mut();
        table.set_statics(routes);
        self.fleet.keep(table.table());
    }

    fn to(&self, path: &str) -> Destination {
        let table = self.table.borrow();
        let all = table.table().statics();
        let route = all.iter().find(|route| route.spec.path == path);
        Destination::Static(Arc::clone(route.expect("a route")))
    }

    fn attempts(&self) -> attempts::Attempts<'_> {
        self.attempts_of(client())
    }

    fn attempts_of(&self, client: SocketAddr) -> attempts::Attempts<'_> {
        // Lent for the rest of the test.
        let to = Box::leak(Box::new(self.to("/")));
        self.upstreams
            .attempts(to, &self.fleet, client, Instant::now())
    }

    /// One request that ends so; whom it went to.
    fn request(&self, failed: impl Fn(&str) -> Option<Failed>) -> Result<String, NoTarget> {
        let mut choice = self.attempts().next(true)?;
        let target = name(&choice);
        match failed(&target) {
            None => choice.answered(200),
            Some(failed) => choice.failed(failed),
        }
        Ok(target)
    }

    /// Targets that `count` requests went to, all of them well.
    fn spread(&self, count: usize) -> Vec<String> {
        let mut seen: Vec<_> = (0..count)
            .filter_map(|_| self.request(|_| None).ok())
            .collect();
        seen.sort();
        seen.dedup();
        seen
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }
}

fn name(choice: &Choice<'_>) -> String {
    choice.key().to_string()
}

fn client() -> SocketAddr {
    "192.0.2.1:1".parse().unwrap()
}

fn route(targets: &[&str]) -> StaticRouteSpec {
    let origin = Origin::File {
        file: "routes.yaml".into(),
        line: 1,
    };
    let targets = targets
        .iter()
        .map(|target| TargetSpec::http(target))
        .collect();
    StaticRouteSpec::new("a.example", "/", targets, origin)
}

#[tokio::test(start_paused = true)]
async fn a_target_that_keeps_failing_is_left_out_and_comes_back_by_one_probe() {
    let rig = Rig::new(vec![route(&["a:1", "b:1", "c:1"])]);
    let a_fails = |target: &str| (target == "a:1").then_some(Failed::Connect);
    for _ in 0..9 {
        rig.request(a_fails).unwrap();
    }
    assert_eq!(rig.spread(30), ["b:1", "c:1"]);
    assert!(
        rig.metrics()
            .contains("upstream_target_up{target=\"a:1\"} 0\n")
    );
    assert!(
        rig.metrics()
            .contains("upstream_trips_total{reason=\"ejected\"} 1\n")
    );
    advance(Duration::from_millis(1_300)).await;
    // The probe is the next request, and while it lasts nobody else goes there.
    let mut probe = rig.attempts().next(true).unwrap();
    assert_eq!(name(&probe), "a:1");
    assert_eq!(rig.spread(30), ["b:1", "c:1"]);
    probe.answered(200);
    drop(probe);
    assert_eq!(rig.spread(30), ["a:1", "b:1", "c:1"]);
    assert!(
        rig.metrics()
            .contains("upstream_target_up{target=\"a:1\"} 1\n")
    );
}

#[tokio::test(start_paused = true)]
async fn the_last_one_is_not_left_out_until_it_breaks_the_circuit() {
    let rig = Rig::new(vec![route(&["a:1", "b:1"])]);
    let all_fail = |_: &str| Some(Failed::Broke);
    let mut served = 0;
    while rig.request(all_fail).is_ok() {
        served += 1;
    }
    // Three for the first that goes, ten for the one that is left.
    assert_eq!(served, 12 + 1);
    let error = rig.request(all_fail).unwrap_err();
    assert_eq!(error, NoTarget::AllOut);
    let text = rig.metrics();
    assert!(
        text.contains("upstream_targets{state=\"open\"} 2\n"),
        "{text}"
    );
    // The one that broke last comes back first: its pause is short.
    advance(Duration::from_millis(400)).await;
    assert!(rig.request(|_| None).is_ok());
    assert_eq!(rig.spread(10).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_single_target_is_refused_quickly_until_its_probe_succeeds() {
    let rig = Rig::new(vec![route(&["a:1"])]);
    let fails = |_: &str| Some(Failed::TimedOut);
    for _ in 0..10 {
        assert!(rig.request(fails).is_ok());
    }
    assert_eq!(rig.request(fails), Err(NoTarget::Broken));
    advance(Duration::from_millis(320)).await;
    let mut probe = rig.attempts().next(false).unwrap();
    assert_eq!(rig.request(fails), Err(NoTarget::Broken), "one probe");
    probe.failed(Failed::TimedOut);
    drop(probe);
    advance(Duration::from_millis(320)).await;
    assert_eq!(rig.request(fails), Err(NoTarget::Broken), "twice as long");
    advance(Duration::from_millis(320)).await;
    assert!(rig.request(|_| None).is_ok());
    assert!(rig.request(|_| None).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_client_leaves_does_not_block_the_next() {
    let rig = Rig::new(vec![route(&["a:1"])]);
    for _ in 0..10 {
        rig.request(|_| Some(Failed::Connect)).unwrap();
    }
    advance(Duration::from_millis(320)).await;
    let probe = rig.attempts().next(true).unwrap();
    drop(probe);
    assert!(rig.request(|_| None).is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_sent_again_is_not_the_probe_while_others_are_well() {
    let rig = Rig::new(vec![route(&["a:1", "b:1"])]);
    for _ in 0..6 {
        rig.request(|target| (target == "a:1").then_some(Failed::Connect))
            .unwrap();
    }
    advance(Duration::from_secs(2)).await;
    for _ in 0..10 {
        let choice = rig.attempts().next(false).unwrap();
        assert_eq!(name(&choice), "b:1");
    }
    // If nothing else ever comes it is.
    advance(Duration::from_secs(5)).await;
    assert_eq!(name(&rig.attempts().next(false).unwrap()), "a:1");
}

#[tokio::test(start_paused = true)]
async fn failed_connections_lead_to_each_other_target_once_whatever_the_request() {
    let rig = Rig::new(vec![route(&["a:1", "b:1", "c:1"])]);
    let mut attempts = rig.attempts();
    let mut tried = Vec::new();
    loop {
        let mut choice = attempts.next(false).unwrap();
        tried.push(name(&choice));
        choice.failed(Failed::Connect);
        drop(choice);
        if !attempts.again(Failed::Connect, false) {
            break;
        }
    }
    tried.sort();
    assert_eq!(tried, ["a:1", "b:1", "c:1"]);
}

#[tokio::test(start_paused = true)]
async fn only_what_may_arrive_twice_is_sent_again_and_at_most_twice() {
    let rig = Rig::new(vec![route(&["a:1", "b:1", "c:1", "d:1"])]);
    for (failed, repeatable, sent) in [
        (Failed::Stale, false, 1),
        (Failed::Broke, false, 1),
        (Failed::TimedOut, true, 1),
        (Failed::Ours, true, 1),
        (Failed::Stale, true, 3),
        (Failed::Broke, true, 3),
    ] {
        let mut attempts = rig.attempts();
        let mut count = 0;
        let mut fresh = false;
        loop {
            let choice = attempts.next(repeatable).unwrap();
            fresh |= choice.fresh;
            count += 1;
            drop(choice);
            if !attempts.again(failed, repeatable) {
                break;
            }
        }
        assert_eq!(count, sent, "{failed:?} {repeatable}");
        assert_eq!(fresh, sent == 3, "the last one is on a new connection");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_answer_of_a_single_target_is_not_asked_for_again() {
    let rig = Rig::new(vec![route(&["a:1"])]);
    let mut attempts = rig.attempts();
    let _choice = attempts.next(true).unwrap();
    assert!(!attempts.again(Failed::Broke, true));
    assert!(!attempts.again(Failed::Connect, true));
    // A kept connection that was closed meanwhile is another matter.
    assert!(attempts.again(Failed::Stale, true));
    assert_eq!(name(&attempts.next(true).unwrap()), "a:1");
}

#[tokio::test(start_paused = true)]
async fn connections_that_cannot_take_a_request_are_replaced_twice() {
    let rig = Rig::new(vec![route(&["a:1"])]);
    let mut attempts = rig.attempts();
    let mut fresh = Vec::new();
    loop {
        fresh.push(attempts.next(false).unwrap().fresh);
        if !attempts.again(Failed::Unsent, false) {
            break;
        }
    }
    assert_eq!(fresh, [false, false, true]);
}

#[tokio::test(start_paused = true)]
async fn a_route_without_retries_sends_once() {
    let mut none = route(&["a:1", "b:1"]);
    none.retries = 0;
    let rig = Rig::new(vec![none]);
    let mut attempts = rig.attempts();
    let _choice = attempts.next(true).unwrap();
    assert!(!attempts.again(Failed::Stale, true));
    assert!(attempts.again(Failed::Connect, true), "nothing was sent");
}

#[tokio::test(start_paused = true)]
async fn the_budget_ends_retries_before_they_double_the_load() {
    let rig = Rig::new(vec![route(&["a:1", "b:1"])]);
    let mut sent = 0;
    for _ in 0..1_000 {
        let mut attempts = rig.attempts();
        loop {
            drop(attempts.next(true).unwrap());
            sent += 1;
            if !attempts.again(Failed::Stale, true) {
                break;
            }
        }
    }
    assert!((1_190..=1_210).contains(&sent), "{sent}");
    assert!(
        rig.metrics()
            .contains("upstream_retries_total{result=\"over_budget\"}")
    );
}

#[tokio::test(start_paused = true)]
async fn statuses_of_fail_on_speak_against_the_target_others_do_not() {
    let mut strict = route(&["a:1", "b:1"]);
    strict.fail_on = vec![503];
    let rig = Rig::new(vec![strict]);
    let answer = |rig: &Rig| {
        let mut choice = rig.attempts().next(true).unwrap();
        let status = if name(&choice) == "a:1" { 503 } else { 200 };
        choice.answered(status);
    };
    (0..8).for_each(|_| answer(&rig));
    assert_eq!(rig.spread(10), ["b:1"]);
    rig.put(vec![route(&["c:1", "a:1"])]);
    advance(Duration::from_secs(2)).await;
    assert_eq!(rig.spread(10), ["a:1", "c:1"], "it came back by its probe");
    (0..8).for_each(|_| answer(&rig));
    assert_eq!(rig.spread(10), ["a:1", "c:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_is_known_of_targets_that_stay_and_frees_the_others() {
    let rig = Rig::new(vec![route(&["a:1", "b:1"])]);
    for _ in 0..6 {
        rig.request(|target| (target == "a:1").then_some(Failed::Connect))
            .unwrap();
    }
    assert_eq!(rig.spread(10), ["b:1"]);
    let busy = rig.attempts().next(true).unwrap();
    rig.put(vec![route(&["a:1", "b:1", "c:1"])]);
    // One is ejected still, and the request under way at the other counts.
    assert_eq!(rig.spread(10), ["c:1"]);
    let next = rig.attempts().next(true).unwrap();
    assert_eq!(name(&next), "c:1");
    let kept = [busy.key().clone(), next.key().clone()];
    drop((busy, next));
    rig.put(vec![route(&["b:1"])]);
    advance(Duration::from_secs(6)).await;
    let same = rig.attempts().next(true).unwrap();
    assert_eq!(*same.key(), kept[0], "its connections are still its own");
    drop((same, kept));
    let text = rig.metrics();
    assert!(
        !text.contains("c:1") && text.contains("upstream_targets{state=\"closed\"} 1\n"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_announced_has_connections_of_its_own() {
    let mut told = route(&["a:1"]);
    told.proxy_protocol = Some(edd_route::ProxyHeader::V2);
    let rig = Rig::new(vec![told]);
    let other = "192.0.2.1:2".parse().unwrap();
    let key = |rig: &Rig, client| rig.attempts_of(client).next(true).unwrap().key().clone();
    assert_eq!(key(&rig, client()), key(&rig, client()));
    assert_ne!(key(&rig, client()), key(&rig, other));
    let rig = Rig::new(vec![route(&["a:1"])]);
    assert_eq!(key(&rig, client()), key(&rig, other));
}

#[tokio::test(start_paused = true)]
async fn a_containers_trouble_ends_with_its_start() {
    let rig = Rig::new(vec![]);
    let start = |start| Destination::Container {
        key: UpstreamKey::Container {
            id: ContainerId::new("c1").unwrap(),
            start,
            port: 8000,
            target_port: 80,
        },
        address: "10.0.0.1:80".parse().unwrap(),
        owner: UserId(1),
    };
    let (first, second) = (start(1), start(2));
    let next = |number| {
        let to = if number == 1 { &first } else { &second };
        let upstreams = &rig.upstreams;
        let mut attempts = upstreams.attempts(to, &rig.fleet, client(), Instant::now());
        attempts.next(true)
    };
    for _ in 0..10 {
        next(1).unwrap().failed(Failed::Connect);
    }
    assert_eq!(next(1).unwrap_err(), NoTarget::Broken);
    assert!(next(2).is_ok());
    advance(Duration::from_millis(320)).await;
    next(1).unwrap().answered(200);
    assert!(next(1).is_ok());
    assert!(rig.fleet.troubled().is_empty(), "what is well has no state");
}

#[tokio::test(start_paused = true)]
async fn routes_of_past_tables_are_forgotten() {
    let rig = Rig::new(vec![route(&["a:1"])]);
    for _ in 0..3 {
        let to = rig.to("/");
        let upstreams = &rig.upstreams;
        let mut attempts = upstreams.attempts(&to, &rig.fleet, client(), Instant::now());
        assert!(attempts.next(true).is_ok());
        rig.put(vec![route(&["b:1"])]);
        rig.put(vec![route(&["a:1"])]);
        advance(Duration::from_secs(6)).await;
    }
    let to = rig.to("/");
    let _last = rig
        .upstreams
        .attempts(&to, &rig.fleet, client(), Instant::now());
    assert_eq!(rig.upstreams.len(), 1);
    let fleet = format!("{:?}", rig.fleet);
    assert!(fleet.contains("targets: 1"), "{fleet}");
}
