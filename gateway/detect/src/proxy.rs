//! The PROXY protocol, versions 1 and 2: what a load balancer says about a client before its first byte.
//!
//! Pure, and as strict as the specification (HAProxy, "The PROXY protocol",
//! 2020/03/05) lets a receiver be: one that guesses lets clients speak for
//! others. Whether the sender is to be believed is not known here.
//!
//! A final [`Announcement`] never changes when more bytes follow, so how a
//! header is cut into segments makes no difference.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes, at most, of a version 1 header with its line end.
pub const V1_BYTES_MAX: usize = 107;

/// Bytes, at most, of a version 2 header: addresses and what may follow them (TLVs).
pub const V2_BYTES_MAX: usize = 4096;

/// What the first bytes of a connection announce.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Announcement {
    /// It began as a header, but is none that may be used.
    Bad(ProxyError),
    /// A whole header.
    Complete {
        /// Whose connection it is.
        client: Client,
        /// Bytes of the header; what follows is the client's.
        length: usize,
    },
    /// Nothing yet, or what could still become a header.
    NeedMore,
    /// No header: all bytes are the client's.
    None,
}

/// Whose connection it is, by a header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Client {
    /// This one's. An IPv4-mapped address is written as IPv4.
    Known(SocketAddr),
    /// The sender's own (`LOCAL`), a health check for example.
    Sender,
    /// Somebody's whom the sender cannot name (`UNKNOWN`, `AF_UNSPEC`, `AF_UNIX`): not the sender.
    Unknown,
}

impl Announcement {
    /// Whether more bytes could change it.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::NeedMore)
    }
}

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProxyError {
    /// An address or a port that is none, or of another family than was said.
    #[error("the PROXY header has a bad address")]
    Address,
    /// The checksum (`PP2_TYPE_CRC32C`) does not fit.
    #[error("the PROXY header's checksum is wrong")]
    Checksum,
    /// Neither `LOCAL` nor `PROXY`.
    #[error("the PROXY header has an unknown command")]
    Command,
    /// A family or transport that no TCP connection has.
    #[error("the PROXY header has an unknown family or transport")]
    Family,
    /// A line that is not as version 1 demands, or TLVs whose lengths do not add up.
    #[error("the PROXY header is malformed")]
    Malformed,
    /// More than [`V1_BYTES_MAX`] or [`V2_BYTES_MAX`].
    #[error("the PROXY header is too long")]
    TooLong,
    /// The signature of version 2 with another version.
    #[error("the PROXY header has an unknown version")]
    Version,
}

/// Judges all bytes read so far.
pub fn announced(bytes: &[u8]) -> Announcement {
    let found = if bytes.starts_with(V2_SIGNATURE) {
        version_2(bytes)
    } else if bytes.starts_with(V1_SIGNATURE) {
        version_1(bytes)
    } else if V2_SIGNATURE.starts_with(bytes) || V1_SIGNATURE.starts_with(bytes) {
        return Announcement::NeedMore;
    } else {
        return Announcement::None;
    };
    match found {
        Ok(Some((client, length))) => Announcement::Complete { client, length },
        Ok(None) => Announcement::NeedMore,
        Err(error) => Announcement::Bad(error),
    }
}

/// The client and the header's length, once all of it is there.
type Found = Result<Option<(Client, usize)>, ProxyError>;

/// `PROXY TCP4 192.0.2.1 192.0.2.9 4711 443\r\n`
fn version_1(bytes: &[u8]) -> Found {
    let seen = bytes.get(..V1_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = seen.iter().position(|byte| !is_printable(*byte)) else {
        return match seen.len() {
            V1_BYTES_MAX => Err(ProxyError::TooLong),
            _ => Ok(None),
        };
    };
    let (line, tail) = seen.split_at(end);
    match tail {
        [b'\r', b'\n', ..] => {}
        [b'\r'] if seen.len() < V1_BYTES_MAX => return Ok(None),
        [b'\r'] => return Err(ProxyError::TooLong),
        _ => return Err(ProxyError::Malformed),
    }
    let length = line.len() + 2;
    let text = line
        .get(V1_SIGNATURE.len()..)
        .and_then(|rest| std::str::from_utf8(rest).ok())
        .ok_or(ProxyError::Malformed)?;
    // What follows UNKNOWN is to be ignored.
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Ok(Some((Client::Unknown, length)));
    }
    let mut words = text.split(' ');
    let mut next = || words.next().ok_or(ProxyError::Malformed);
    let (family, source, destination) = (next()?, next()?, next()?);
    let (source_port, destination_port) = (next()?, next()?);
    if words.next().is_some() {
        return Err(ProxyError::Malformed);
    }
    let parse = match family {
        "TCP4" => v4,
        "TCP6" => v6,
        _ => return Err(ProxyError::Family),
    };
    let client = SocketAddr::new(parse(source)?, port(source_port)?);
    parse(destination)?;
    port(destination_port)?;
    Ok(Some((Client::Known(client), length)))
}

fn v4(text: &str) -> Result<IpAddr, ProxyError> {
    let address = text.parse::<Ipv4Addr>();
    address.map(IpAddr::V4).map_err(|_| ProxyError::Address)
}

fn v6(text: &str) -> Result<IpAddr, ProxyError> {
    let address = text.parse::<Ipv6Addr>();
    let address = address.map_err(|_| ProxyError::Address)?;
    Ok(IpAddr::V6(address).to_canonical())
}

/// Decimal, without a sign and without leading zeros.
fn port(text: &str) -> Result<u16, ProxyError> {
    let plain = text == "0" || text.starts_with(|first: char| matches!(first, '1'..='9'));
    match text.parse() {
        Ok(port) if plain => Ok(port),
        _ => Err(ProxyError::Address),
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

fn version_2(bytes: &[u8]) -> Found {
    let after = bytes.get(V2_SIGNATURE.len()..).unwrap_or_default();
    let Some((&command, after)) = after.split_first() else {
        return Ok(None);
    };
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        0x22..=0x2f => return Err(ProxyError::Command),
        _ => return Err(ProxyError::Version),
    };
    let Some((&family, after)) = after.split_first() else {
        return Ok(None);
    };
    let addresses = match family {
        // A sender that speaks for itself may say anything here (section 2.2).
        _ if is_local => 0,
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        _ => return Err(ProxyError::Family),
    };
    let Some(&[high, low]) = after.first_chunk::<2>() else {
        return Ok(None);
    };
    let payload = usize::from(u16::from_be_bytes([high, low]));
    let length = V2_FIXED + payload;
    if length > V2_BYTES_MAX {
        return Err(ProxyError::TooLong);
    }
    if payload < addresses {
        return Err(ProxyError::Address);
    }
    let Some(header) = bytes.get(..length) else {
        return Ok(None);
    };
    if is_local {
        return Ok(Some((Client::Sender, length)));
    }
    let body = header.get(V2_FIXED..).unwrap_or_default();
    let (addresses, tlvs) = body
        .split_at_checked(addresses)
        .ok_or(ProxyError::Malformed)?;
    check_tlvs(header, tlvs)?;
    let client = match family {
        0x11 => Client::Known(v2_client::<4>(addresses, |ip| Ipv4Addr::from(ip).into())?),
        0x21 => Client::Known(v2_client::<16>(addresses, |ip| Ipv6Addr::from(ip).into())?),
        _ => Client::Unknown,
    };
    Ok(Some((client, length)))
}

/// Source and destination address, source and destination port.
fn v2_client<const N: usize>(
    block: &[u8],
    address: impl Fn([u8; N]) -> IpAddr,
) -> Result<SocketAddr, ProxyError> {
    let source = block.first_chunk::<N>();
    let port = block
        .get(2 * N..)
        .and_then(|ports| ports.first_chunk::<2>());
    let (Some(source), Some(port)) = (source, port) else {
        return Err(ProxyError::Malformed);
    };
    Ok(SocketAddr::new(
        address(*source).to_canonical(),
        u16::from_be_bytes(*port),
    ))
}

/// Walks type, length and value of each; a checksum among them must fit the whole header.
fn check_tlvs(header: &[u8], tlvs: &[u8]) -> Result<(), ProxyError> {
    let mut rest = tlvs;
    while !rest.is_empty() {
        let Some((&[kind, high, low], after)) = rest.split_first_chunk::<3>() else {
            return Err(ProxyError::Malformed);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, after) = after
            .split_at_checked(length)
            .ok_or(ProxyError::Malformed)?;
        if kind == TLV_CRC32C {
            let told = <[u8; 4]>::try_from(value).map_err(|_| ProxyError::Malformed)?;
            // The sum is made with zeros in its own place.
            let at = header.len() - after.len() - value.len();
            let (before, _) = header.split_at_checked(at).ok_or(ProxyError::Malformed)?;
            let sum = crc32c(before.iter().chain(&[0; 4]).chain(after));
            if sum != u32::from_be_bytes(told) {
                return Err(ProxyError::Checksum);
            }
        }
        rest = after;
    }
    Ok(())
}

/// CRC-32C (RFC 3720, section 12.1). Few senders use it, so no table.
fn crc32c<'b>(bytes: impl Iterator<Item = &'b u8>) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let polynomial = if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            crc = (crc >> 1) ^ polynomial;
        }
    }
    !crc
}

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and transport, length.
const V2_FIXED: usize = 16;

const TLV_CRC32C: u8 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, body].concat()
    }

    fn block_v4() -> Vec<u8> {
        [&[192, 0, 2, 1, 192, 0, 2, 9][..], &[0x12, 0x67, 1, 0xbb]].concat()
    }

    fn block_v6(source: &str) -> Vec<u8> {
        let source: Ipv6Addr = source.parse().unwrap();
        [&source.octets()[..], &[0; 16], &[0, 80, 0, 81]].concat()
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[kind][..], &length, value].concat()
    }

    /// A header with a checksum that fits.
    fn summed() -> Vec<u8> {
        let after = tlv(4, b"noop");
        let body = [block_v4(), tlv(TLV_CRC32C, &[0; 4]), after.clone()].concat();
        let mut header = v2(0x21, 0x11, &body);
        let sum = crc32c(header.iter()).to_be_bytes();
        let at = header.len() - after.len() - 4;
        header[at..at + 4].copy_from_slice(&sum);
        header
    }

    fn client(bytes: &[u8]) -> Client {
        match announced(bytes) {
            Announcement::Complete { client, length } => {
                assert_eq!(length, bytes.len());
                client
            }
            other => panic!("{other:?} of {}", bytes.escape_ascii()),
        }
    }

    fn some(text: &str) -> Client {
        Client::Known(text.parse().unwrap())
    }

    #[test]
    fn version_1_names_the_client() {
        for (line, expected) in [
            ("TCP4 192.0.2.1 192.0.2.9 4711 443", some("192.0.2.1:4711")),
            ("TCP4 0.0.0.0 255.255.255.255 0 65535", some("0.0.0.0:0")),
            ("TCP6 2001:db8::1 ::1 1 2", some("[2001:db8::1]:1")),
            ("TCP6 ::ffff:192.0.2.1 ::1 1 2", some("192.0.2.1:1")),
            ("UNKNOWN", Client::Unknown),
            ("UNKNOWN ffff::1 ffff::2 65535 65535", Client::Unknown),
        ] {
            let header = format!("PROXY {line}\r\n");
            assert_eq!(client(header.as_bytes()), expected, "{line}");
        }
        let address = ["ffff"; 8].join(":");
        let longest = format!("TCP6 {address} {address} 65535 65535");
        let found = client(format!("PROXY {longest}\r\n").as_bytes());
        assert!(matches!(found, Client::Known(_)));
    }

    #[test]
    fn version_1_is_taken_exactly_as_specified_or_not_at_all() {
        use ProxyError::{Address, Family, Malformed, TooLong};
        for (line, error) in [
            ("TCP4 192.0.2.1 192.0.2.9 4711 443\n", Malformed),
            ("TCP4 192.0.2.1 192.0.2.9 4711 443\rX", Malformed),
            ("TCP4 192.0.2.1 192.0.2.9 4711\r\n", Malformed),
            ("TCP4 192.0.2.1 192.0.2.9 4711 443 \r\n", Malformed),
            ("TCP4 192.0.2.1 192.0.2.9 4711 443 9\r\n", Malformed),
            ("TCP4  192.0.2.1 192.0.2.9 4711 443\r\n", Malformed),
            ("TCP4\t192.0.2.1 192.0.2.9 4711 443\r\n", Malformed),
            ("TCP4 192.0.2.1\0 192.0.2.9 4711 443\r\n", Malformed),
            ("\r\n", Malformed),
            ("TCP5 192.0.2.1 192.0.2.9 4711 443\r\n", Family),
            ("tcp4 192.0.2.1 192.0.2.9 4711 443\r\n", Family),
            ("UDP4 192.0.2.1 192.0.2.9 4711 443\r\n", Family),
            ("UNKNOWNX\r\n", Malformed),
            ("TCP4 192.0.2 192.0.2.9 4711 443\r\n", Address),
            ("TCP4 192.0.2.01 192.0.2.9 4711 443\r\n", Address),
            ("TCP4 192.0.2.256 192.0.2.9 4711 443\r\n", Address),
            ("TCP4 ::1 192.0.2.9 4711 443\r\n", Address),
            ("TCP4 192.0.2.1 ::1 4711 443\r\n", Address),
            ("TCP6 192.0.2.1 ::1 4711 443\r\n", Address),
            ("TCP6 fe80::1%eth0 ::1 4711 443\r\n", Address),
            ("TCP6 [::1] ::1 4711 443\r\n", Address),
            ("TCP4 192.0.2.1 192.0.2.9 65536 443\r\n", Address),
            ("TCP4 192.0.2.1 192.0.2.9 4711 -1\r\n", Address),
            ("TCP4 192.0.2.1 192.0.2.9 +4711 443\r\n", Address),
            ("TCP4 192.0.2.1 192.0.2.9 04711 443\r\n", Address),
            ("TCP4 192.0.2.1 192.0.2.9 4711 \r\n", Address),
        ] {
            let header = format!("PROXY {line}");
            let found = announced(header.as_bytes());
            assert_eq!(found, Announcement::Bad(error), "{}", line.escape_debug());
        }
        for long in [
            format!("PROXY UNKNOWN {}\r\n", "x".repeat(92)),
            format!("PROXY {}", "x".repeat(101)),
            format!("PROXY {}\r", "x".repeat(100)),
        ] {
            let found = announced(long.as_bytes());
            assert_eq!(found, Announcement::Bad(TooLong), "{long}");
        }
        let fits = format!("PROXY UNKNOWN {}\r\n", "x".repeat(91));
        let found = (fits.len(), client(fits.as_bytes()));
        assert_eq!(found, (V1_BYTES_MAX, Client::Unknown));
    }

    #[test]
    fn version_2_names_the_client() {
        let with_tlvs = [block_v4(), tlv(1, b"h2"), tlv(2, b""), tlv(0xee, &[9; 300])].concat();
        for (header, expected) in [
            (v2(0x21, 0x11, &block_v4()), some("192.0.2.1:4711")),
            (v2(0x21, 0x11, &with_tlvs), some("192.0.2.1:4711")),
            (
                v2(0x21, 0x21, &block_v6("2001:db8::1")),
                some("[2001:db8::1]:80"),
            ),
            (
                v2(0x21, 0x21, &block_v6("::ffff:192.0.2.1")),
                some("192.0.2.1:80"),
            ),
            (v2(0x21, 0x31, &[b'/'; 216]), Client::Unknown),
            (v2(0x21, 0x00, &[]), Client::Unknown),
            (v2(0x20, 0x00, &[]), Client::Sender),
            // LOCAL: whatever the block says is to be skipped.
            (v2(0x20, 0x11, &block_v4()), Client::Sender),
            (v2(0x20, 0xff, b"anything"), Client::Sender),
            (summed(), some("192.0.2.1:4711")),
        ] {
            assert_eq!(client(&header), expected, "{}", header.escape_ascii());
        }
    }

    #[test]
    fn version_2_is_taken_exactly_as_specified_or_not_at_all() {
        use ProxyError::{Address, Checksum, Command, Family, Malformed, TooLong, Version};
        let with = |more: &[u8]| v2(0x21, 0x11, &[&block_v4(), more].concat());
        let mut wrong_sum = summed();
        *wrong_sum.last_mut().unwrap() ^= 1;
        for (header, error) in [
            (v2(0x01, 0x11, &block_v4()), Version),
            (v2(0x11, 0x11, &block_v4()), Version),
            (v2(0x31, 0x11, &block_v4()), Version),
            (v2(0x22, 0x11, &block_v4()), Command),
            (v2(0x2f, 0x11, &block_v4()), Command),
            (v2(0x21, 0x10, &block_v4()), Family),
            (v2(0x21, 0x12, &block_v4()), Family),
            (v2(0x21, 0x22, &block_v6("::1")), Family),
            (v2(0x21, 0x32, &[0; 216]), Family),
            (v2(0x21, 0x01, &block_v4()), Family),
            (v2(0x21, 0x41, &block_v4()), Family),
            (v2(0x21, 0x11, &block_v4()[..11]), Address),
            (v2(0x21, 0x21, &block_v4()), Address),
            (v2(0x21, 0x31, &block_v4()), Address),
            (v2(0x21, 0x11, &[]), Address),
            (with(&[1]), Malformed),
            (with(&[1, 0]), Malformed),
            (with(&[1, 0, 1]), Malformed),
            (with(&tlv(TLV_CRC32C, &[0; 3])), Malformed),
            (with(&tlv(TLV_CRC32C, &[0; 4])), Checksum),
            (wrong_sum, Checksum),
            (with(&tlv(4, &[0; V2_BYTES_MAX - 12 - 16 - 3 + 1])), TooLong),
        ] {
            let found = announced(&header);
            assert_eq!(found, Announcement::Bad(error), "{}", header.escape_ascii());
        }
        let longest = with(&tlv(4, &[0; V2_BYTES_MAX - 12 - 16 - 3]));
        assert_eq!(longest.len(), V2_BYTES_MAX);
        assert_eq!(client(&longest), some("192.0.2.1:4711"));
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c([0; 32].iter()), 0x8a91_36aa);
        assert_eq!(crc32c([0xff; 32].iter()), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
    }

    #[test]
    fn what_begins_otherwise_is_no_header() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PRI * HTTP/2.0\r\n",
            b"PROPFIND / HTTP/1.1\r\n",
            b"PROXY\r\n",
            b"proxy TCP4 ",
            b"\r\nGET / HTTP/1.1\r\n",
            b"\r\n\r\nGET / HTTP/1.1\r\n",
            b"\x16\x03\x01",
            b"SSH-2.0-x\r\n",
        ] {
            assert_eq!(
                announced(bytes),
                Announcement::None,
                "{}",
                bytes.escape_ascii()
            );
        }
    }

    fn near_headers() -> impl Strategy<Value = Vec<u8>> {
        let headers = vec![
            b"PROXY TCP4 192.0.2.1 192.0.2.9 4711 443\r\nGET /".to_vec(),
            b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n".to_vec(),
            b"PROXY UNKNOWN\r\n\x16\x03".to_vec(),
            [summed(), b"SSH-2.0-x".to_vec()].concat(),
            v2(0x21, 0x21, &block_v6("2001:db8::1")),
            v2(0x20, 0, &[]),
        ];
        let change = (any::<prop::sample::Index>(), any::<u8>());
        let changes = prop::collection::vec(change, 0..3);
        (prop::sample::select(headers), changes).prop_map(|(mut bytes, changes)| {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn segments_make_no_difference(bytes in near_headers()) {
            let whole = announced(&bytes);
            for cut in 0..=bytes.len() {
                let part = announced(&bytes[..cut]);
                if part.is_final() {
                    prop_assert_eq!(part, whole, "after {} bytes", cut);
                }
            }
        }

        #[test]
        fn any_bytes_are_judged_within_the_bound(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for start in [V1_SIGNATURE, V2_SIGNATURE, b""] {
                let bytes = [start, &bytes].concat();
                if let Announcement::Complete { length, .. } = announced(&bytes) {
                    prop_assert!(length <= bytes.len());
                }
            }
        }
    }
}
