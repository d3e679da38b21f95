//! One request's tries: which target, what became of it, whether another follows.
//!
//! All of it belongs to one thread, but for the targets' breakers and checks,
//! which are the process's and read by atomics: no lock on the way of a request.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use edd_route::{Scheme, StaticRoute, UserId};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::UpstreamKey;
use super::balance::{Load, Seat, choose};
use super::breaker::{Breaker, Millis, Standing, Tripped};
use super::budget::Budget;
use super::fleet::{Fleet, Member, StaticKey, Target};
use super::trouble::Trouble;

/// Where a request goes, before one of several is chosen.
#[derive(Clone, Debug)]
pub(crate) enum Destination {
    /// One run of a container.
    Container {
        /// Whose pooled connections may be used.
        key: UpstreamKey,
        /// Where it answers.
        address: SocketAddr,
        /// Whose it is.
        owner: UserId,
    },
    /// The targets of a route.
    Static(Arc<StaticRoute>),
}

/// The routes that one thread has met. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upstreams(Rc<RefCell<Met>>);

#[derive(Debug, Default)]
struct Met {
    /// By their place in memory, which is theirs while they are held.
    routes: HashMap<usize, Rc<Route>>,
    /// By the target's place, likewise. Held by the seats.
    loads: HashMap<usize, Weak<std::cell::Cell<u32>>>,
    swept: Option<Instant>,
}

/// A static route as this thread uses it.
#[derive(Debug)]
struct Route {
    route: Arc<StaticRoute>,
    seats: Vec<Place>,
    budget: RefCell<Budget>,
}

#[derive(Debug)]
struct Place {
    member: Member,
    seat: Seat,
    /// Its pooled connections, where clients share them.
    key: UpstreamKey,
}

impl Route {
    fn is_up(&self, index: usize) -> bool {
        self.seats
            .get(index)
            .is_some_and(|place| place.member.is_up())
    }

    /// Whether another target than `index` takes requests.
    fn has_other(&self, index: usize) -> bool {
        (0..self.seats.len()).any(|other| other != index && self.is_up(other))
    }
}

/// Why no target takes the request.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NoTarget {
    /// Of several, none.
    #[error("no target of the route takes requests")]
    AllOut,
    /// The only one failed too often of late.
    #[error("the upstream failed too often")]
    Broken,
}

/// What went wrong with a try, as far as another one is concerned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failed {
    /// An answer that is none, or the end before an answer, on a connection of its own.
    Broke,
    /// No connection.
    Connect,
    /// No connection in time.
    ConnectTimedOut,
    /// Nobody's: we have too many connections, or the client left.
    Ours,
    /// A reused connection died before the first byte of an answer.
    Stale,
    /// No answer in time.
    TimedOut,
    /// A connection that could not take the request: nothing was sent.
    Unsent,
}

impl Failed {
    /// Whether it speaks against the target.
    fn is_fault(self) -> bool {
        match self {
            Self::Broke | Self::Connect | Self::ConnectTimedOut | Self::TimedOut => true,
            // A server may close what it has not used for a while.
            Self::Ours | Self::Stale | Self::Unsent => false,
        }
    }
}

impl Upstreams {
    /// Begins the tries of one request of `client` and counts it in its route's budget.
    pub(crate) fn attempts<'f>(
        &self,
        to: &'f Destination,
        fleet: &'f Fleet,
        client: SocketAddr,
        now: Instant,
    ) -> Attempts<'f> {
        let (of, retries) = match to {
            Destination::Static(route) => {
                let known = self.route(route, fleet, now);
                known.budget.borrow_mut().request(now);
                (Of::Static(known), route.spec.retries)
            }
            Destination::Container {
                key,
                address,
                owner,
            } => (Of::Container(key, (*address, *owner)), RETRIES_CONTAINER),
        };
        Attempts {
            of,
            fleet,
            client,
            tried: 0,
            last: 0,
            retries,
            timeouts: CONNECT_TIMEOUTS_MAX,
            unsent: UNSENT_MAX,
            fresh: false,
        }
    }

    fn route(&self, route: &Arc<StaticRoute>, fleet: &Fleet, now: Instant) -> Rc<Route> {
        let met = &mut *self.0.borrow_mut();
        if met.swept.is_none_or(|at| at + SWEEP_EVERY <= now) {
            met.swept = Some(now);
            met.routes
                .retain(|_, known| Arc::strong_count(&known.route) > 1);
            met.loads.retain(|_, load| load.strong_count() > 0);
        }
        let place = Arc::as_ptr(route) as usize;
        if let Some(known) = met.routes.get(&place) {
            return Rc::clone(known);
        }
        let mut seat = |member: Member| {
            let place = Arc::as_ptr(&member.target) as usize;
            let load = met
                .loads
                .get(&place)
                .and_then(Weak::upgrade)
                .unwrap_or_else(|| {
                    let load = Load::default();
                    met.loads.insert(place, Rc::downgrade(&load));
                    load
                });
            Place {
                seat: Seat::new(member.weight, load),
                key: StaticKey::shared(&member.target).into(),
                member,
            }
        };
        let known = Rc::new(Route {
            seats: fleet
                .members(&route.spec)
                .into_iter()
                .map(&mut seat)
                .collect(),
            budget: RefCell::new(Budget::new(now)),
            route: Arc::clone(route),
        });
        met.routes.insert(place, Rc::clone(&known));
        known
    }

    /// Routes that are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.borrow().routes.len()
    }
}

#[derive(Clone, Debug)]
enum Of<'f> {
    Container(&'f UpstreamKey, (SocketAddr, UserId)),
    Static(Rc<Route>),
}

/// The tries of one request.
#[derive(Debug)]
pub(crate) struct Attempts<'f> {
    of: Of<'f>,
    fleet: &'f Fleet,
    client: SocketAddr,
    /// A bit for each target that was tried.
    tried: u64,
    /// The one that was tried last.
    last: usize,
    /// How often it may still be sent again.
    retries: u8,
    /// Connections that may still take too long.
    timeouts: u8,
    /// Connections that may still turn out unusable before anything is sent.
    unsent: u8,
    /// Whether the next connection must be a new one.
    fresh: bool,
}

impl<'f> Attempts<'f> {
    /// The target of the next try. `repeatable`: the request may be sent again;
    /// only such a one is sent to a target that may still be unwell, while
    /// others are well.
    pub(crate) fn next(&mut self, repeatable: bool) -> Result<Choice<'f>, NoTarget> {
        match &self.of {
            Of::Static(route) => {
                let route = Rc::clone(route);
                self.next_static(&route, repeatable)
            }
            &Of::Container(key, at) => self.next_container(key, at),
        }
    }

    fn next_container(
        &self,
        key: &'f UpstreamKey,
        at: (SocketAddr, UserId),
    ) -> Result<Choice<'f>, NoTarget> {
        let mut probe = false;
        let trouble = self.fleet.trouble(key);
        if let Some(trouble) = trouble.filter(|trouble| !trouble.breaker.is_closed()) {
            probe = trouble.breaker.try_probe(self.fleet.now());
            if !probe {
                return Err(NoTarget::Broken);
            }
        }
        Ok(Choice {
            chosen: Chosen::Container(key, at),
            own_key: None,
            fleet: self.fleet,
            fresh: self.fresh,
            probe,
        })
    }

    fn next_static(&mut self, route: &Rc<Route>, repeatable: bool) -> Result<Choice<'f>, NoTarget> {
        let seats = &route.seats;
        let up = |index: usize, place: &Place, tried: u64| {
            tried & bit(index) == 0 && place.member.is_up()
        };
        let mut found = self.due(route, repeatable).map(|index| (index, true));
        for tried in [self.tried, 0] {
            found = found.or_else(|| {
                let may = |index: usize, place: &Place| up(index, place, tried);
                choose(seats, |place| &place.seat, may).map(|index| (index, false))
            });
        }
        let Some((index, probe)) = found else {
            return Err(match seats.len() {
                1 => NoTarget::Broken,
                _ => NoTarget::AllOut,
            });
        };
        self.tried |= bit(index);
        self.last = index;
        let mut own_key = None;
        if let Some(place) = seats.get(index) {
            place.seat.load.set(place.seat.load.get().saturating_add(1));
            let target = &place.member.target;
            own_key = target
                .announces()
                .then(|| StaticKey::of_client(target, self.client).into());
        }
        Ok(Choice {
            chosen: Chosen::Static(Rc::clone(route), index),
            own_key,
            fleet: self.fleet,
            fresh: self.fresh,
            probe,
        })
    }

    /// A target whose pause is over, if this request is to find out how it is.
    fn due(&self, route: &Route, repeatable: bool) -> Option<usize> {
        let mut now = None;
        for (index, place) in route.seats.iter().enumerate() {
            let breaker = &place.member.target.breaker;
            let Some(due) = breaker.due() else { continue };
            if self.tried & bit(index) != 0 || place.member.is_down() {
                continue;
            }
            let now = *now.get_or_insert_with(|| self.fleet.now());
            // What cannot be sent again is no guinea pig while others take it, unless nobody else comes.
            let spared = !repeatable && now < due + SPARED_MS && route.has_other(index);
            if !spared && breaker.try_probe(now) {
                return Some(index);
            }
        }
        None
    }

    /// Whether another try may follow the last one. `repeatable`: nothing
    /// depends on how often the request arrives, and it is all there.
    pub(crate) fn again(&mut self, failed: Failed, repeatable: bool) -> bool {
        match failed {
            // Nothing was sent: each target once.
            Failed::Connect => self.has_untried(),
            Failed::ConnectTimedOut => {
                let may = self.timeouts > 0 && self.has_untried();
                self.timeouts = self.timeouts.saturating_sub(1);
                may
            }
            Failed::Unsent => {
                let may = self.unsent > 0;
                self.unsent = self.unsent.saturating_sub(1);
                // The last time nothing is left to chance.
                self.fresh = self.unsent == 0;
                self.tried &= !bit(self.last);
                may
            }
            Failed::Stale => repeatable && self.take(),
            Failed::Broke => repeatable && self.has_untried() && self.take(),
            Failed::Ours | Failed::TimedOut => false,
        }
    }

    fn take(&mut self) -> bool {
        if self.retries == 0 {
            return false;
        }
        if let Of::Static(route) = &self.of
            && !route.budget.borrow_mut().take(Instant::now())
        {
            self.fleet.reach().metrics.upstream_retried("over_budget");
            return false;
        }
        self.fleet.reach().metrics.upstream_retried("sent_again");
        self.retries -= 1;
        self.fresh = self.retries == 0;
        true
    }

    fn has_untried(&self) -> bool {
        let Of::Static(route) = &self.of else {
            return false;
        };
        let untried = |index: &usize| self.tried & bit(*index) == 0 && route.is_up(*index);
        (0..route.seats.len()).any(|index| untried(&index))
    }
}

fn bit(index: usize) -> u64 {
    // Routes have at most 64 targets; more would share bits, which costs a try.
    1 << (index % 64)
}

/// A target that was chosen. It counts as busy, and a probe is under way, while this lives.
#[derive(Debug)]
pub(crate) struct Choice<'f> {
    chosen: Chosen<'f>,
    /// Its pooled connections, where each client has its own.
    own_key: Option<UpstreamKey>,
    fleet: &'f Fleet,
    /// Whether only a new connection will do.
    pub(crate) fresh: bool,
    /// Whether it is the one request that finds out how the target is.
    probe: bool,
}

#[derive(Debug)]
enum Chosen<'f> {
    Container(&'f UpstreamKey, (SocketAddr, UserId)),
    Static(Rc<Route>, usize),
}

/// How to connect.
#[derive(Debug)]
pub(crate) enum Way<'c> {
    /// To this address, in plain HTTP; whose container is there.
    Address(SocketAddr, UserId),
    /// As the target wants it.
    Target(&'c Arc<Target>),
}

impl Choice<'_> {
    /// How to connect.
    pub(crate) fn way(&self) -> Way<'_> {
        match &self.chosen {
            Chosen::Container(_, (address, owner)) => Way::Address(*address, *owner),
            // The index is of this very route.
            Chosen::Static(route, index) => Way::Target(&route.seats[*index].member.target),
        }
    }

    /// What is spoken.
    pub(crate) fn scheme(&self) -> Scheme {
        match self.way() {
            Way::Address(..) => Scheme::Http,
            Way::Target(target) => target.scheme(),
        }
    }

    /// Whose pooled connections may be used.
    pub(crate) fn key(&self) -> &UpstreamKey {
        match (&self.own_key, &self.chosen) {
            (Some(key), _) => key,
            (None, Chosen::Container(key, _)) => key,
            (None, Chosen::Static(route, index)) => &route.seats[*index].key,
        }
    }

    /// A whole head of an answer came.
    pub(crate) fn answered(&mut self, status: u16) {
        match &self.chosen {
            Chosen::Static(route, index) => {
                if route.route.spec.fail_on.contains(&status) {
                    return self.failed(Failed::Broke);
                }
                let target = &route.seats[*index].member.target;
                // Only the end of a trouble has a time.
                let now = if self.probe { self.fleet.now() } else { 0 };
                if target.breaker.succeeded(self.probe, now) {
                    info!(target = %target.label(), "upstream answers again");
                }
            }
            Chosen::Container(key, _) => {
                if let Some(trouble) = self.fleet.trouble(key) {
                    trouble.breaker.succeeded(self.probe, self.fleet.now());
                    if trouble.breaker.is_closed() {
                        self.fleet.out_of_trouble(key);
                    }
                }
            }
        }
        self.probe = false;
    }

    /// No answer came.
    pub(crate) fn failed(&mut self, failed: Failed) {
        if !failed.is_fault() {
            return;
        }
        let now = self.fleet.now();
        match &self.chosen {
            Chosen::Static(route, index) => {
                let target = &route.seats[*index].member.target;
                let standing = match route.has_other(*index) {
                    true => Standing::WithOthers,
                    false => Standing::Alone,
                };
                let label = target.label();
                self.note(&target.breaker, standing, label, now);
            }
            Chosen::Container(key, _) => {
                if let Some(trouble) = self.fleet.in_trouble(key, now) {
                    let trouble: &Trouble = &trouble;
                    self.note(&trouble.breaker, Standing::Alone, key, now);
                }
            }
        }
        self.probe = false;
    }

    fn note(
        &self,
        breaker: &Breaker,
        standing: Standing,
        target: &dyn std::fmt::Display,
        now: Millis,
    ) {
        let tripped = breaker.failed(self.probe, standing, now, rand::random());
        let Some(Tripped {
            failures,
            pause,
            first,
        }) = tripped
        else {
            return;
        };
        self.fleet.reach().metrics.upstream_tripped(match standing {
            Standing::Alone => "broken",
            Standing::WithOthers => "ejected",
        });
        if first {
            warn!(%target, failures, ?pause, "upstream keeps failing, left alone for a while");
        } else {
            debug!(%target, failures, ?pause, "upstream still fails");
        }
    }
}

impl Drop for Choice<'_> {
    fn drop(&mut self) {
        match &self.chosen {
            Chosen::Static(route, index) => {
                let place = &route.seats[*index];
                let load = &place.seat.load;
                load.set(load.get().saturating_sub(1));
                if self.probe {
                    place.member.target.breaker.give_up_probe(self.fleet.now());
                }
            }
            Chosen::Container(key, _) => {
                if self.probe
                    && let Some(trouble) = self.fleet.trouble(key)
                {
                    trouble.breaker.give_up_probe(self.fleet.now());
                }
            }
        }
    }
}

/// How often a request to a container is sent again.
const RETRIES_CONTAINER: u8 = edd_route::target::RETRIES_MAX;

/// Of one request so many connections may take too long before it fails.
const CONNECT_TIMEOUTS_MAX: u8 = 2;

/// Of one request so many connections may turn out not to take it; a peer may refuse it each time.
const UNSENT_MAX: u8 = 2;

/// For so long after its pause a target is not tried with what cannot be sent again.
const SPARED_MS: Millis = 5_000;

/// Routes of past tables are looked for at most so often.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
