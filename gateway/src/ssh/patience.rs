//! How long a refusal takes, by address: the more of them, the longer.
//!
//! Only refusals wait. The right key is let in at once, whoever else guesses
//! behind the same address, and an address from which somebody has logged in may
//! have more of them for a while; not any number, or whoever has a key of his own
//! could guess for others. Both are remembered in bounded memory; what is
//! forgotten there is forgiven.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::listener::subscriber;

/// Every refused key costs this, whatever the reason. It pads a lookup of microseconds; more
/// would only tax clients with several keys in their agent.
pub(crate) const REFUSAL: Duration = Duration::from_millis(250);

/// So many refusals of an address cost no more than one: an agent full of keys.
const FREE: u32 = 10;

/// Likewise, after a login from there: several people with an agent each behind one address.
const FREE_TRUSTED: u32 = 40;

/// After so many more a refusal takes twice as long…
const STEP: u32 = 5;

/// …up to this.
const REFUSAL_MAX: Duration = Duration::from_secs(4);

/// One refusal is forgotten in each of these.
const FORGET: Duration = Duration::from_secs(6);

/// More than this need not be counted: they take [`REFUSAL_MAX`], trusted or not.
const REFUSALS_MAX: u32 = 60;

/// How long an address is trusted after a login.
const TRUST: Duration = Duration::from_secs(60 * 60);

/// Addresses that are remembered for refusals, and as many for logins.
const ADDRESSES_MAX: usize = 8192;

/// Remembers refusals and logins by address, an IPv6 network of 64 bits counting as one.
#[derive(Debug)]
pub(crate) struct Patience {
    /// Locked for a map operation, by logins and refusals only.
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    refused: Recent<Refusals>,
    trusted: Recent<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Refusals {
    count: u32,
    /// When `count` was right.
    at: Instant,
}

impl Patience {
    /// Nobody is known.
    pub(crate) fn new() -> Self {
        Self {
            known: Mutex::new(Known {
                refused: Recent::new(ADDRESSES_MAX),
                trusted: Recent::new(ADDRESSES_MAX),
            }),
        }
    }

    /// Counts a refusal; how long it shall take.
    pub(crate) fn refused(&self, peer: IpAddr) -> Duration {
        self.refused_at(peer, Instant::now())
    }

    /// Somebody has logged in from there.
    pub(crate) fn welcomed(&self, peer: IpAddr) {
        self.welcomed_at(peer, Instant::now());
    }

    fn refused_at(&self, peer: IpAddr, now: Instant) -> Duration {
        let address = subscriber(peer);
        let mut known = self.lock();
        let trusted = known.trusted.get(&address);
        let free = match trusted.is_some_and(|at| now.saturating_duration_since(at) < TRUST) {
            true => FREE_TRUSTED,
            false => FREE,
        };
        let before = known.refused.get(&address).map_or(0, |refusals| {
            let past = now.saturating_duration_since(refusals.at).as_secs() / FORGET.as_secs();
            let forgotten = u32::try_from(past).unwrap_or(u32::MAX);
            refusals.count.saturating_sub(forgotten)
        });
        let count = (before + 1).min(REFUSALS_MAX);
        known.refused.put(address, Refusals { count, at: now });
        let doublings = (count.saturating_sub(free)).div_ceil(STEP).min(16);
        (REFUSAL * 2_u32.pow(doublings)).min(REFUSAL_MAX)
    }

    fn welcomed_at(&self, peer: IpAddr, now: Instant) {
        let address = subscriber(peer);
        // What was refused still counts: or a login now and then would pay for any number.
        self.lock().trusted.put(address, now);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A map that forgets whom it has known for longest when it is full.
#[derive(Debug)]
struct Recent<T> {
    max: usize,
    values: HashMap<IpAddr, T>,
    /// The keys of `values`, in the order in which they came.
    order: VecDeque<IpAddr>,
}

impl<T: Copy> Recent<T> {
    fn new(max: usize) -> Self {
        Self {
            max,
            values: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    fn get(&self, address: &IpAddr) -> Option<T> {
        self.values.get(address).copied()
    }

    fn put(&mut self, address: IpAddr, value: T) {
        if self.values.insert(address, value).is_some() {
            return;
        }
        self.order.push_back(address);
        if self.values.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.values.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn refusals_take_longer_and_longer_and_are_forgotten() {
        let patience = Patience::new();
        let now = Instant::now();
        let one = || patience.refused_at(ip("192.0.2.1"), now);
        let took: Vec<_> = (0..40).map(|_| one()).collect();
        assert!(took[..10].iter().all(|time| *time == REFUSAL));
        assert_eq!(took[10], 2 * REFUSAL);
        assert_eq!(took[15], 4 * REFUSAL);
        assert_eq!(took[39], REFUSAL_MAX);
        assert!(took.is_sorted());
        assert_eq!(patience.refused_at(ip("192.0.2.2"), now), REFUSAL);
        let later = now + FORGET * REFUSALS_MAX;
        assert_eq!(patience.refused_at(ip("192.0.2.1"), later), REFUSAL);
    }

    #[test]
    fn who_has_logged_in_may_be_refused_more_often_but_not_for_ever() {
        let patience = Patience::new();
        let now = Instant::now();
        let refused = |times: u32, at| {
            (0..times)
                .map(|_| patience.refused_at(ip("2001:db8::1"), at))
                .last()
        };
        assert_eq!(refused(20, now), Some(4 * REFUSAL));
        patience.welcomed_at(ip("2001:db8::2"), now);
        assert_eq!(refused(FREE_TRUSTED - 20, now), Some(REFUSAL));
        // Another login in between changes nothing.
        patience.welcomed_at(ip("2001:db8::1"), now);
        assert_eq!(refused(1, now), Some(2 * REFUSAL));
        assert_eq!(refused(20, now), Some(REFUSAL_MAX));
        // All is forgotten by then, and nobody has logged in for an hour.
        let later = now + TRUST;
        assert_eq!(refused(FREE, later), Some(REFUSAL));
        assert_eq!(refused(1, later), Some(2 * REFUSAL));
    }

    #[test]
    fn memory_is_bounded() {
        let mut recent = Recent::new(3);
        for n in 0..100_u8 {
            recent.put([192, 0, 2, n].into(), n);
            recent.put([192, 0, 2, n].into(), n);
        }
        assert!(recent.values.len() == 3 && recent.order.len() == 3);
        assert_eq!(recent.get(&ip("192.0.2.99")), Some(99));
    }
}
