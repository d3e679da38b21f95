//! How often one may fail to log in: token buckets in a table of fixed size.
//!
//! A bucket is found by a keyed hash, so nothing has to be evicted and memory
//! never grows. Two keys may share a bucket, at random and rarely; nobody can
//! aim at it without knowing the table's keys.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Buckets in the table: 16 bytes each, 1 MiB in all.
const BUCKETS: usize = 1 << 16;

/// Failures that are allowed at once, and how fast the allowance returns.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Attempts at once.
    pub burst: u32,
    /// The time after which one more is allowed.
    pub refill: Duration,
}

/// The limits of log-in attempts. Successful ones cost nothing.
#[derive(Clone, Copy, Debug)]
pub struct LoginLimits {
    /// Of one address, whoever it says to be.
    pub address: Rate,
    /// Of one address for one user.
    pub pair: Rate,
    /// For one user from everywhere. Generous: it can lock the user out.
    pub user: Rate,
}

impl Default for LoginLimits {
    fn default() -> Self {
        Self {
            address: Rate {
                burst: 60,
                refill: Duration::from_secs(1),
            },
            pair: Rate {
                burst: 10,
                refill: Duration::from_secs(6),
            },
            user: Rate {
                burst: 100,
                refill: Duration::from_secs(1),
            },
        }
    }
}

/// Counts log-in attempts.
#[derive(Debug)]
pub struct LoginLimiter {
    limits: LoginLimits,
    keys: RandomState,
    started: Instant,
    // Held for a few arithmetic operations, never across an await.
    buckets: Mutex<Vec<Bucket>>,
}

/// The moment at which a bucket is full again, since the limiter's start. One
/// number is enough: every attempt moves it on by one refill time, and it may not
/// be further away than a burst.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: Duration,
}

/// An attempt that was allowed. Given back when it succeeds.
#[derive(Debug)]
#[must_use = "a successful attempt is given back"]
pub struct Attempt {
    taken: [(usize, Duration); 3],
}

impl LoginLimiter {
    /// With every allowance full.
    pub fn new(limits: LoginLimits) -> Self {
        Self {
            limits,
            keys: RandomState::new(),
            started: Instant::now(),
            buckets: Mutex::new(vec![Bucket::default(); BUCKETS]),
        }
    }

    /// Takes an attempt of `address` for `username`, or says how long to wait.
    ///
    /// The address is asked first: one that is used up touches no other bucket,
    /// so a single address cannot fill the table.
    pub fn attempt(&self, address: IpAddr, username: &str) -> Result<Attempt, Duration> {
        self.attempt_at(self.started.elapsed(), address, username)
    }

    fn attempt_at(
        &self,
        now: Duration,
        address: IpAddr,
        username: &str,
    ) -> Result<Attempt, Duration> {
        let address = network(address);
        let wanted = [
            (self.bucket(&(0_u8, address)), self.limits.address),
            (self.bucket(&(1_u8, address, username)), self.limits.pair),
            (self.bucket(&(2_u8, username)), self.limits.user),
        ];
        let mut taken = [(0, Duration::ZERO); 3];
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        for (done, (index, rate)) in wanted.into_iter().enumerate() {
            let Some(bucket) = buckets.get_mut(index) else {
                continue;
            };
            let full_at = bucket.full_at.max(now) + rate.refill;
            let latest = now + rate.refill * rate.burst;
            if full_at > latest {
                for (index, refill) in taken.into_iter().take(done) {
                    give_back(&mut buckets, index, refill);
                }
                return Err(full_at - latest);
            }
            bucket.full_at = full_at;
            taken[done] = (index, rate.refill);
        }
        Ok(Attempt { taken })
    }

    /// Gives an attempt back: it succeeded, or was never made.
    pub fn succeeded(&self, attempt: Attempt) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, refill) in attempt.taken {
            give_back(&mut buckets, index, refill);
        }
    }

    fn bucket(&self, key: &impl std::hash::Hash) -> usize {
        // The remainder is below BUCKETS, which fits.
        (self.keys.hash_one(key) % BUCKETS as u64) as usize
    }
}

fn give_back(buckets: &mut [Bucket], index: usize, refill: Duration) {
    if let Some(bucket) = buckets.get_mut(index) {
        bucket.full_at = bucket.full_at.saturating_sub(refill);
    }
}

/// Who an address stands for: an IPv6 client owns at least a /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let bits = u128::from(v6) & (u128::MAX << 64);
            IpAddr::V6(bits.into())
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn limiter() -> LoginLimiter {
        let rate = |burst, secs| Rate {
            burst,
            refill: Duration::from_secs(secs),
        };
        LoginLimiter::new(LoginLimits {
            address: rate(5, 1),
            pair: rate(3, 10),
            user: rate(8, 1),
        })
    }

    fn fails(limiter: &LoginLimiter, at_secs: u64, address: IpAddr, user: &str) -> bool {
        limiter
            .attempt_at(Duration::from_secs(at_secs), address, user)
            .is_ok()
    }

    #[test]
    fn one_user_from_one_address_gets_a_burst_then_a_trickle() {
        let limiter = limiter();
        assert!((0..3).all(|_| fails(&limiter, 0, HOME, "alice")));
        let wait = limiter
            .attempt_at(Duration::ZERO, HOME, "alice")
            .unwrap_err();
        assert_eq!(wait, Duration::from_secs(10));
        assert!(!fails(&limiter, 9, HOME, "alice"));
        assert!(fails(&limiter, 10, HOME, "alice"));
        assert!(!fails(&limiter, 10, HOME, "alice"));
    }

    #[test]
    fn one_address_is_bounded_over_all_users() {
        let limiter = limiter();
        assert!((0..5).all(|n| fails(&limiter, 0, HOME, &format!("user{n}"))));
        assert!(!fails(&limiter, 0, HOME, "someone"));
        assert!(fails(&limiter, 0, "192.0.2.2".parse().unwrap(), "someone"));
    }

    #[test]
    fn one_user_is_bounded_over_all_addresses() {
        let limiter = limiter();
        let from = |n: u8| IpAddr::from([192, 0, 2, n]);
        assert!((0..8).all(|n| fails(&limiter, 0, from(n), "alice")));
        assert!(!fails(&limiter, 0, from(9), "alice"));
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let limiter = limiter();
        let from = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, n, 0, 0, n]);
        assert!((0..5).all(|n| fails(&limiter, 0, from(n), &format!("user{n}"))));
        assert!(!fails(&limiter, 0, from(6), "someone"));
    }

    #[test]
    fn success_costs_nothing_and_a_refusal_takes_nothing() {
        let limiter = limiter();
        for _ in 0..100 {
            let attempt = limiter.attempt_at(Duration::ZERO, HOME, "alice").unwrap();
            limiter.succeeded(attempt);
        }
        assert!((0..3).all(|_| fails(&limiter, 0, HOME, "alice")));
        assert!(
            (0..50).all(|_| !fails(&limiter, 0, HOME, "alice")),
            "refused by the pair"
        );
        assert!(
            (0..2).all(|_| fails(&limiter, 0, HOME, "bob")),
            "the address paid for it"
        );
    }
}
