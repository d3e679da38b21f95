//! Who may connect: caps in all and per address, and no loops.
//!
//! One gate for all listeners, the SSH one too, and for all connections to
//! upstreams, which have a cap of their own: one client may need many. Of these
//! no owner of containers gets the last ones (see `shares`), and whoever comes
//! too late waits a moment (see `queue`). At a cap the new connection is
//! refused; those that live, live. A trusted proxy's connections count for the
//! clients that it announces, once they are told; those of which it announces
//! nobody count in all only, for many share them.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use edd_route::UserId;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, timeout_at};

use super::first::Beginnings;
use super::machine::Machine;
use super::queue::Queue;
use super::shares::{Share, Shares};
use super::subscriber::subscriber;

/// Why a connection is refused at the door.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Its address has as many as it may have.
    #[error("too many connections from this address")]
    AddressLimit,
    /// There are as many as there may be.
    #[error("too many connections")]
    Limit,
    /// It comes from one of our own listeners.
    #[error("the peer is a listener of this gateway")]
    Loop,
    /// There are as many connections to upstreams as there may be.
    #[error("too many connections to upstreams")]
    UpstreamLimit,
    /// The container's owner has as many connections to containers as he may have now.
    #[error("too many connections to containers for one owner")]
    OwnerLimit,
}

impl Refused {
    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::AddressLimit => "address_limit",
            Self::Limit => "limit",
            Self::Loop => "loop",
            Self::UpstreamLimit => "upstream_limit",
            Self::OwnerLimit => "upstream_owner_limit",
        }
    }
}

/// Admits connections and knows the gateway's own addresses. Clones share it.
#[derive(Clone, Debug)]
pub struct Gate(Arc<State>);

struct State {
    max: usize,
    open: AtomicUsize,
    max_upstreams: usize,
    upstreams: AtomicUsize,
    /// Of these, what each owner of containers has.
    shares: Shares,
    /// Connections to be made that wait for an idle one to go.
    queue: Queue,
    per_address: Option<PerAddress>,
    listeners: OnceLock<Vec<SocketAddr>>,
    beginnings: Beginnings,
    machine: Machine,
}

struct PerAddress {
    max: usize,
    // A plain lock: one short map operation per connection, and only when the cap is on.
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Gate {
    /// A gate for at most `max` client connections, `max_per_address` of them from each address,
    /// and `max_upstreams` connections to upstreams.
    pub fn new(max: usize, max_per_address: Option<usize>, max_upstreams: usize) -> Self {
        Self(Arc::new(State {
            max,
            open: AtomicUsize::new(0),
            max_upstreams,
            upstreams: AtomicUsize::new(0),
            shares: Shares::default(),
            queue: Queue::default(),
            per_address: max_per_address.map(|max| PerAddress {
                max,
                open: Mutex::default(),
            }),
            listeners: OnceLock::new(),
            beginnings: Beginnings::default(),
            machine: Machine::new(),
        }))
    }

    /// What is held of connections of which it is not clear yet what they speak.
    pub(super) fn beginnings(&self) -> &Beginnings {
        &self.0.beginnings
    }

    /// Says, once, what the listeners are bound to.
    pub fn listening_on(&self, addresses: Vec<SocketAddr>) {
        let _ = self.0.listeners.set(addresses);
    }

    /// Lets a connection in, or says why not. Hold the permit while it lives.
    pub fn admit(&self, peer: SocketAddr) -> Result<Permit, Refused> {
        let mut permit = self.admit_messenger(peer)?;
        permit.count_for(peer.ip())?;
        Ok(permit)
    }

    /// [`Self::admit`] without a count for the peer's address: a trusted proxy speaks for
    /// others. [`Permit::count_for`] is told whom it announces, if anyone.
    pub fn admit_messenger(&self, peer: SocketAddr) -> Result<Permit, Refused> {
        if self.is_own(peer) {
            return Err(Refused::Loop);
        }
        let before = self.0.open.fetch_add(1, Ordering::Relaxed);
        let permit = Permit {
            gate: self.clone(),
            address: None,
        };
        if before >= self.0.max {
            return Err(Refused::Limit);
        }
        Ok(permit)
    }

    /// Lets us connect to an upstream, a container of `owner` if that is one, or says that we may
    /// not. Hold the permit while it lives.
    pub fn admit_upstream(&self, owner: Option<UserId>) -> Result<UpstreamPermit, Refused> {
        let free = self.free_upstreams();
        if free == 0 {
            return Err(Refused::UpstreamLimit);
        }
        let shares = &self.0.shares;
        let share = match owner {
            Some(owner) => Some(shares.take(owner, free).ok_or(Refused::OwnerLimit)?),
            None => None,
        };
        let before = self.0.upstreams.fetch_add(1, Ordering::Relaxed);
        if before >= self.0.max_upstreams {
            self.0.upstreams.fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::UpstreamLimit);
        }
        Ok(UpstreamPermit {
            gate: self.clone(),
            share,
        })
    }

    /// Likewise, but at a cap an idle connection has to go first; waits for that until `deadline`.
    ///
    /// Without any (`has_idle`) only for a moment: one may just be done. At the owner's share it is
    /// for one of his own, and for that moment only. Cancellation safe.
    pub async fn admit_upstream_by(
        &self,
        owner: Option<UserId>,
        deadline: Instant,
        has_idle: impl Fn() -> bool,
    ) -> Result<UpstreamPermit, Refused> {
        let queue = &self.0.queue;
        let whose = |refused| owner.filter(|_| refused == Refused::OwnerLimit);
        let mut waiting = match self.admit_upstream(owner) {
            Ok(permit) => return Ok(permit),
            Err(refused) => queue.enter(whose(refused)),
        };
        let moment = deadline.min(Instant::now() + MOMENT);
        // Once: what gets idle from then on is not kept.
        queue.press();
        loop {
            let refused = {
                let mut released = std::pin::pin!(waiting.released());
                // From here on nothing is missed.
                released.as_mut().enable();
                let refused = match self.admit_upstream(owner) {
                    Ok(permit) => return Ok(permit),
                    Err(refused) => refused,
                };
                if whose(refused) == waiting.owner() {
                    let any = refused == Refused::UpstreamLimit && has_idle();
                    let until = if any { deadline } else { moment };
                    if timeout_at(until, released).await.is_err() {
                        return self.admit_upstream(owner);
                    }
                    continue;
                }
                refused
            };
            // Another place is wanted now.
            waiting = queue.enter(whose(refused));
            queue.press();
        }
    }

    /// Whether somebody waits for the place of a connection of `owner`.
    pub fn wants(&self, owner: Option<UserId>) -> bool {
        self.0.queue.wants(owner)
    }

    /// How many wait for any idle connection to go.
    pub fn waiting(&self) -> usize {
        self.0.queue.waiting()
    }

    /// How many wait for one of an owner's idle connections to go.
    pub fn waiting_of_owners(&self) -> HashMap<UserId, usize> {
        self.0.queue.waiting_of_owners()
    }

    /// How many times those who keep idle connections were told that somebody waits.
    pub fn presses(&self) -> usize {
        self.0.queue.presses()
    }

    /// Ready when that is told the next time.
    pub fn pressed(&self) -> Notified<'_> {
        self.0.queue.pressed()
    }

    /// Connections to upstreams that are open or being made.
    pub fn upstreams(&self) -> usize {
        self.0.upstreams.load(Ordering::Relaxed)
    }

    /// How many more connections to upstreams there may be.
    pub fn free_upstreams(&self) -> usize {
        self.0.max_upstreams.saturating_sub(self.upstreams())
    }

    /// Client connections that are open.
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Whether connecting to `addr` reaches one of our own listeners.
    ///
    /// For a wildcard listener all addresses of this machine do, of loopback only
    /// `127.0.0.1` and `::1`: others belong to whoever binds them by name.
    pub fn is_own(&self, addr: SocketAddr) -> bool {
        self.listeners()
            .any(|own| own.port() == addr.port() && self.reaches(own.ip(), addr.ip()))
    }

    /// Whether any listener answers on `address`.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.listeners().any(|own| self.reaches(own.ip(), address))
    }

    fn reaches(&self, bound: IpAddr, address: IpAddr) -> bool {
        let (bound, address) = (bound.to_canonical(), address.to_canonical());
        // To connect to the unspecified address is to connect to loopback.
        let address = match address {
            IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            address => address,
        };
        let family = bound.is_ipv6() || address.is_ipv4();
        bound == address || (bound.is_unspecified() && family && self.is_of_this_machine(address))
    }

    fn is_of_this_machine(&self, address: IpAddr) -> bool {
        if address.is_loopback() {
            return address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST;
        }
        self.0.machine.has(address)
    }

    fn listeners(&self) -> impl Iterator<Item = &SocketAddr> {
        self.0.listeners.get().into_iter().flatten()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("max", &self.max)
            .field("open", &self.open)
            .field("max_upstreams", &self.max_upstreams)
            .field("upstreams", &self.upstreams)
            .finish_non_exhaustive()
    }
}

/// One open client connection.
#[derive(Debug)]
pub struct Permit {
    gate: Gate,
    address: Option<IpAddr>,
}

impl Permit {
    /// Counts the connection for its client's address; the first that is told counts.
    ///
    /// # Errors
    /// The address has as many as it may have.
    pub fn count_for(&mut self, client: IpAddr) -> Result<(), Refused> {
        let Some(per_address) = &self.gate.0.per_address else {
            return Ok(());
        };
        if self.address.is_some() {
            return Ok(());
        }
        let address = subscriber(client);
        let mut open = per_address
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= per_address.max {
            return Err(Refused::AddressLimit);
        }
        *count += 1;
        self.address = Some(address);
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let state = &self.gate.0;
        state.open.fetch_sub(1, Ordering::Relaxed);
        let (Some(address), Some(per_address)) = (self.address, &state.per_address) else {
            return;
        };
        let mut open = per_address
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&address);
            }
        }
    }
}

/// One connection to an upstream, from before it is made.
#[derive(Debug)]
pub struct UpstreamPermit {
    gate: Gate,
    share: Option<Share>,
}

impl UpstreamPermit {
    /// The owner of the container that it leads to, if it does.
    pub fn owner(&self) -> Option<UserId> {
        self.share.as_ref().map(Share::owner)
    }
}

impl Drop for UpstreamPermit {
    fn drop(&mut self) {
        let owner = self.owner();
        // Before anybody who waits for it is told.
        self.share = None;
        let state = &self.gate.0;
        state.upstreams.fetch_sub(1, Ordering::Relaxed);
        state.queue.release(owner);
    }
}

/// From the end of an answer until its connection can be used again.
const MOMENT: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn at_the_cap_new_ones_are_refused_until_one_ends() {
        let gate = Gate::new(2, None, 1);
        let first = gate.admit(addr("192.0.2.1:1")).unwrap();
        let _second = gate.admit(addr("192.0.2.1:2")).unwrap();
        let third = gate.admit(addr("192.0.2.2:3")).unwrap_err();
        assert_eq!(third, Refused::Limit);
        assert_eq!(gate.open(), 2);
        drop(first);
        assert!(gate.admit(addr("192.0.2.2:3")).is_ok());
    }

    #[test]
    fn an_address_has_a_cap_of_its_own() {
        let gate = Gate::new(10, Some(1), 1);
        let first = gate.admit(addr("192.0.2.1:1")).unwrap();
        let again = gate.admit(addr("[::ffff:192.0.2.1]:2")).unwrap_err();
        assert_eq!(again, Refused::AddressLimit);
        let _other = gate.admit(addr("192.0.2.2:1")).unwrap();
        assert_eq!(gate.open(), 2);
        drop(first);
        assert!(gate.admit(addr("192.0.2.1:2")).is_ok());
    }

    #[test]
    fn a_proxys_connections_count_for_the_clients_that_it_announces() {
        let gate = Gate::new(10, Some(1), 1);
        let proxy = addr("10.0.0.1:1");
        let mut permits: Vec<_> = (0..3)
            .map(|_| gate.admit_messenger(proxy).unwrap())
            .collect();
        let told: Vec<_> = ["192.0.2.1", "192.0.2.1", "2001:db8::1"]
            .into_iter()
            .zip(&mut permits)
            .map(|(client, permit)| permit.count_for(client.parse().unwrap()))
            .collect();
        assert_eq!(told, [Ok(()), Err(Refused::AddressLimit), Ok(())]);
        // A /64 network is one address, also for those who come by themselves.
        let neighbour = gate.admit(addr("[2001:db8::2]:1")).unwrap_err();
        assert_eq!(neighbour, Refused::AddressLimit);
        permits.clear();
        assert!(gate.admit(addr("192.0.2.1:1")).is_ok());
        assert_eq!(gate.open(), 0);
    }

    #[test]
    fn upstreams_have_a_cap_of_their_own() {
        let gate = Gate::new(1, None, 2);
        let _client = gate.admit(addr("192.0.2.1:1")).unwrap();
        let first = gate.admit_upstream(None).unwrap();
        let _second = gate.admit_upstream(None).unwrap();
        assert_eq!(
            gate.admit_upstream(None).unwrap_err(),
            Refused::UpstreamLimit
        );
        assert_eq!((gate.open(), gate.upstreams()), (1, 2));
        drop(first);
        assert!(gate.admit_upstream(None).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_cap_an_idle_connection_makes_room() {
        let gate = Gate::new(1, None, 1);
        let soon = || Instant::now() + Duration::from_millis(500);
        let busy = gate.admit_upstream(None).unwrap();
        let begun = Instant::now();
        assert!(
            gate.admit_upstream_by(None, soon(), || false)
                .await
                .is_err()
        );
        assert!(begun.elapsed() <= 2 * MOMENT, "none is idle");
        let begun = Instant::now();
        let keeper = async {
            gate.pressed().await;
            assert_eq!(gate.waiting(), 1);
            drop(busy);
        };
        let ((), permit) = tokio::join!(keeper, gate.admit_upstream_by(None, soon(), || true));
        assert!(permit.is_ok() && begun.elapsed().is_zero());
        assert_eq!(gate.waiting(), 0);
        // One that will not go is not waited for long.
        assert!(gate.admit_upstream_by(None, soon(), || true).await.is_err());
        assert!(!begun.elapsed().is_zero());
    }

    /// The last ones are for those who have none, who get the one that another has to give up.
    #[tokio::test(start_paused = true)]
    async fn an_owner_of_containers_leaves_the_last_ones_to_others() {
        let gate = Gate::new(1, None, 10);
        let (one, two) = (Some(UserId(1)), Some(UserId(2)));
        let soon = || Instant::now() + Duration::from_millis(500);
        let mut greedy: Vec<_> = std::iter::from_fn(|| gate.admit_upstream(one).ok()).collect();
        assert_eq!(greedy.len(), 8);
        assert_eq!(gate.admit_upstream(one).unwrap_err(), Refused::OwnerLimit);
        let _other = gate.admit_upstream(two).unwrap();
        let _route = gate.admit_upstream(None).unwrap();
        assert_eq!(
            gate.admit_upstream(two).unwrap_err(),
            Refused::UpstreamLimit
        );
        greedy.truncate(5);
        // Two that wait for their own share do not keep each other awake.
        let begun = Instant::now();
        let five = gate.admit_upstream(one).unwrap();
        greedy.push(five);
        while let Ok(more) = gate.admit_upstream(one) {
            greedy.push(more);
        }
        let both = tokio::join!(
            gate.admit_upstream_by(one, soon(), || false),
            gate.admit_upstream_by(one, soon(), || false)
        );
        assert_eq!(both.0.unwrap_err(), Refused::OwnerLimit);
        assert_eq!(both.1.unwrap_err(), Refused::OwnerLimit);
        assert!(begun.elapsed() <= 2 * MOMENT);
        let idle = greedy.pop();
        let keeper = async {
            gate.pressed().await;
            drop(idle);
        };
        let ((), permit) = tokio::join!(keeper, gate.admit_upstream_by(one, soon(), || true));
        assert!(permit.is_ok());
    }

    #[test]
    fn own_listeners_are_known_by_any_of_their_addresses() {
        let gate = Gate::new(1, None, 1);
        gate.listening_on(vec![
            addr("127.0.0.5:80"),
            addr("0.0.0.0:8000"),
            addr("[::]:9000"),
        ]);
        for own in [
            "127.0.0.5:80",
            "[::ffff:127.0.0.5]:80",
            "127.0.0.1:8000",
            "0.0.0.0:8000",
            "127.0.0.1:9000",
            "[::1]:9000",
        ] {
            assert!(gate.is_own(addr(own)), "{own}");
            assert_eq!(gate.admit(addr(own)).unwrap_err(), Refused::Loop);
        }
        for other in [
            "127.0.0.1:80",
            "127.0.0.5:81",
            "127.64.0.2:8000",
            "192.0.2.7:8000",
            "[::1]:8000",
        ] {
            assert!(!gate.is_own(addr(other)), "{other}");
        }
        assert!(gate.has_address("127.0.0.5".parse().unwrap()));
        assert!(gate.has_address("127.0.0.1".parse().unwrap()));
        assert!(!gate.has_address("127.64.0.2".parse().unwrap()));
        assert_eq!(gate.open(), 0);
    }
}
