//! Which host key a container may show.
//!
//! The one of its started event, exactly; without one, the first key seen
//! after that start, for as long as that start lasts. A pin belongs to
//! (container, start), never to an address, which changes hands.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use edd_route::{ContainerId, RouteTable};
use russh::keys::PublicKey;
use russh::keys::ssh_key::public::KeyData;

/// Pins beyond this many are checked against the table before more are added.
const SWEEP_MIN: usize = 1024;

/// The keys seen first.
#[derive(Debug)]
pub(crate) struct HostKeys {
    /// Locked for a map operation, once per handshake.
    pins: Mutex<Pins>,
}

#[derive(Debug)]
struct Pins {
    by_container: HashMap<ContainerId, (u64, KeyData)>,
    sweep_at: usize,
}

/// Why a container is not spoken to.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HostKeyError {
    /// The started event has a line that is no public key.
    #[error("the started event's host key is not an OpenSSH public key")]
    BadLine,
    /// Not the key of the started event.
    #[error("the container shows another host key than its started event names")]
    NotAnnounced,
    /// Not the key seen first after this start.
    #[error("the container's host key has changed since its start")]
    Changed,
}

impl HostKeys {
    /// No key seen yet.
    pub(crate) fn new() -> Self {
        Self {
            pins: Mutex::new(Pins {
                by_container: HashMap::new(),
                sweep_at: SWEEP_MIN,
            }),
        }
    }

    /// The key that must be shown, if that is known.
    pub(crate) fn expected(
        &self,
        id: &ContainerId,
        start: u64,
        announced: Option<&str>,
    ) -> Result<Option<KeyData>, HostKeyError> {
        if let Some(line) = announced {
            let key = PublicKey::from_openssh(line).map_err(|_| HostKeyError::BadLine)?;
            return Ok(Some(key.key_data().clone()));
        }
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match pins.by_container.get(id) {
            Some((pinned_start, key)) if *pinned_start == start => Some(key.clone()),
            _ => None,
        })
    }

    /// Pins `shown` if it is the first after this start; else it must be the pinned one.
    ///
    /// `table` tells which pins are of the past when there are many.
    pub(crate) fn pin(
        &self,
        id: &ContainerId,
        start: u64,
        shown: &KeyData,
        table: &RouteTable,
    ) -> Result<(), HostKeyError> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        match pins.by_container.get(id) {
            Some((pinned_start, key)) if *pinned_start == start => {
                return if key == shown {
                    Ok(())
                } else {
                    Err(HostKeyError::Changed)
                };
            }
            // A handshake that was on its way when the container was started anew.
            Some((pinned_start, _)) if *pinned_start > start => return Err(HostKeyError::Changed),
            _ => {}
        }
        if pins.by_container.len() >= pins.sweep_at {
            pins.by_container.retain(|id, (start, _)| {
                let container = table.container(id.as_str());
                let running = container.and_then(|container| container.running.as_ref());
                running.is_some_and(|run| run.start == *start)
            });
            pins.sweep_at = SWEEP_MIN.max(pins.by_container.len() * 2);
        }
        pins.by_container.insert(id.clone(), (start, shown.clone()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use edd_route::Settings;
    use russh::keys::{Algorithm, PrivateKey};

    use super::*;

    fn key() -> PublicKey {
        PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)
            .unwrap()
            .public_key()
            .clone()
    }

    #[test]
    fn the_first_key_of_a_start_is_pinned_and_another_refused() {
        let table = RouteTable::empty(Settings::new("example.com", vec![]));
        let id = ContainerId::new("c1").unwrap();
        let (one, two) = (key(), key());
        let keys = HostKeys::new();
        assert_eq!(keys.expected(&id, 1, None), Ok(None));
        keys.pin(&id, 1, one.key_data(), &table).unwrap();
        keys.pin(&id, 1, one.key_data(), &table).unwrap();
        assert_eq!(
            keys.pin(&id, 1, two.key_data(), &table),
            Err(HostKeyError::Changed)
        );
        assert_eq!(
            keys.expected(&id, 1, None),
            Ok(Some(one.key_data().clone()))
        );
        assert_eq!(
            keys.expected(&id, 2, None),
            Ok(None),
            "a new start, a new pin"
        );
        keys.pin(&id, 2, two.key_data(), &table).unwrap();
        assert_eq!(
            keys.pin(&id, 1, one.key_data(), &table),
            Err(HostKeyError::Changed)
        );
    }

    #[test]
    fn an_announced_key_wins_over_a_pin_and_a_bad_line_is_an_error() {
        let table = RouteTable::empty(Settings::new("example.com", vec![]));
        let id = ContainerId::new("c1").unwrap();
        let (one, two) = (key(), key());
        let keys = HostKeys::new();
        keys.pin(&id, 1, one.key_data(), &table).unwrap();
        let line = format!("{} root@c1", two.to_openssh().unwrap());
        assert_eq!(
            keys.expected(&id, 1, Some(&line)),
            Ok(Some(two.key_data().clone()))
        );
        assert_eq!(
            keys.expected(&id, 1, Some("ssh-ed25519 nonsense")),
            Err(HostKeyError::BadLine)
        );
    }

    #[test]
    fn pins_of_the_past_are_swept() {
        let table = RouteTable::empty(Settings::new("example.com", vec![]));
        let one = key();
        let keys = HostKeys::new();
        for n in 0..SWEEP_MIN + 1 {
            let id = ContainerId::new(&format!("c{n}")).unwrap();
            keys.pin(&id, 1, one.key_data(), &table).unwrap();
        }
        assert_eq!(keys.pins.lock().unwrap().by_container.len(), 1);
    }
}
