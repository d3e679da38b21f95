//! Which addresses a container may have.
//!
//! Events come from outside: an address in one must never turn the gateway into
//! a door to itself or to the network around it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Why an address was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AddressError {
    /// Broadcast, multicast or unspecified.
    #[error("is no address of one host")]
    NotAHost,
    /// Outside every listed network.
    #[error("is outside --container-cidrs")]
    NotListed,
    /// One of the gateway's own.
    #[error("is an address of this gateway")]
    Own,
}

/// The rule of `--container-cidrs`.
#[derive(Clone, Debug)]
pub struct AddressPolicy {
    listed: Vec<IpNet>,
    own: Vec<IpAddr>,
}

impl AddressPolicy {
    /// Allows what lies in `listed`, except the addresses of `listeners`.
    ///
    /// A listener on the unspecified address stands for 127.0.0.1, ::1 and
    /// `interfaces`, the addresses of this machine.
    pub fn new(listed: Vec<IpNet>, listeners: &[SocketAddr], interfaces: &[IpAddr]) -> Self {
        let mut own = Vec::new();
        for listener in listeners {
            let ip = listener.ip().to_canonical();
            if ip.is_unspecified() {
                own.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
                own.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
                own.extend(interfaces.iter().map(IpAddr::to_canonical));
            } else {
                own.push(ip);
            }
        }
        own.sort_unstable();
        own.dedup();
        Self { listed, own }
    }

    /// Judges `address`; IPv4-mapped forms as IPv4, in which form they come back.
    pub fn check(&self, address: IpAddr) -> Result<IpAddr, AddressError> {
        let address = address.to_canonical();
        let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
        if broadcast || address.is_multicast() || address.is_unspecified() {
            return Err(AddressError::NotAHost);
        }
        if !self.listed.iter().any(|net| net.contains(&address)) {
            return Err(AddressError::NotListed);
        }
        if self.own.binary_search(&address).is_ok() {
            return Err(AddressError::Own);
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(listed: &[&str], listeners: &[&str]) -> AddressPolicy {
        AddressPolicy::new(
            listed.iter().map(|net| net.parse().unwrap()).collect(),
            &listeners
                .iter()
                .map(|addr| addr.parse().unwrap())
                .collect::<Vec<_>>(),
            &["10.0.0.9".parse().unwrap(), "fc00::9".parse().unwrap()],
        )
    }

    fn check(policy: &AddressPolicy, address: &str) -> Result<String, AddressError> {
        policy
            .check(address.parse().unwrap())
            .map(|address| address.to_string())
    }

    #[test]
    fn only_listed_networks_are_allowed() {
        let policy = policy(&["10.0.0.0/8", "fc00::/7"], &["127.0.0.1:80"]);
        for (address, expected) in [
            ("10.1.2.3", Ok("10.1.2.3".to_owned())),
            ("::ffff:10.1.2.3", Ok("10.1.2.3".to_owned())),
            ("fd00::1", Ok("fd00::1".to_owned())),
            ("8.8.8.8", Err(AddressError::NotListed)),
            ("::ffff:8.8.8.8", Err(AddressError::NotListed)),
            ("127.0.0.1", Err(AddressError::NotListed)),
            ("169.254.169.254", Err(AddressError::NotListed)),
            ("fe80::1", Err(AddressError::NotListed)),
            ("::1", Err(AddressError::NotListed)),
        ] {
            assert_eq!(check(&policy, address), expected, "{address}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused_even_when_listed() {
        let policy = policy(&["0.0.0.0/0", "::/0"], &[]);
        for address in [
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
            "::ffff:239.1.1.1",
        ] {
            assert_eq!(
                check(&policy, address),
                Err(AddressError::NotAHost),
                "{address}"
            );
        }
        assert!(check(&policy, "127.64.0.1").is_ok());
        assert!(check(&policy, "169.254.1.1").is_ok());
    }

    #[test]
    fn own_addresses_are_refused_even_when_listed() {
        let named = policy(&["127.0.0.0/8", "10.0.0.0/8"], &["127.0.0.1:18080"]);
        assert_eq!(check(&named, "127.0.0.1"), Err(AddressError::Own));
        assert_eq!(check(&named, "::ffff:127.0.0.1"), Err(AddressError::Own));
        assert!(check(&named, "127.64.0.1").is_ok());
        assert!(check(&named, "10.0.0.9").is_ok());

        let wildcard = policy(&["127.0.0.0/8", "10.0.0.0/8", "::/0"], &["[::]:8443"]);
        for own in ["127.0.0.1", "::1", "10.0.0.9", "fc00::9"] {
            assert_eq!(check(&wildcard, own), Err(AddressError::Own), "{own}");
        }
        assert!(check(&wildcard, "10.0.0.8").is_ok());
    }
}
