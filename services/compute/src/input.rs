//! What users may ask for: checked once, then carried as types.

use std::{fmt, ops::RangeInclusive};

use russh::keys::ssh_key::{self, Algorithm, HashAlg, public::KeyData};

/// Length of a container id.
const ID_LEN: usize = 8;
/// Longest name of a container or key, in characters.
pub const NAME_CHARS_MAX: usize = 64;
/// Longest image, in bytes.
const IMAGE_LEN_MAX: usize = 255;
/// Longest instance type, in bytes.
const INSTANCE_TYPE_LEN_MAX: usize = 32;
/// Longest public key line, in bytes: an RSA key of 16384 bits has 2,800.
const KEY_LINE_LEN_MAX: usize = 8 * 1024;
/// Smallest and largest RSA modulus, in bits. Larger ones only cost time.
const RSA_BITS: RangeInclusive<usize> = 2048..=16384;

/// What is wrong with a value; the text is for its user.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InputError {
    /// Not an image name.
    #[error("an image is 1 to 255 printable ASCII characters without blanks")]
    Image,
    /// Not an instance type.
    #[error("an instance type is 1 to 32 characters of a-z, 0-9, '.' and '-'")]
    InstanceType,
    /// No key, or one that nobody should use.
    #[error("{0}")]
    Key(&'static str),
    /// Not a name.
    #[error("a name has 1 to 64 characters and no control characters")]
    Name,
    /// A number out of range.
    #[error("{what} must be from {min} to {max}, not {value}")]
    Number {
        /// Which.
        what: &'static str,
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
        /// What came.
        value: i64,
    },
    /// A port that no rule may have.
    #[error("port must be 80, 443 or from {} to {}, not {value}", range.start(), range.end())]
    Port {
        /// The dynamic ports.
        range: RangeInclusive<u16>,
        /// What came.
        value: i64,
    },
    /// One port twice.
    #[error("port {0} is asked for twice")]
    PortTwice(u16),
}

/// A container's id: a DNS label of eight characters, the first a letter.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ContainerId(String);

impl ContainerId {
    /// A new one, from the thread's cryptographic generator.
    pub fn random() -> Self {
        let letter = || char::from(b'a' + rand::random_range(0..26u8));
        let any = || match rand::random_range(0..36u8) {
            digit @ 0..10 => char::from(b'0' + digit),
            letter => char::from(b'a' + (letter - 10)),
        };
        Self(
            std::iter::once(letter())
                .chain((1..ID_LEN).map(|_| any()))
                .collect(),
        )
    }

    /// Checks an id that came from outside; other ids name nothing here.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == ID_LEN
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        valid.then(|| Self(text.to_owned()))
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A public port that a rule may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Port(u16);

impl Port {
    /// 80, 443, or one of the dynamic ports.
    pub fn check(value: i64, range: &RangeInclusive<u16>) -> Result<Self, InputError> {
        u16::try_from(value)
            .ok()
            .filter(|port| matches!(port, 80 | 443) || range.contains(port))
            .map(Self)
            .ok_or_else(|| InputError::Port {
                range: range.clone(),
                value,
            })
    }

    /// The port that HTTPS uses.
    pub const fn https() -> Self {
        Self(443)
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// A wanted ingress rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PortPair {
    /// The public port.
    pub port: Port,
    /// The container's port, at least 1.
    pub target_port: u16,
}

impl PortPair {
    /// Checks both ports.
    pub fn check(
        port: i64,
        target_port: i64,
        range: &RangeInclusive<u16>,
    ) -> Result<Self, InputError> {
        let port = Port::check(port, range)?;
        let target_port = check_number("target_port", target_port, 1, i64::from(u16::MAX))?;
        Ok(Self {
            port,
            target_port: u16::try_from(target_port).unwrap_or(u16::MAX),
        })
    }
}

/// Checks a number; the result fits an `i32`.
pub fn check_number(what: &'static str, value: i64, min: i32, max: i64) -> Result<i32, InputError> {
    i32::try_from(value)
        .ok()
        .filter(|checked| *checked >= min && i64::from(*checked) <= max)
        .ok_or_else(|| InputError::Number {
            what,
            min: i64::from(min),
            max,
            value,
        })
}

/// A name: one readable line. Blanks at the ends are dropped.
pub fn check_name(text: &str) -> Result<String, InputError> {
    let text = text.trim();
    let valid =
        (1..=NAME_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(is_disruptive);
    valid.then(|| text.to_owned()).ok_or(InputError::Name)
}

/// Control characters, and those that turn the text around them.
fn is_disruptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An image's name.
pub fn check_image(text: &str) -> Result<String, InputError> {
    let valid =
        (1..=IMAGE_LEN_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    valid.then(|| text.to_owned()).ok_or(InputError::Image)
}

/// The name of a size.
pub fn check_instance_type(text: &str) -> Result<String, InputError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
    let valid = (1..=INSTANCE_TYPE_LEN_MAX).contains(&text.len()) && text.bytes().all(plain);
    valid
        .then(|| text.to_owned())
        .ok_or(InputError::InstanceType)
}

/// A public key that may open a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublicKey {
    line: String,
    fingerprint: String,
}

impl PublicKey {
    /// Parses one line of OpenSSH's form: Ed25519, ECDSA, RSA from 2048 bits, and
    /// keys that live on hardware (`sk-`). DSA, certificates, options before the
    /// key and private keys are refused.
    pub fn parse(text: &str) -> Result<Self, InputError> {
        let text = text.trim();
        if text.contains("PRIVATE KEY") {
            return Err(InputError::Key(
                "this is a private key: keep it secret, send the .pub file",
            ));
        }
        if text.len() > KEY_LINE_LEN_MAX || text.contains(['\n', '\r', '\0']) {
            return Err(InputError::Key(
                "a public key is one line, such as ssh-ed25519 AAAA...",
            ));
        }
        let mut key = ssh_key::PublicKey::from_openssh(text).map_err(|_| {
            InputError::Key("not a public key in OpenSSH's form, such as ssh-ed25519 AAAA...")
        })?;
        check_strength(&key)?;
        key.set_comment("");
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let line = key
            .to_openssh()
            .map_err(|_| InputError::Key("this key cannot be written in OpenSSH's form"))?;
        Ok(Self {
            line: line.trim_end().to_owned(),
            fingerprint,
        })
    }

    /// Type and base64, without comment.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// `SHA256:...`.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

fn check_strength(key: &ssh_key::PublicKey) -> Result<(), InputError> {
    match (key.algorithm(), key.key_data()) {
        (Algorithm::Rsa { .. }, KeyData::Rsa(rsa)) => {
            // `key_size` counts whole bytes.
            let bits = rsa.n().as_positive_bytes().map_or(0, |bytes| {
                let unused = bytes
                    .first()
                    .map_or(0, |byte| byte.leading_zeros() as usize);
                (bytes.len() * 8).saturating_sub(unused)
            });
            if RSA_BITS.contains(&bits) {
                Ok(())
            } else {
                Err(InputError::Key("an RSA key must have 2048 to 16384 bits"))
            }
        }
        (
            Algorithm::Ed25519
            | Algorithm::Ecdsa { .. }
            | Algorithm::SkEd25519
            | Algorithm::SkEcdsaSha2NistP256,
            _,
        ) => Ok(()),
        (Algorithm::Dsa, _) => Err(InputError::Key("DSA keys are too weak")),
        _ => Err(InputError::Key("this type of key is not supported")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    #[test]
    fn ids_are_labels_that_start_with_a_letter() {
        for _ in 0..1000 {
            let id = ContainerId::random();
            assert_eq!(ContainerId::parse(id.as_str()), Some(id));
        }
        for bad in [
            "",
            "abc",
            "1bcdefgh",
            "abcdefgH",
            "abcdefghi",
            "abc.efgh",
            "abcdéfg",
        ] {
            assert_eq!(ContainerId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn ports_are_the_public_two_or_dynamic() {
        let range = 8000..=8100;
        for good in [80, 443, 8000, 8100] {
            assert_eq!(i64::from(Port::check(good, &range).unwrap().get()), good);
        }
        for bad in [-1, 0, 22, 81, 7999, 8101, 65536, 65536 + 80, i64::MAX] {
            assert!(Port::check(bad, &range).is_err(), "{bad}");
        }
        for bad in [-1, 0, 65536, i64::MIN] {
            assert!(PortPair::check(80, bad, &range).is_err(), "{bad}");
        }
        assert_eq!(
            PortPair::check(80, 65535, &range).unwrap().target_port,
            65535
        );
    }

    #[test]
    fn names_are_one_readable_line() {
        for good in ["a", " padded ", "Zoë's box", &"é".repeat(64)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "  ", "a\nb", "a\0", "a\u{202e}b", &"a".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_lose_their_comment_and_get_a_fingerprint() {
        let key = PublicKey::parse(&format!("  {ED25519} me@home with blanks \n")).unwrap();
        assert_eq!(key.line(), ED25519);
        assert!(key.fingerprint().starts_with("SHA256:"), "{key:?}");
        assert_eq!(PublicKey::parse(ED25519).unwrap(), key);
    }

    #[test]
    fn garbage_and_weak_keys_are_refused() {
        let truncated = &ED25519[..ED25519.len() - 8];
        let other_type = ED25519.replace("ssh-ed25519", "ssh-rsa");
        let options = format!("command=\"rm -rf /\" {ED25519}");
        let two = format!("{ED25519}\n{ED25519}");
        let long = format!("{ED25519} {}", "x".repeat(KEY_LINE_LEN_MAX));
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 !!!!",
            "ssh-ed25519 AAAA",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            truncated,
            &other_type,
            &options,
            &two,
            &long,
        ] {
            assert!(PublicKey::parse(bad).is_err(), "{bad}");
        }
    }
}
