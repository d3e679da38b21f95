//! Session tickets: what lets a client come back without a full handshake.
//!
//! Stateless (RFC 5077, RFC 8446 section 4.6.1): a ticket is the session,
//! sealed with AES-256-GCM under a key that only gateways know. Time is cut into
//! slots of [`SLOT`]; each has one key, and three are kept: the last one's, this
//! one's and the next one's. Older ones are wiped, and with them whatever they
//! could open. Keys are made here, offered to the database and taken from it, so
//! that replicas and restarts share them; without a database they are this
//! process's own. The handshake only reads.
//!
//! A ticket is bound to what was demanded of the client when it was issued, so
//! that none opens where a client certificate from another authority, or any at
//! all, is asked for.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;
use tracing::warn;
use zeroize::Zeroizing;

use super::policy::PolicyId;

/// How long a key seals. It opens for one slot more.
pub const SLOT: Duration = Duration::from_secs(6 * 3600);

/// A key as the database keeps it.
#[derive(Clone)]
pub struct TicketKey {
    /// Which slot it is for: since the epoch, in units of [`SLOT`].
    pub slot: u64,
    /// What tickets call it.
    pub name: [u8; NAME_BYTES],
    /// For AES-256.
    pub secret: Zeroizing<[u8; SECRET_BYTES]>,
}

impl TicketKey {
    fn generate(slot: u64) -> Result<Self, Unspecified> {
        let mut name = [0; NAME_BYTES];
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        rand::fill(&mut name)?;
        rand::fill(secret.as_mut_slice())?;
        Ok(Self { slot, name, secret })
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey")
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

/// The keys in force. Clones share them.
#[derive(Clone)]
pub struct TicketKeys(Arc<Shared>);

struct Shared {
    ring: ArcSwap<Ring>,
    // Writers only: the rotation, and whoever brings keys of the database.
    writing: Mutex<()>,
}

impl TicketKeys {
    /// Keys of this process's own.
    pub fn new() -> Self {
        let keys = Self(Arc::new(Shared {
            ring: ArcSwap::default(),
            writing: Mutex::new(()),
        }));
        keys.turn(current_slot());
        keys
    }

    /// The slot that it is now.
    pub fn slot_now() -> u64 {
        current_slot()
    }

    /// Wipes what is older than the last slot and makes what this slot and the next one lack.
    ///
    /// To be called more often than once per slot.
    pub fn turn(&self, slot: u64) {
        let _writing = self.lock();
        let mut ring = Ring::clone(&self.0.ring.load());
        ring.turn(slot);
        self.0.ring.store(Arc::new(ring));
    }

    /// The keys for this slot and the next, for the database to keep where it has none.
    pub fn offer(&self, slot: u64) -> Vec<TicketKey> {
        self.turn(slot);
        let ring = self.0.ring.load();
        [slot, slot + 1]
            .into_iter()
            .filter_map(|slot| ring.sealing(slot))
            .map(|key| key.key.clone())
            .collect()
    }

    /// Takes over the keys that the database keeps. Tickets that our own have sealed still open.
    pub fn adopt(&self, shared: Vec<TicketKey>, slot: u64) {
        let _writing = self.lock();
        let mut ring = Ring::clone(&self.0.ring.load());
        for key in shared {
            ring.adopt(key);
        }
        ring.turn(slot);
        self.0.ring.store(Arc::new(ring));
    }

    /// What rustls seals and opens tickets with, of connections of which this is demanded.
    pub(super) fn ticketer(&self, policy: PolicyId) -> Arc<dyn ProducesTickets> {
        Arc::new(Ticketer {
            keys: self.clone(),
            policy,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        let writing = self.0.writing.lock();
        writing.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for TicketKeys {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.0.ring.load().keys.len();
        f.debug_struct("TicketKeys").field("keys", &keys).finish()
    }
}

/// All keys, never changed, only replaced.
#[derive(Clone, Default)]
struct Ring {
    keys: Vec<Arc<RingKey>>,
}

struct RingKey {
    key: TicketKey,
    aead: RandomizedNonceKey,
    /// Whether it is the database's, and so every replica's.
    is_shared: bool,
}

impl Ring {
    fn turn(&mut self, slot: u64) {
        let kept = slot.saturating_sub(1)..=slot + 1;
        self.keys.retain(|key| kept.contains(&key.key.slot));
        for slot in [slot, slot + 1] {
            if self.sealing(slot).is_some() {
                continue;
            }
            match TicketKey::generate(slot) {
                Ok(key) => self.insert(key, false),
                Err(Unspecified) => warn!("no randomness for a ticket key"),
            }
        }
    }

    fn adopt(&mut self, key: TicketKey) {
        if self
            .keys
            .iter()
            .any(|own| own.is_shared && own.key.name == key.name)
        {
            return;
        }
        // Our own offer comes back as the database's.
        self.keys.retain(|own| own.key.name != key.name);
        self.insert(key, true);
    }

    fn insert(&mut self, key: TicketKey, is_shared: bool) {
        let Ok(aead) = RandomizedNonceKey::new(&AES_256_GCM, key.secret.as_slice()) else {
            return warn!("a ticket key cannot be used");
        };
        self.keys.push(Arc::new(RingKey {
            key,
            aead,
            is_shared,
        }));
    }

    /// The key that seals in this slot: the database's before our own.
    fn sealing(&self, slot: u64) -> Option<&Arc<RingKey>> {
        let of_slot = self.keys.iter().filter(|key| key.key.slot == slot);
        of_slot.max_by_key(|key| key.is_shared)
    }

    /// Key name, nonce, and the sealed session with its tag.
    fn seal(&self, slot: u64, policy: &PolicyId, plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.sealing(slot)?;
        let mut ticket = Vec::with_capacity(HEAD_BYTES + plain.len() + TAG_BYTES);
        ticket.extend_from_slice(&key.key.name);
        ticket.extend_from_slice(&[0; NONCE_BYTES]);
        ticket.extend_from_slice(plain);
        let sealed = ticket.get_mut(HEAD_BYTES..)?;
        let aad = Aad::from(policy.as_bytes());
        let (nonce, tag) = key.aead.seal_in_place_separate_tag(aad, sealed).ok()?;
        ticket
            .get_mut(NAME_BYTES..HEAD_BYTES)?
            .copy_from_slice(nonce.as_ref());
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn open(&self, policy: &PolicyId, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let key = self.keys.iter().find(|key| &key.key.name == name)?;
        let mut plain = sealed.to_vec();
        let aad = Aad::from(policy.as_bytes());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key.aead.open_in_place(nonce, aad, &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

struct Ticketer {
    keys: TicketKeys,
    policy: PolicyId,
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketer").finish_non_exhaustive()
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        // One sealed in the last moment of its slot still opens for so long.
        u32::try_from(SLOT.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let ring = self.keys.0.ring.load();
        ring.seal(current_slot(), &self.policy, plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.keys.0.ring.load().open(&self.policy, ticket)
    }
}

fn current_slot() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs() / SLOT.as_secs())
}

/// Bytes of a key's name.
pub const NAME_BYTES: usize = 16;
/// Bytes of a key.
pub const SECRET_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const HEAD_BYTES: usize = NAME_BYTES + NONCE_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(slot: u64) -> Ring {
        let mut ring = Ring::default();
        ring.turn(slot);
        ring
    }

    const NONE: PolicyId = PolicyId::NONE;

    #[test]
    fn a_ticket_opens_in_its_slot_and_the_next_and_then_never_again() {
        let mut ring = ring(100);
        let ticket = ring.seal(100, &NONE, b"session").unwrap();
        assert!(!ticket.windows(7).any(|window| window == b"session"));
        for slot in [100, 101] {
            ring.turn(slot);
            assert_eq!(ring.open(&NONE, &ticket).as_deref(), Some(&b"session"[..]));
        }
        assert_ne!(ring.seal(101, &NONE, b"").unwrap()[..16], ticket[..16]);
        ring.turn(102);
        assert_eq!(ring.open(&NONE, &ticket), None);
        assert_eq!(ring.keys.len(), 3);
        // Asleep for long: nothing old is left, and what is needed is there.
        ring.turn(500);
        assert_eq!(ring.keys.len(), 2);
        assert!(ring.seal(500, &NONE, b"").is_some());
    }

    #[test]
    fn two_tickets_of_one_session_differ_and_a_changed_one_does_not_open() {
        let ring = ring(1);
        let ticket = ring.seal(1, &NONE, b"session").unwrap();
        assert_ne!(ticket, ring.seal(1, &NONE, b"session").unwrap());
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(ring.open(&NONE, &changed), None, "byte {at}");
            assert_eq!(ring.open(&NONE, &ticket[..at]), None, "{at} bytes");
        }
    }

    #[test]
    fn a_ticket_opens_only_where_the_same_is_demanded_of_the_client() {
        let ring = ring(1);
        let one = PolicyId::of(true, [&b"authority"[..]]);
        let ticket = ring.seal(1, &NONE, b"session").unwrap();
        assert_eq!(ring.open(&one, &ticket), None);
        let ticket = ring.seal(1, &one, b"session").unwrap();
        assert!(ring.open(&one, &ticket).is_some());
        for other in [
            NONE,
            PolicyId::of(false, [&b"authority"[..]]),
            PolicyId::of(true, [&b"other"[..]]),
        ] {
            assert_eq!(ring.open(&other, &ticket), None);
        }
    }

    #[test]
    fn replicas_agree_on_the_databases_keys_and_forget_nothing_of_their_own() {
        let slot = 7;
        let (one, two) = (TicketKeys::new(), TicketKeys::new());
        let seal = |keys: &TicketKeys| keys.0.ring.load().seal(slot, &NONE, b"s").unwrap();
        let opens = |keys: &TicketKeys, ticket: &[u8]| {
            keys.0.ring.load().open(&NONE, ticket) == Some(b"s".to_vec())
        };
        // The database keeps the first offer.
        let kept = one.offer(slot);
        let own = {
            two.offer(slot);
            seal(&two)
        };
        assert!(!opens(&one, &own));
        one.adopt(kept.clone(), slot);
        two.adopt(kept, slot);
        assert!(opens(&one, &seal(&two)) && opens(&two, &seal(&one)));
        assert!(opens(&two, &own));
        // Two each of ours or the database's, and the two that were not kept.
        assert_eq!(one.0.ring.load().keys.len(), 2);
        assert_eq!(two.0.ring.load().keys.len(), 4);
        two.turn(slot + 2);
        assert!(!opens(&two, &own));
    }

    #[test]
    fn secrets_are_not_printed() {
        let key = TicketKey {
            slot: 1,
            name: [0xab; NAME_BYTES],
            secret: Zeroizing::new([0xcd; SECRET_BYTES]),
        };
        let text = format!("{key:?} {:?}", TicketKeys::new());
        assert!(
            !text.contains("205") && !text.to_lowercase().contains("cd"),
            "{text}"
        );
    }
}
