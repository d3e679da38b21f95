//! What the process knows of its upstreams: one target for each that the routes
//! name, whichever routes and however many threads use it.
//!
//! Targets are known by what they are, not by who names them: a reload that
//! keeps a target keeps its state, its tickets and its connections; one that
//! drops it lets all of that go with the last exchange that uses it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use edd_route::{HealthSpec, RouteTable, Scheme, StaticRouteSpec, StaticRoutes, TargetSpec};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::breaker::{Breaker, Millis};
use super::check::Check;
use super::names::{Ask, Directory, Name};
use super::tls::{SystemRoots, TlsTarget};
use super::{UpstreamKey, trouble};
use crate::listener::Gate;
use crate::telemetry::Metrics;

/// What connecting needs of the process.
#[derive(Clone, Debug)]
pub struct Reach {
    pub(crate) gate: Gate,
    pub(crate) metrics: Metrics,
}

/// What makes a target the same target.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct TargetKey {
    scheme: Scheme,
    authority: String,
    /// Checksum of the certificates that are believed; none: the system's.
    ca: Option<[u8; 32]>,
    /// Whether its connections begin with a PROXY header.
    announces: bool,
}

/// One target. One per process.
pub(crate) struct Target {
    key: TargetKey,
    /// As routes.yaml writes it, for logs.
    label: Arc<str>,
    name: Name,
    tls: Option<Result<TlsTarget, String>>,
    /// Whether requests fare well with it.
    pub(crate) breaker: Breaker,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.label).finish()
    }
}

impl Target {
    /// As routes.yaml writes it.
    pub(crate) fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// What is spoken to it.
    pub(crate) fn scheme(&self) -> Scheme {
        self.key.scheme
    }

    /// Its `host:port` and addresses.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Whether it is told whose connection it gets.
    pub(crate) fn announces(&self) -> bool {
        self.key.announces
    }

    /// How it is spoken to by TLS, if it is, or why that cannot be.
    pub(crate) fn tls(&self) -> Option<Result<&TlsTarget, &str>> {
        self.tls
            .as_ref()
            .map(|tls| tls.as_ref().map_err(String::as_str))
    }
}

/// A target as one route uses it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) target: Arc<Target>,
    /// What the route's `health` found out.
    pub(crate) check: Option<Arc<Check>>,
    pub(crate) weight: u32,
}

impl Member {
    /// Whether requests go to it without more ado.
    pub(crate) fn is_up(&self) -> bool {
        self.target.breaker.is_closed() && !self.is_down()
    }

    /// Whether its check says that it is not well.
    pub(crate) fn is_down(&self) -> bool {
        self.check.as_ref().is_some_and(|check| check.is_down())
    }

    /// For people.
    pub(crate) fn state(&self, now: Millis) -> String {
        let breaker = &self.target.breaker;
        let mut text = match (self.is_down(), breaker.due()) {
            (true, _) => "down".to_owned(),
            (false, None) => "up".to_owned(),
            (false, Some(due)) => {
                let state = breaker.state().as_str();
                let wait = due.saturating_sub(now);
                format!("{state}, next try in {wait} ms")
            }
        };
        if let Some(error) = self.check.as_ref().and_then(|check| check.error()) {
            text.push_str(": ");
            text.push_str(&error);
        } else if breaker.failures() > 0 {
            text.push_str(&format!(", {} failures in a row", breaker.failures()));
        }
        text
    }
}

/// All targets. One per process; clones share it.
#[derive(Clone)]
pub struct Fleet(Arc<Inner>);

struct Inner {
    epoch: Instant,
    reach: Reach,
    runtime: Handle,
    directory: Directory,
    roots: SystemRoots,
    // Plain locks: taken when routes change and when a thread first meets a
    // route, never on the way of a request.
    targets: Mutex<HashMap<TargetKey, Weak<Target>>>,
    checks: Mutex<HashMap<(TargetKey, HealthSpec), Weak<Check>>>,
    /// The targets of the table in force.
    kept: Mutex<Kept>,
    /// Whether any target of the table is told whose connection it gets.
    announces: AtomicBool,
    /// Containers that fare badly.
    troubled: trouble::Map,
}

#[derive(Default)]
struct Kept {
    /// Of which routes.
    of: Weak<StaticRoutes>,
    members: Vec<Vec<Member>>,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let targets = lock(&self.0.targets);
        let targets = targets.values().filter(|target| target.strong_count() > 0);
        let targets = targets.count();
        f.debug_struct("Fleet")
            .field("targets", &targets)
            .finish_non_exhaustive()
    }
}

impl Fleet {
    /// Without targets yet. Lookups and checks run on `runtime`; `ask` resolves names.
    pub fn new(gate: Gate, metrics: Metrics, servers: Vec<SocketAddr>, runtime: Handle) -> Self {
        Self::with_ask(gate, metrics, super::dns::resolver(servers), runtime)
    }

    pub(crate) fn with_ask(gate: Gate, metrics: Metrics, ask: Ask, runtime: Handle) -> Self {
        Self(Arc::new(Inner {
            epoch: Instant::now(),
            reach: Reach { gate, metrics },
            directory: Directory::new(ask, runtime.clone()),
            runtime,
            roots: SystemRoots::default(),
            targets: Mutex::default(),
            checks: Mutex::default(),
            kept: Mutex::default(),
            announces: AtomicBool::new(false),
            troubled: trouble::Map::default(),
        }))
    }

    /// What connecting needs.
    pub fn reach(&self) -> &Reach {
        &self.0.reach
    }

    /// Whether any target of the table is told whose connection it gets.
    pub fn announces(&self) -> bool {
        self.0.announces.load(Ordering::Relaxed)
    }

    /// The process's clock.
    pub(crate) fn now(&self) -> Millis {
        let millis = self.0.epoch.elapsed().as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX / 4).max(1)
    }

    pub(super) fn troubled(&self) -> &trouble::Map {
        &self.0.troubled
    }

    /// Keeps the targets of `table`, and no others. To be called before the table is in force.
    ///
    /// Costs nothing if the static routes are those of the last call.
    pub fn keep(&self, table: &RouteTable) {
        let statics = table.statics();
        if std::ptr::eq(lock(&self.0.kept).of.as_ptr(), Arc::as_ptr(statics)) {
            return;
        }
        let announces = statics
            .iter()
            .any(|route| route.spec.proxy_protocol.is_some());
        self.0.announces.store(announces, Ordering::Relaxed);
        let members: Vec<_> = statics
            .iter()
            .map(|route| {
                self.members_with(&route.spec, |key, health, target| {
                    Some(known(&self.0.checks, (key, health.clone()), || {
                        Check::start(
                            Arc::clone(target),
                            health.clone(),
                            self.reach(),
                            &self.0.runtime,
                        )
                    }))
                })
            })
            .collect();
        let checks = members.iter().flatten();
        let wanted: HashSet<_> = checks
            .filter_map(|member| member.check.as_ref().map(Arc::as_ptr))
            .collect();
        let new = Kept {
            of: Arc::downgrade(statics),
            members,
        };
        let old = std::mem::replace(&mut *lock(&self.0.kept), new);
        // What the new ones share with the old ones lives on.
        drop(old);
        lock(&self.0.targets).retain(|_, target| target.strong_count() > 0);
        // A data thread holds on to the members of the routes that it last served from, perhaps
        // for hours: that must not keep a check alive.
        lock(&self.0.checks).retain(|_, check| {
            let Some(check) = check.upgrade() else {
                return false;
            };
            let is_wanted = wanted.contains(&Arc::as_ptr(&check));
            if !is_wanted {
                check.end();
            }
            is_wanted
        });
    }

    /// The targets of a route, those that are known and those that are new, with the checks that
    /// [`Self::keep`] has started.
    pub(crate) fn members(&self, spec: &StaticRouteSpec) -> Vec<Member> {
        self.members_with(spec, |key, health, _| {
            let checks = lock(&self.0.checks);
            checks.get(&(key, health.clone())).and_then(Weak::upgrade)
        })
    }

    fn members_with(
        &self,
        spec: &StaticRouteSpec,
        check: impl Fn(TargetKey, &HealthSpec, &Arc<Target>) -> Option<Arc<Check>>,
    ) -> Vec<Member> {
        let ca = spec.ca.as_ref().map(|ca| ca.pem.as_str());
        let sum = ca.map(|pem| <[u8; 32]>::from(Sha256::digest(pem)));
        let member = |target: &TargetSpec| {
            let https = target.scheme == Scheme::Https;
            let key = TargetKey {
                scheme: target.scheme,
                authority: target.authority.clone(),
                ca: sum.filter(|_| https),
                announces: spec.proxy_protocol.is_some(),
            };
            let shared = known(&self.0.targets, key.clone(), || Target {
                label: target.to_string().into(),
                name: self.0.directory.name(&target.authority),
                tls: https.then(|| self.tls(target, ca)),
                breaker: Breaker::default(),
                key: key.clone(),
            });
            let health = spec.health.as_ref();
            let check = health.and_then(|health| check(key, health, &shared));
            Member {
                target: shared,
                check,
                weight: u32::from(target.weight),
            }
        };
        spec.targets.iter().map(member).collect()
    }

    fn tls(&self, target: &TargetSpec, ca: Option<&str>) -> Result<TlsTarget, String> {
        TlsTarget::new(target.host(), ca, &self.0.roots).map_err(|error| {
            tracing::error!(%target, %error, "the target cannot be used");
            error.to_string()
        })
    }

    /// Each target of the table in force once, with what is known of it.
    pub(crate) fn each(&self, mut tell: impl FnMut(&Member)) {
        let kept = lock(&self.0.kept);
        let mut seen = HashSet::new();
        for member in kept.members.iter().flatten() {
            if seen.insert(Arc::as_ptr(&member.target)) {
                tell(member);
            }
        }
    }

    /// The states of a route's targets, for people.
    pub fn states(&self, spec: &StaticRouteSpec) -> Vec<String> {
        let now = self.now();
        let members = self.members(spec);
        members.iter().map(|member| member.state(now)).collect()
    }
}

/// The one that is known by `key`, or a new one.
fn known<K: Eq + Hash, T>(
    all: &Mutex<HashMap<K, Weak<T>>>,
    key: K,
    new: impl FnOnce() -> T,
) -> Arc<T> {
    let mut all = lock(all);
    if let Some(found) = all.get(&key).and_then(Weak::upgrade) {
        return found;
    }
    let new = Arc::new(new());
    all.insert(key, Arc::downgrade(&new));
    new
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pooled connections of a static target: its own, and one client's alone where it is told whose.
#[derive(Clone, Debug)]
pub struct StaticKey {
    pub(crate) target: Arc<Target>,
    pub(crate) client: Option<SocketAddr>,
}

impl StaticKey {
    /// Connections that all clients share.
    pub(crate) fn shared(target: &Arc<Target>) -> Self {
        Self {
            target: Arc::clone(target),
            client: None,
        }
    }

    /// Connections of one client.
    pub(crate) fn of_client(target: &Arc<Target>, client: SocketAddr) -> Self {
        Self {
            target: Arc::clone(target),
            client: Some(client),
        }
    }
}

impl PartialEq for StaticKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.target, &other.target) && self.client == other.client
    }
}

impl Eq for StaticKey {}

impl Hash for StaticKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.target).hash(state);
        self.client.hash(state);
    }
}

impl From<StaticKey> for UpstreamKey {
    fn from(key: StaticKey) -> Self {
        Self::Static(key)
    }
}

impl Fleet {
    /// Registers what is told about targets, made anew for each scrape.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Told(self.clone())));
    }
}

/// The targets as metrics: labels are those of the table in force, no others.
#[derive(Debug)]
struct Told(Fleet);

/// Targets that get series of their own; the sums count all.
const TOLD_MAX: usize = 1000;

impl Collector for Told {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut states = [("closed", 0), ("open", 0), ("half_open", 0), ("down", 0)];
        let mut up = Vec::new();
        self.0.each(|member| {
            let state = match member.is_down() {
                true => "down",
                false => member.target.breaker.state().as_str(),
            };
            for (name, count) in &mut states {
                *count += i64::from(*name == state);
            }
            if up.len() < TOLD_MAX {
                up.push((Arc::clone(member.target.label()), member.is_up()));
            }
        });
        let help = "Targets of static routes by their state";
        let metric = MetricType::Gauge;
        let mut family = encoder.encode_descriptor("upstream_targets", help, None, metric)?;
        for (state, count) in states {
            let labels = [("state", state)];
            family.encode_family(&labels)?.encode_gauge(&count)?;
        }
        let help = "Whether a target of a static route takes requests";
        let mut family = encoder.encode_descriptor("upstream_target_up", help, None, metric)?;
        // Two targets may differ in what no label says: the worse one counts.
        up.sort();
        up.dedup_by(|next, first| next.0 == first.0);
        for (target, up) in up {
            let labels = [("target", &*target)];
            family
                .encode_family(&labels)?
                .encode_gauge(&i64::from(up))?;
        }
        Ok(())
    }
}
