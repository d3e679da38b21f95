//! How many may stand at the door: connections that have not logged in yet.
//!
//! They cost memory and key exchanges and nobody vouches for them, so they are
//! counted in all and per address. Who has logged in is not counted here.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::listener::subscriber;

/// Counts the connections that have not logged in.
#[derive(Debug)]
pub(crate) struct Lobby {
    max: usize,
    per_address_max: usize,
    /// Locked for a map operation at a time, by connects and logins only.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Full {
    /// Too many in all.
    All,
    /// Too many from this address.
    Address,
}

impl Full {
    /// Label of the metric.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::All => "ssh_login_limit",
            Self::Address => "ssh_login_address_limit",
        }
    }
}

/// A place at the door, given back when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    lobby: Arc<Lobby>,
    address: IpAddr,
}

impl Lobby {
    /// Room for `max` in all and `per_address_max` of one address.
    pub(crate) fn new(max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            per_address_max,
            waiting: Mutex::default(),
        })
    }

    /// Takes a place, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, peer: IpAddr) -> Result<Ticket, Full> {
        let address = subscriber(peer);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.all >= self.max {
            return Err(Full::All);
        }
        let of_address = waiting.by_address.entry(address).or_default();
        if *of_address >= self.per_address_max {
            return Err(Full::Address);
        }
        *of_address += 1;
        waiting.all += 1;
        Ok(Ticket {
            lobby: Arc::clone(self),
            address,
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let waiting = &self.lobby.waiting;
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.all = waiting.all.saturating_sub(1);
        if let Some(count) = waiting.by_address.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                waiting.by_address.remove(&self.address);
            }
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
    fn places_are_counted_in_all_and_per_address_and_given_back() {
        let lobby = Lobby::new(3, 2);
        let first = lobby.enter(ip("192.0.2.1")).unwrap();
        let _second = lobby.enter(ip("::ffff:192.0.2.1")).unwrap();
        assert_eq!(
            lobby.enter(ip("192.0.2.1")).err(),
            Some(Full::Address),
            "the mapped form is the same address"
        );
        let _third = lobby.enter(ip("192.0.2.2")).unwrap();
        assert_eq!(lobby.enter(ip("192.0.2.3")).err(), Some(Full::All));
        drop(first);
        let _again = lobby.enter(ip("192.0.2.1")).unwrap();
    }

    #[test]
    fn a_64_network_is_one_address() {
        let lobby = Lobby::new(10, 1);
        let _one = lobby.enter(ip("2001:db8::1")).unwrap();
        assert!(lobby.enter(ip("2001:db8::2")).is_err());
        assert!(lobby.enter(ip("2001:db8:0:1::1")).is_ok());
    }
}
