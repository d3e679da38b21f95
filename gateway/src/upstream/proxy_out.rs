//! The PROXY protocol header, version 2, that a connection to an upstream begins with.

use std::net::{IpAddr, SocketAddr};

/// The longest header that is written here: that of IPv6.
pub(crate) const HEADER_MAX: usize = 16 + 36;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, command LOCAL: the gateway itself, looking whether the upstream is well.
pub(crate) fn local() -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend_from_slice(&[0x20, 0x00, 0, 0]);
    header
}

/// Version 2, command PROXY, no family: somebody's connection who cannot be named.
pub(crate) fn unknown() -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend_from_slice(&[0x21, 0x00, 0, 0]);
    header
}

/// Version 2, command PROXY, TCP: the connection of `client` to `listener`.
///
/// Of mixed families both are written as IPv6.
pub(crate) fn header(client: SocketAddr, listener: SocketAddr) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_MAX);
    header.extend_from_slice(&SIGNATURE);
    header.push(0x21);
    match (client.ip().to_canonical(), listener.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.extend_from_slice(&[0x11, 0, 12]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
        }
        (from, to) => {
            header.extend_from_slice(&[0x21, 0, 36]);
            header.extend_from_slice(&v6(from));
            header.extend_from_slice(&v6(to));
        }
    }
    header.extend_from_slice(&client.port().to_be_bytes());
    header.extend_from_slice(&listener.port().to_be_bytes());
    header
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let v4 = header(addr("192.0.2.1:4660"), addr("198.51.100.7:443"));
        let expected =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x07\x12\x34\x01\xbb";
        assert_eq!(v4, expected);
        let mapped = header(addr("[::ffff:192.0.2.1]:4660"), addr("198.51.100.7:443"));
        assert_eq!(mapped, expected);
        let v6 = header(addr("[2001:db8::1]:1"), addr("[2001:db8::2]:2"));
        assert_eq!(v6.len(), HEADER_MAX);
        assert_eq!(v6[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(v6[48..], [0, 1, 0, 2]);
        assert_eq!(local()[12..], [0x20, 0, 0, 0]);
        assert_eq!(unknown()[12..], [0x21, 0, 0, 0]);
    }

    #[test]
    fn mixed_families_are_written_as_ipv6() {
        let mixed = header(addr("192.0.2.1:1"), addr("[2001:db8::2]:2"));
        assert_eq!(mixed[13], 0x21);
        assert_eq!(mixed[16..32], addr("[::ffff:192.0.2.1]:0").ip_octets());
    }

    trait Octets {
        fn ip_octets(&self) -> [u8; 16];
    }

    impl Octets for SocketAddr {
        fn ip_octets(&self) -> [u8; 16] {
            v6(self.ip())
        }
    }
}
