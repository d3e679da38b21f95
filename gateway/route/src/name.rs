//! Names that clients and events use: hosts, containers, users.
//!
//! Each is checked once, where it enters; the types cannot hold a bad one.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest host name, in bytes, without a trailing dot (RFC 1035, section 2.3.4).
pub const HOST_MAX: usize = 253;

/// Longest label of a host name, in bytes (RFC 1035, section 2.3.4).
const LABEL_MAX: usize = 63;

/// Why a name was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    /// A character that the name's grammar does not have.
    #[error("has a character that is not allowed")]
    Character,
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// A label that is empty or longer than 63 bytes.
    #[error("has an empty or too long label")]
    Label,
    /// Longer than its grammar allows.
    #[error("is too long")]
    Length,
    /// The part behind the host's colon is not a port.
    #[error("has a bad port")]
    Port,
}

/// A container's id: a DNS label in lower case, `[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?`.
///
/// Compared exactly; events with any other id are refused. Clones share the text: every request
/// takes one.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(Arc<str>);

impl ContainerId {
    /// Checks and takes `id`.
    pub fn new(id: &str) -> Result<Self, NameError> {
        let bytes = id.as_bytes();
        let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        match (bytes.first(), bytes.last()) {
            (None, _) | (_, None) => Err(NameError::Empty),
            _ if bytes.len() > LABEL_MAX => Err(NameError::Length),
            (Some(first), Some(last)) if edge(first) && edge(last) => {
                if bytes.iter().all(|b| edge(b) || matches!(b, b'_' | b'-')) {
                    Ok(Self(id.into()))
                } else {
                    Err(NameError::Character)
                }
            }
            _ => Err(NameError::Character),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ContainerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ContainerId {
    type Error = NameError;

    fn try_from(id: String) -> Result<Self, NameError> {
        Self::new(&id)
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        (*id.0).into()
    }
}

/// A user's id in the auth service; 1 or more.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct UserId(pub i64);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A host name as it is looked up: lower case, no port, no trailing dot.
///
/// Lives on the stack, since every request makes one.
#[derive(Clone, Copy)]
pub struct Host {
    bytes: [u8; HOST_MAX],
    len: u8,
}

impl Host {
    /// Reads a `Host` header, an `:authority` or an SNI name: `name`, `name:port`,
    /// `192.0.2.1:port`, `[2001:db8::1]:port` (RFC 9110, section 7.2). Brackets go.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let name = match text.strip_prefix('[') {
            Some(rest) => {
                let (inside, after) = rest.split_once(']').ok_or(NameError::Character)?;
                match after.strip_prefix(':') {
                    Some(port) => check_port(port)?,
                    None if after.is_empty() => {}
                    None => return Err(NameError::Character),
                }
                if inside.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err(NameError::Character);
                }
                return Self::lower(inside);
            }
            None => {
                let (name, port) = text.split_at(check_labels(text)?);
                if let Some(port) = port.strip_prefix(':') {
                    check_port(port)?;
                }
                name
            }
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        Self::lower(name)
    }

    fn lower(name: &str) -> Result<Self, NameError> {
        let mut host = Self {
            bytes: [0; HOST_MAX],
            len: 0,
        };
        let slot = host.bytes.get_mut(..name.len()).ok_or(NameError::Length)?;
        slot.copy_from_slice(name.as_bytes());
        slot.make_ascii_lowercase();
        host.len = u8::try_from(name.len()).map_err(|_| NameError::Length)?;
        Ok(host)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where the labels at the beginning of `text` end: at a colon or its end. The last may be empty.
fn check_labels(text: &str) -> Result<usize, NameError> {
    let mut label = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b':' => return Ok(at),
            b'.' if label == 0 => return Err(NameError::Label),
            b'.' => label = 0,
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' => label += 1,
            _ => return Err(NameError::Character),
        }
        if label > LABEL_MAX {
            return Err(NameError::Label);
        }
    }
    Ok(text.len())
}

/// An empty port is allowed by the grammar (RFC 3986, section 3.2.3).
fn check_port(port: &str) -> Result<(), NameError> {
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    if digits && (port.is_empty() || port.parse::<u16>().is_ok()) {
        Ok(())
    } else {
        Err(NameError::Port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids_are_dns_labels_in_lower_case() {
        for good in ["a", "abc12345", "a-b", "a_b", "0", &"a".repeat(63)] {
            assert!(ContainerId::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "_a",
            "A",
            "a.b",
            "a*",
            "a>",
            "a b",
            "ä",
            &"a".repeat(64),
        ] {
            assert!(ContainerId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_lose_case_port_and_trailing_dot() {
        for (text, name) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("example.com:8443", "example.com"),
            ("example.com.:80", "example.com"),
            ("example.com:", "example.com"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("[2001:DB8::1]:443", "2001:db8::1"),
            ("[::1]", "::1"),
            ("a_b.example", "a_b.example"),
        ] {
            assert_eq!(
                Host::parse(text).map(|h| h.as_str().to_owned()),
                Ok(name.to_owned())
            );
        }
    }

    #[test]
    fn bad_hosts_are_refused() {
        let long = format!("{}.example", "a.".repeat(130));
        for text in [
            "",
            ".",
            ":80",
            "a..b",
            "a b",
            "a/b",
            "a@b",
            "a:99999",
            "a:b",
            "[::1",
            "[::1]x",
            "[a]",
            "ä.example",
            "a\0b",
            "::1",
            &"a".repeat(64),
            &long,
        ] {
            assert!(Host::parse(text).is_err(), "{text:?}");
        }
    }
}
