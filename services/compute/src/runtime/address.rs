//! Addresses of the local runtime, all in 127.64.0.0/16: every address of
//! 127.0.0.0/8 is local without any set-up.

use std::net::Ipv4Addr;

/// The network of the containers: 127.64.0.0/16.
const NETWORK: u32 = u32::from_be_bytes([127, 64, 0, 0]);

/// A random address of 127.64.0.0/16, neither its first nor its last.
///
/// Random, so that an address given back is not soon another container's, and
/// that two services on one machine rarely meet.
pub fn random() -> Ipv4Addr {
    Ipv4Addr::from(NETWORK | u32::from(rand::random_range(1..u16::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stay_in_their_network() {
        for _ in 0..10_000 {
            let address = random();
            assert_eq!(address.octets()[..2], [127, 64], "{address}");
            assert!(!matches!(address.octets(), [_, _, 0, 0] | [_, _, 255, 255]));
        }
    }
}
