//! How many may stand at the door: connections that have not logged in yet.
//!
//! They cost memory and key exchanges and nobody vouches for them, so they are
//! counted in all and per address. Who has logged in is not counted here.
//!
//! Where sshd's `MaxStartups` drops the newcomer, somebody else has to go here:
//! whoever has stopped half-open; else of the address that has the most, whoever
//! is least on the way to a login ([`Way`]); of these the one that came first. A newcomer is thereby let in
//! whatever stands at the door, also from the same address: to push it out,
//! somebody has to open as many connections as there are places within the
//! moment that its login takes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::listener::subscriber;

/// Who has not got further for so long is not on its way any more.
const STALLED: Duration = Duration::from_millis(1500);

/// How many may wait, and from when on some of them go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Startups {
    /// From so many on, one of them goes at random when another comes.
    pub start: usize,
    /// How likely that is then, in percent; it grows evenly up to `full`.
    pub rate: u8,
    /// From so many on, one goes for each that comes.
    pub full: usize,
}

impl Startups {
    /// Whether one has to go when there are `waiting` and another comes; `dice` is in 0..100.
    fn is_over(self, waiting: usize, dice: u8) -> bool {
        if waiting >= self.full {
            return true;
        }
        let Some(above) = waiting.checked_sub(self.start) else {
            return false;
        };
        let steps = self.full.saturating_sub(self.start).max(1);
        let growth = 100_usize.saturating_sub(usize::from(self.rate)) * above / steps;
        usize::from(dice) < usize::from(self.rate) + growth
    }
}

/// Counts the connections that have not logged in.
#[derive(Debug)]
pub(crate) struct Lobby {
    startups: Startups,
    per_address_max: usize,
    /// Locked for a walk over at most `full` entries, by connects and logins only.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// In the order in which they came.
    guests: BTreeMap<u64, Guest>,
    by_address: HashMap<IpAddr, usize>,
    next: u64,
}

#[derive(Debug)]
struct Guest {
    address: IpAddr,
    stage: Stage,
    /// When it got there.
    since: Instant,
    /// Whether it has shown a key that does not fit.
    refused: bool,
    leave: CancellationToken,
}

/// Whether it looks like somebody who will log in; the first has to go first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Way {
    /// Half-open: it has stopped before the key exchange was over.
    Stopped,
    /// It guesses, or has many keys.
    Refused,
    /// Its user may be typing a passphrase.
    Waiting,
    /// It goes on.
    Going,
}

impl Guest {
    fn way(&self, now: Instant) -> Way {
        let stalled = now.saturating_duration_since(self.since) >= STALLED;
        match (self.stage, stalled) {
            (Stage::Connected | Stage::Identified, true) => Way::Stopped,
            _ if self.refused => Way::Refused,
            (Stage::Keyed, true) => Way::Waiting,
            _ => Way::Going,
        }
    }
}

/// How far it has got.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Stage {
    /// It has connected.
    Connected,
    /// It has said what it is.
    Identified,
    /// It has exchanged keys.
    Keyed,
}

/// Why somebody had to go.
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
    number: u64,
    leave: CancellationToken,
}

impl Lobby {
    /// Room as `startups` says in all, and for `per_address_max` of one address.
    pub(crate) fn new(startups: Startups, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self {
            startups,
            per_address_max: per_address_max.max(1),
            waiting: Mutex::default(),
        })
    }

    /// Takes a place. There always is one; who had to go for it, if anybody.
    pub(crate) fn enter(self: &Arc<Self>, peer: IpAddr) -> (Ticket, Option<Full>) {
        self.enter_by(peer, rand::random_range(0..100), Instant::now())
    }

    fn enter_by(self: &Arc<Self>, peer: IpAddr, dice: u8, now: Instant) -> (Ticket, Option<Full>) {
        let address = subscriber(peer);
        let mut waiting = self.lock();
        let of_address = waiting.by_address.get(&address).copied().unwrap_or(0);
        let full = if of_address >= self.per_address_max {
            waiting.send_away(Some(address), now);
            Some(Full::Address)
        } else if self.startups.is_over(waiting.guests.len(), dice) {
            waiting.send_away(None, now);
            Some(Full::All)
        } else {
            None
        };
        let number = waiting.next;
        waiting.next += 1;
        *waiting.by_address.entry(address).or_default() += 1;
        let leave = CancellationToken::new();
        let guest = Guest {
            address,
            stage: Stage::Connected,
            since: now,
            refused: false,
            leave: leave.clone(),
        };
        waiting.guests.insert(number, guest);
        let ticket = Ticket {
            lobby: Arc::clone(self),
            number,
            leave,
        };
        (ticket, full)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Sends one away: of `address`, or of all. Of all, who has stopped goes before everybody else,
    /// or many addresses with one half-open connection each would push out whoever has two that
    /// go on; only then it is the address with the most.
    fn send_away(&mut self, address: Option<IpAddr>, now: Instant) {
        let of = |guest: &Guest| self.by_address.get(&guest.address).copied();
        let found = self
            .guests
            .iter()
            .filter(|(_, guest)| address.is_none_or(|address| guest.address == address))
            .min_by_key(|(number, guest)| {
                let way = guest.way(now);
                (way != Way::Stopped, Reverse(of(guest)), way, **number)
            })
            .map(|(number, _)| *number);
        if let Some(guest) = found.and_then(|number| self.remove(number)) {
            guest.leave.cancel();
        }
    }

    fn remove(&mut self, number: u64) -> Option<Guest> {
        let guest = self.guests.remove(&number)?;
        if let Some(count) = self.by_address.get_mut(&guest.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_address.remove(&guest.address);
            }
        }
        Some(guest)
    }
}

impl Ticket {
    /// Cancelled when its holder has to go.
    pub(crate) fn leave(&self) -> CancellationToken {
        self.leave.clone()
    }

    /// Its holder has got so far.
    pub(crate) fn advance(&self, stage: Stage) {
        self.advance_at(stage, Instant::now());
    }

    fn advance_at(&self, stage: Stage, now: Instant) {
        if let Some(guest) = self.lobby.lock().guests.get_mut(&self.number)
            && guest.stage < stage
        {
            guest.stage = stage;
            guest.since = now;
        }
    }

    /// Its holder has shown a key that does not fit.
    pub(crate) fn refused(&self) {
        if let Some(guest) = self.lobby.lock().guests.get_mut(&self.number) {
            guest.refused = true;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.lobby.lock().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never at random.
    fn hard(full: usize) -> Startups {
        Startups {
            start: full,
            rate: 100,
            full,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn gone(ticket: &Ticket) -> bool {
        ticket.leave.is_cancelled()
    }

    #[test]
    fn places_are_counted_in_all_and_per_address_and_given_back() {
        let lobby = Lobby::new(hard(3), 2);
        let (first, none) = lobby.enter(ip("192.0.2.1"));
        assert_eq!(none, None);
        let (_second, _) = lobby.enter(ip("::ffff:192.0.2.1"));
        let (third, full) = lobby.enter(ip("192.0.2.1"));
        assert_eq!(full, Some(Full::Address), "the mapped form is the same");
        assert!(gone(&first));
        drop(first);
        let (_other, none) = lobby.enter(ip("192.0.2.2"));
        assert_eq!(none, None);
        assert_eq!(lobby.enter(ip("192.0.2.3")).1, Some(Full::All));
        drop(third);
        assert_eq!(lobby.enter(ip("192.0.2.4")).1, None);
    }

    #[test]
    fn a_64_network_is_one_address() {
        let lobby = Lobby::new(hard(10), 1);
        let _one = lobby.enter(ip("2001:db8::1"));
        assert!(lobby.enter(ip("2001:db8::2")).1.is_some());
        assert!(lobby.enter(ip("2001:db8:0:1::1")).1.is_none());
    }

    #[test]
    fn who_is_least_on_the_way_goes_first_and_then_who_came_first() {
        let lobby = Lobby::new(hard(100), 6);
        let begin = Instant::now();
        let later = begin + STALLED;
        let enter = |now| lobby.enter_by(ip("192.0.2.1"), 99, now).0;
        let [typing, guessing, silent, half_open] = std::array::from_fn(|_| enter(begin));
        typing.advance_at(Stage::Keyed, begin);
        guessing.advance_at(Stage::Keyed, later);
        guessing.refused();
        half_open.advance_at(Stage::Identified, begin);
        let first = enter(later);
        let going = enter(later);
        going.advance_at(Stage::Keyed, later);
        for expected in [&silent, &half_open, &guessing, &typing, &first, &going] {
            assert!(!gone(expected));
            // Kept, or its place would be free again.
            std::mem::forget(enter(later));
            assert!(gone(expected));
        }
    }

    #[test]
    fn who_has_the_most_pays_for_all() {
        let lobby = Lobby::new(hard(6), 5);
        let single = lobby.enter(ip("192.0.2.1")).0;
        let crowd: Vec<_> = (0..5).map(|_| lobby.enter(ip("192.0.2.2")).0).collect();
        let (_new, full) = lobby.enter(ip("192.0.2.3"));
        assert_eq!(full, Some(Full::All));
        assert!(gone(&crowd[0]) && !gone(&crowd[1]) && !gone(&single));
    }

    #[test]
    fn who_has_stopped_goes_before_who_goes_on_whatever_their_addresses_have() {
        let lobby = Lobby::new(hard(103), 50);
        let begin = Instant::now();
        let later = begin + STALLED;
        let stalled: Vec<_> = (0..100)
            .map(|n| lobby.enter_by(ip(&format!("192.0.2.{n}")), 99, begin).0)
            .collect();
        let enter = || lobby.enter_by(ip("198.51.100.1"), 99, later);
        let mut going: Vec<_> = (0..3).map(|_| enter().0).collect();
        for old in stalled.iter().take(40) {
            assert!(!gone(old));
            let (new, full) = enter();
            assert_eq!(full, Some(Full::All));
            assert!(gone(old) && !going.iter().any(gone));
            going.push(new);
        }
    }

    #[test]
    fn dropping_begins_early_and_grows() {
        let startups = Startups {
            start: 10,
            rate: 30,
            full: 110,
        };
        let least = |waiting| (0..=100).find(|dice| !startups.is_over(waiting, *dice));
        assert_eq!(least(9), Some(0));
        assert_eq!(least(10), Some(30));
        assert_eq!(least(60), Some(65));
        assert_eq!(least(109), Some(99));
        assert_eq!(least(110), None);
        let lobby = Lobby::new(startups, 100);
        let held: Vec<_> = (0..10).map(|_| lobby.enter(ip("192.0.2.1")).0).collect();
        let enter = |dice| lobby.enter_by(ip("192.0.2.2"), dice, Instant::now());
        assert_eq!(enter(30).1, None);
        assert_eq!(enter(29).1, Some(Full::All));
        assert!(gone(&held[0]));
    }
}
