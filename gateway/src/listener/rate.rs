//! Requests per second of one client address: one question per request.
//!
//! A token bucket per address, kept as the one moment at which it will be full
//! again (GCRA). The buckets live in a table of a fixed size, whatever clients
//! do; where it is too small, the address that has been quiet for the longest
//! is forgotten, which forgives it and nobody else. Shared by all threads, since
//! the connections of one client are spread over them.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::subscriber::subscriber;

/// How many requests an address may make.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RequestRate {
    /// In each second, for as long as it likes. At least 1.
    pub per_second: u32,
    /// At once, after having been quiet. At least 1.
    pub burst: u32,
}

/// A request that comes too soon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooSoon {
    /// Whole seconds until one would be let through, as `Retry-After` wants them; at least 1.
    pub retry_after_secs: u64,
}

/// Counts the requests of each address; without a rate, lets everything through.
pub struct RequestGate(Option<Limiter>);

struct Limiter {
    /// Between two requests at the steady rate.
    interval_nanos: u64,
    /// How far a bucket may be from full.
    tolerance_nanos: u64,
    begun: Instant,
    // Random, or clients could choose addresses that share a place.
    hasher: RandomState,
    // Plain locks: a few comparisons each, and two threads rarely meet in one of so many.
    sets: Box<[Mutex<[Bucket; WAYS]>]>,
}

#[derive(Clone, Copy)]
struct Bucket {
    address: IpAddr,
    /// When it is full again, in nanoseconds since the limiter began.
    full_at: u64,
}

impl RequestGate {
    /// A gate for this rate; none: an open one.
    pub fn new(rate: Option<RequestRate>) -> Self {
        Self(rate.map(|rate| Limiter::new(rate, SETS)))
    }

    /// Whether there is a rate at all.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether `client` may make a request now; counts it if it may.
    ///
    /// # Errors
    /// It has made too many. A refused request costs it nothing.
    pub fn admit(&self, client: IpAddr) -> Result<(), TooSoon> {
        match &self.0 {
            None => Ok(()),
            Some(limiter) => limiter.admit(client, Instant::now()),
        }
    }
}

impl fmt::Debug for RequestGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequestGate").field(&self.is_on()).finish()
    }
}

impl Limiter {
    fn new(rate: RequestRate, sets: usize) -> Self {
        let interval_nanos = SECOND / u64::from(rate.per_second.max(1));
        let empty = Bucket {
            address: IpAddr::from([0, 0, 0, 0]),
            full_at: 0,
        };
        Self {
            interval_nanos,
            tolerance_nanos: interval_nanos * u64::from(rate.burst.saturating_sub(1)),
            begun: Instant::now(),
            hasher: RandomState::new(),
            sets: (0..sets).map(|_| Mutex::new([empty; WAYS])).collect(),
        }
    }

    fn admit(&self, client: IpAddr, now: Instant) -> Result<(), TooSoon> {
        let address = subscriber(client);
        let since = now.saturating_duration_since(self.begun);
        let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let index = self.hasher.hash_one(address) % self.sets.len().max(1) as u64;
        let set = usize::try_from(index).ok().and_then(|i| self.sets.get(i));
        let Some(set) = set else { return Ok(()) };
        let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
        // Its own bucket, else that of whoever has been quiet for the longest.
        let own = set.iter().position(|bucket| bucket.address == address);
        let bucket = match own {
            Some(at) => set.get_mut(at),
            None => set.iter_mut().min_by_key(|bucket| bucket.full_at),
        };
        let Some(bucket) = bucket else { return Ok(()) };
        if own.is_none() {
            *bucket = Bucket {
                address,
                full_at: 0,
            };
        }
        let full_at = bucket.full_at.max(now);
        let early = full_at - now;
        if early > self.tolerance_nanos {
            let wait = Duration::from_nanos(early - self.tolerance_nanos);
            let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            return Err(TooSoon {
                retry_after_secs: whole.max(1),
            });
        }
        bucket.full_at = full_at + self.interval_nanos;
        Ok(())
    }
}

const SECOND: u64 = 1_000_000_000;

/// Buckets that share a lock.
const WAYS: usize = 8;

/// Times [`WAYS`]: 65,536 addresses in about 2.5 MiB.
const SETS: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(per_second: u32, burst: u32, sets: usize) -> (Limiter, Instant) {
        let limiter = Limiter::new(RequestRate { per_second, burst }, sets);
        let begun = limiter.begun;
        (limiter, begun)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// How many of `count` requests at one moment are let through.
    fn let_through(limiter: &Limiter, address: &str, count: usize, at: Instant) -> usize {
        (0..count)
            .filter(|_| limiter.admit(ip(address), at).is_ok())
            .count()
    }

    #[test]
    fn a_burst_is_let_through_and_then_the_steady_rate() {
        let (limiter, begun) = limiter(10, 5, 8);
        assert_eq!(let_through(&limiter, "192.0.2.1", 20, begun), 5);
        let later = begun + Duration::from_millis(100);
        assert_eq!(let_through(&limiter, "192.0.2.1", 20, later), 1);
        let later = later + Duration::from_millis(350);
        assert_eq!(let_through(&limiter, "192.0.2.1", 20, later), 3);
        // Quiet for long: a whole burst again, and no more.
        let later = later + Duration::from_secs(3600);
        assert_eq!(let_through(&limiter, "192.0.2.1", 20, later), 5);
    }

    #[test]
    fn whoever_is_refused_is_told_when_to_come_again() {
        for (per_second, burst, wait) in [(1, 1, 1), (10, 1, 1), (1, 5, 1)] {
            let (limiter, begun) = limiter(per_second, burst, 8);
            while limiter.admit(ip("192.0.2.1"), begun).is_ok() {}
            let refused = limiter.admit(ip("192.0.2.1"), begun);
            let expected = TooSoon {
                retry_after_secs: wait,
            };
            assert_eq!(refused, Err(expected));
            let then = begun + Duration::from_secs(wait);
            assert!(limiter.admit(ip("192.0.2.1"), then).is_ok());
        }
    }

    #[test]
    fn addresses_do_not_pay_for_each_other_and_a_64_network_is_one() {
        let (limiter, begun) = limiter(1, 1, 8);
        assert_eq!(let_through(&limiter, "192.0.2.1", 2, begun), 1);
        assert_eq!(let_through(&limiter, "::ffff:192.0.2.1", 2, begun), 0);
        assert_eq!(let_through(&limiter, "192.0.2.2", 2, begun), 1);
        assert_eq!(let_through(&limiter, "2001:db8::1", 2, begun), 1);
        assert_eq!(let_through(&limiter, "2001:db8::2", 2, begun), 0);
        assert_eq!(let_through(&limiter, "2001:db8:0:1::1", 2, begun), 1);
    }

    #[test]
    fn more_addresses_than_there_is_room_for_push_out_the_quietest() {
        let (limiter, begun) = limiter(1, 3, 1);
        // The busiest: its bucket is full again last.
        assert_eq!(let_through(&limiter, "192.0.2.1", 9, begun), 3);
        for last in 2..200 {
            let address = format!("192.0.2.{last}");
            assert_eq!(let_through(&limiter, &address, 1, begun), 1);
        }
        assert_eq!(let_through(&limiter, "192.0.2.1", 9, begun), 0);
    }

    #[test]
    fn without_a_rate_everything_is_let_through() {
        let gate = RequestGate::new(None);
        assert!((0..10_000).all(|_| gate.admit(ip("192.0.2.1")).is_ok()));
        assert!(!gate.is_on());
    }
}
