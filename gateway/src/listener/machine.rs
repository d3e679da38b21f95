//! The addresses of this machine.
//!
//! Read from `/proc`. Whether an address can be bound says less: with
//! `ip_nonlocal_bind` all can, and without free descriptors none.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is known of the machine's addresses, read again now and then.
#[derive(Debug)]
pub(super) struct Machine {
    read: fn() -> io::Result<Vec<IpAddr>>,
    // A plain lock: a search at a time, by the few who connect to a port of ours.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// In order.
    addresses: Vec<IpAddr>,
    again_at: Option<Instant>,
}

impl Machine {
    /// This one, of which nothing was read yet.
    pub(super) fn new() -> Self {
        Self::reading(interfaces)
    }

    fn reading(read: fn() -> io::Result<Vec<IpAddr>>) -> Self {
        Self {
            read,
            known: Mutex::default(),
        }
    }

    /// Whether `address`, in its canonical form, is one of an interface, as of some seconds ago.
    ///
    /// What cannot be read again is as it was.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.has_at(address, Instant::now())
    }

    fn has_at(&self, address: IpAddr, now: Instant) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.again_at.is_none_or(|at| at <= now) {
            let begun = Instant::now();
            if let Ok(mut addresses) = (self.read)() {
                addresses.sort_unstable();
                known.addresses = addresses;
            }
            // A machine with many routes has a lot to read.
            let pause = AGAIN.max(begun.elapsed() * SHARE);
            known.again_at = Some(now + pause);
        }
        known.addresses.binary_search(&address).is_ok()
    }
}

/// How old what is known may be.
const AGAIN: Duration = Duration::from_secs(1);

/// Reading takes one part in so many of the time at most.
const SHARE: u32 = 200;

/// The addresses of this machine's interfaces.
///
/// # Errors
/// The system does not tell.
pub(crate) fn interfaces() -> io::Result<Vec<IpAddr>> {
    let mut all = ipv4_of_fib_trie(&std::fs::read_to_string("/proc/net/fib_trie")?);
    // Not there without IPv6.
    match std::fs::read_to_string("/proc/net/if_inet6") {
        Ok(text) => all.extend(ipv6_of_if_inet6(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(all)
}

/// Lines `|-- 192.0.2.1` followed by `/32 host LOCAL`.
fn ipv4_of_fib_trie(text: &str) -> Vec<IpAddr> {
    let mut last = None;
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some((_, address)) = line.split_once("|-- ") {
            last = address.trim().parse::<Ipv4Addr>().ok();
        } else if line.contains("/32 host LOCAL") {
            found.extend(last.map(IpAddr::V4));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Lines that start with 32 hexadecimal digits.
fn ipv6_of_if_inet6(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| u128::from_str_radix(line.split_whitespace().next()?, 16).ok())
        .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn interfaces_are_read_from_proc() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.2.0\n        /24 link UNICAST\n     |-- 10.0.2.15\n        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        assert_eq!(
            ipv4_of_fib_trie(trie),
            ["10.0.2.15", "127.0.0.1"].map(|a| a.parse::<IpAddr>().unwrap())
        );
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(ipv6_of_if_inet6(inet6), ["::1".parse::<IpAddr>().unwrap()]);
        assert!(ipv6_of_if_inet6("garbage\n\n").is_empty());
        let here = interfaces().unwrap();
        assert!(here.contains(&"127.0.0.1".parse().unwrap()));
    }

    static READ: AtomicUsize = AtomicUsize::new(0);

    /// Gives one address, then another, then none for want of descriptors.
    fn scripted() -> io::Result<Vec<IpAddr>> {
        match READ.fetch_add(1, Ordering::SeqCst) {
            0 => Ok(vec!["192.0.2.1".parse().unwrap()]),
            1 => Ok(vec!["192.0.2.2".parse().unwrap()]),
            _ => Err(io::Error::from_raw_os_error(24)),
        }
    }

    #[test]
    fn what_is_known_is_read_again_at_times_and_stays_when_it_cannot_be() {
        let machine = Machine::reading(scripted);
        let begun = Instant::now();
        let has = |address: &str, after| machine.has_at(address.parse().unwrap(), begun + after);
        for _ in 0..3 {
            assert!(has("192.0.2.1", Duration::ZERO));
            assert!(!has("192.0.2.2", AGAIN / 2));
        }
        assert_eq!(READ.load(Ordering::SeqCst), 1);
        for round in 1..4 {
            let later = Duration::from_secs(60) * round;
            assert!(has("192.0.2.2", later), "round {round}");
            assert!(!has("192.0.2.1", later), "round {round}");
        }
        assert_eq!(READ.load(Ordering::SeqCst), 4);
    }
}
