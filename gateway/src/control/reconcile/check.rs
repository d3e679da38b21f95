//! What the gateway itself demands of an event: names, ports, addresses, keys.
//!
//! The event library has checked encoding, ids and versions already. What is
//! refused here can never become good and goes to the dead letters at once.

use std::net::IpAddr;
use std::time::UNIX_EPOCH;

use edd_events::event::{Delivery, Payload};
use edd_events::subject::subject;
use edd_route::{ContainerId, Origin, UserId};

use super::address::AddressPolicy;
use super::change::{Change, What};
use super::entity::Stamp;

/// Names are for people and cut at this, in characters.
const NAME_MAX: usize = 200;

/// The fixed demands of this gateway.
#[derive(Clone, Debug)]
pub struct Checks {
    /// Where containers may be.
    pub addresses: AddressPolicy,
    /// The dynamic ports; 80 and 443 are allowed beside them.
    pub ports: crate::config::Ports,
}

impl Checks {
    /// Turns an event into a change, or says why nobody can use it.
    pub fn check(&self, delivery: &Delivery) -> Result<Change, String> {
        let event = &delivery.event;
        let position = &delivery.position;
        let at = position
            .published_at
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Ok(Change {
            what: self.what(&event.payload)?,
            stamp: Stamp {
                version: event.version,
                sequence: position.sequence,
            },
            origin: Origin::Event {
                subject: subject(event.kind, &event.entity),
                sequence: position.sequence,
                event_id: event.event_id.clone(),
                at_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
            },
        })
    }

    fn what(&self, payload: &Payload) -> Result<What, String> {
        Ok(match payload {
            Payload::ContainerCreated(m) => What::ContainerCreated {
                id: container_id(&m.container_id)?,
                owner: UserId(m.user_id),
                name: shortened(&m.name),
            },
            Payload::ContainerDeleted(m) => What::ContainerDeleted {
                id: container_id(&m.container_id)?,
            },
            Payload::ContainerStarted(m) => What::ContainerStarted {
                id: container_id(&m.container_id)?,
                address: self.address(&m.external_ip)?,
                ssh_host_key: host_key(&m.ssh_host_key)?,
            },
            Payload::ContainerStopped(m) => What::ContainerStopped {
                id: container_id(&m.container_id)?,
            },
            Payload::ContainerSshToggled(m) => What::SshToggled {
                id: container_id(&m.container_id)?,
                on: m.ssh_enabled,
            },
            Payload::ContainerHttpsToggled(m) => What::HttpsToggled {
                id: container_id(&m.container_id)?,
                on: m.https_enabled,
            },
            Payload::IngressRuleRequested(m) => What::RuleRequested {
                id: container_id(&m.container_id)?,
                port: self.public_port(m.port)?,
                target: target_port(m.target_port)?,
            },
            // A rule of any port may end, also of one that is no longer ours.
            Payload::IngressRuleDeleteRequested(m) => What::RuleDeleted {
                id: container_id(&m.container_id)?,
                port: port(m.port).ok_or_else(|| format!("port {}", m.port))?,
            },
            Payload::SshKeyCreated(m) => What::KeyCreated {
                id: key_id(m.key_id)?,
                user: UserId(m.user_id),
                fingerprint: fingerprint(&m.fingerprint)?,
            },
            Payload::SshKeyDeleted(m) => What::KeyDeleted {
                id: key_id(m.key_id)?,
            },
            Payload::UserCreated(m) => What::UserNamed {
                id: UserId(m.user_id),
                username: shortened(&m.username),
                display_name: shortened(&m.display_name),
            },
            Payload::UserUpdated(m) => What::UserNamed {
                id: UserId(m.user_id),
                username: shortened(&m.username),
                display_name: shortened(&m.display_name),
            },
            Payload::UserDeleted(m) => What::UserDeleted {
                id: UserId(m.user_id),
            },
            _ => What::Nothing,
        })
    }

    fn address(&self, text: &str) -> Result<IpAddr, String> {
        let address: IpAddr = text
            .parse()
            .map_err(|_| format!("{text:?} is not an IP address"))?;
        self.addresses
            .check(address)
            .map_err(|error| format!("{text} {error}"))
    }

    fn public_port(&self, number: i32) -> Result<u16, String> {
        port(number)
            .filter(|port| matches!(port, 80 | 443) || self.ports.contains(*port))
            .ok_or_else(|| format!("port {number} is not 80, 443 or in --ports"))
    }
}

fn container_id(id: &str) -> Result<ContainerId, String> {
    ContainerId::new(id).map_err(|error| format!("container id {id:?} {error}"))
}

fn key_id(id: i64) -> Result<i64, String> {
    if id < 1 {
        return Err(format!("key id {id}"));
    }
    Ok(id)
}

fn target_port(number: i32) -> Result<u16, String> {
    port(number).ok_or_else(|| format!("target port {number}"))
}

fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port > 0)
}

/// OpenSSH's form: 32 bytes in base64 without padding, the last two bits zero.
fn fingerprint(text: &str) -> Result<String, String> {
    let base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    let good = text.strip_prefix("SHA256:").is_some_and(|hash| {
        hash.len() == 43
            && hash.bytes().all(base64)
            && hash
                .bytes()
                .last()
                .is_some_and(|last| b"AEIMQUYcgkosw048".contains(&last))
    });
    if good {
        Ok(text.to_owned())
    } else {
        let start: String = text.chars().take(60).collect();
        Err(format!("{start:?} is not a SHA256 fingerprint"))
    }
}

/// None given: the first key seen is pinned, elsewhere.
fn host_key(line: &str) -> Result<Option<String>, String> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(None);
    }
    russh::keys::PublicKey::from_openssh(line)
        .map(|_| Some(line.to_owned()))
        .map_err(|error| format!("SSH host key: {error}"))
}

fn shortened(name: &str) -> String {
    name.chars().take(NAME_MAX).collect()
}
