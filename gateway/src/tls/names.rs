//! The names that a certificate covers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The subject alternative names of a leaf (RFC 6125: the common name does not count).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CertNames {
    exact: BTreeSet<Box<str>>,
    /// What follows `*.`.
    wildcard: BTreeSet<Box<str>>,
    addresses: BTreeSet<IpAddr>,
}

impl CertNames {
    /// Reads the names of a certificate; none if it is not one.
    pub fn of_leaf(der: &[u8]) -> Option<Self> {
        let (_, leaf) = X509Certificate::from_der(der).ok()?;
        let mut names = Self::default();
        let alternatives = leaf.subject_alternative_name().ok()?;
        for name in alternatives.iter().flat_map(|san| &san.value.general_names) {
            match name {
                GeneralName::DNSName(name) => names.insert(name),
                GeneralName::IPAddress(bytes) => names.insert_address(bytes),
                _ => {}
            }
        }
        Some(names)
    }

    fn insert(&mut self, name: &str) {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        match name.strip_prefix("*.") {
            Some(parent) => self.wildcard.insert(parent.into()),
            None => self.exact.insert(name.into()),
        };
    }

    fn insert_address(&mut self, bytes: &[u8]) {
        if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
            self.addresses.insert(v4.into());
        } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
            self.addresses.insert(v6.into());
        }
    }

    /// Whether `host` (lower case, no port) is covered; a wildcard stands for one label.
    pub fn contains(&self, host: &str) -> bool {
        self.exact.contains(host)
            || host
                .split_once('.')
                .is_some_and(|(label, parent)| !label.is_empty() && self.wildcard.contains(parent))
            || host
                .parse::<IpAddr>()
                .is_ok_and(|address| self.addresses.contains(&address))
    }

    /// Names without a wildcard.
    pub fn exact(&self) -> impl Iterator<Item = &str> {
        self.exact.iter().map(|name| &**name)
    }

    /// What follows the `*.` of the wildcard names.
    pub fn wildcard(&self) -> impl Iterator<Item = &str> {
        self.wildcard.iter().map(|parent| &**parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_leaf_and_wildcards_stand_for_one_label() {
        let names = ["Example.com", "*.Compute.example.com", "127.0.0.1", "::1"];
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(names.map(String::from))
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let names = CertNames::of_leaf(leaf.der()).unwrap();
        for covered in ["example.com", "a.compute.example.com", "127.0.0.1", "::1"] {
            assert!(names.contains(covered), "{covered}");
        }
        for other in [
            "www.example.com",
            "compute.example.com",
            "a.b.compute.example.com",
            ".compute.example.com",
            "127.0.0.2",
            "",
        ] {
            assert!(!names.contains(other), "{other}");
        }
    }

    #[test]
    fn garbage_has_no_names() {
        assert_eq!(CertNames::of_leaf(b"no certificate"), None);
    }
}
