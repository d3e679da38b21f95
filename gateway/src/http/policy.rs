//! What of a client's words is believed, and what the gateway says about the client.
//!
//! Pure functions over values. Which fields pass at all, `fields` knows.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

/// The tokens of a comma-separated field (`Connection`, `Accept`, `X-Forwarded-For`).
pub(crate) fn tokens(value: &str) -> impl DoubleEndedIterator<Item = &str> {
    value.split(',').map(str::trim).filter(|t| !t.is_empty())
}

/// Whether an `Upgrade` value may be offered to an upstream.
///
/// Not `h2c`: what follows would be requests that nobody here routes.
pub(crate) fn upgrade_may_pass(value: &str) -> bool {
    let mut protocols = tokens(value).peekable();
    protocols.peek().is_some() && protocols.all(|p| !p.eq_ignore_ascii_case("h2c"))
}

/// Whether `address` is one of the proxies whose words are believed.
pub(crate) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|net| net.contains(&address))
}

/// The client's address: the peer, or behind trusted proxies the last hop of the chain that is not one of them.
///
/// `chain` is `X-Forwarded-For`, the nearest hop last. A hop that cannot be read ends the walk.
pub(crate) fn client_address<'h>(
    peer: IpAddr,
    chain: impl DoubleEndedIterator<Item = &'h str>,
    trusted: &[IpNet],
) -> IpAddr {
    let mut client = peer.to_canonical();
    for hop in chain.rev() {
        if !is_trusted(client, trusted) {
            break;
        }
        match parse_hop(hop) {
            Some(address) => client = address,
            None => break,
        }
    }
    client
}

/// An address as proxies write it: bare, with a port, in brackets.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let bare = hop.trim_matches(['[', ']']).parse().ok();
    let with_port = || {
        hop.parse()
            .ok()
            .map(|socket: std::net::SocketAddr| socket.ip())
    };
    bare.or_else(with_port).map(|ip: IpAddr| ip.to_canonical())
}

/// What a trusted proxy said about its client; empty for everyone else.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    /// `X-Forwarded-For`, several fields joined.
    pub(crate) forwarded_for: Option<String>,
    /// `X-Forwarded-Proto`.
    pub(crate) proto: Option<String>,
    /// `X-Forwarded-Host`.
    pub(crate) host: Option<String>,
    /// `Forwarded` (RFC 7239), several fields joined.
    pub(crate) forwarded: Option<String>,
}

/// The forwarding fields that the upstream sees.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Forwarding {
    /// `X-Forwarded-For`.
    pub(crate) forwarded_for: String,
    /// `X-Forwarded-Proto`.
    pub(crate) proto: String,
    /// `X-Forwarded-Host`.
    pub(crate) host: String,
    /// `Forwarded`, only where a trusted proxy uses it.
    pub(crate) forwarded: Option<String>,
}

impl Chain {
    /// The chain with this hop appended.
    pub(crate) fn extend(self, peer: IpAddr, secure: bool, authority: &str) -> Forwarding {
        let peer = peer.to_canonical();
        let scheme = if secure { "https" } else { "http" };
        let forwarded_for = match self.forwarded_for {
            Some(mut chain) => {
                let _ = write!(chain, ", {peer}");
                chain
            }
            None => peer.to_string(),
        };
        let forwarded = self.forwarded.map(|mut chain| {
            let _ = match peer {
                IpAddr::V4(v4) => write!(chain, ", for={v4}"),
                IpAddr::V6(v6) => write!(chain, ", for=\"[{v6}]\""),
            };
            let _ = write!(chain, ";host=\"{authority}\";proto={scheme}");
            chain
        });
        let known = |proto: &String| matches!(proto.as_str(), "http" | "https");
        Forwarding {
            forwarded_for,
            proto: self
                .proto
                .filter(known)
                .unwrap_or_else(|| scheme.to_owned()),
            host: self.host.unwrap_or_else(|| authority.to_owned()),
            forwarded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h2c_is_never_offered() {
        assert!(upgrade_may_pass("websocket"));
        assert!(upgrade_may_pass("foo/2"));
        assert!(!upgrade_may_pass("h2c"));
        assert!(!upgrade_may_pass("websocket, H2C"));
        assert!(!upgrade_may_pass(" , "));
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_not_trusted() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for (peer, chain, client) in [
            ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
            ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
            (
                "10.0.0.1",
                "1.1.1.1, 198.51.100.1, 10.0.0.2",
                "198.51.100.1",
            ),
            ("10.0.0.1", "198.51.100.1, unknown", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("::ffff:10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
            ("fd00::1", "[2001:db8::1]", "2001:db8::1"),
            ("fd00::1", "[2001:db8::1]:443", "2001:db8::1"),
        ] {
            let found = client_address(peer.parse().unwrap(), tokens(chain), &trusted);
            assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{peer} {chain}");
        }
    }

    #[test]
    fn a_client_without_a_chain_is_described_by_the_gateway_alone() {
        let seen = Chain::default().extend("192.0.2.1".parse().unwrap(), true, "a.example:8443");
        assert_eq!(
            seen,
            Forwarding {
                forwarded_for: "192.0.2.1".into(),
                proto: "https".into(),
                host: "a.example:8443".into(),
                forwarded: None,
            }
        );
    }

    #[test]
    fn a_trusted_chain_is_appended_to() {
        let chain = Chain {
            forwarded_for: Some("198.51.100.1".into()),
            proto: Some("https".into()),
            host: Some("public.example".into()),
            forwarded: Some("for=198.51.100.1".into()),
        };
        let seen = chain.extend("10.0.0.1".parse().unwrap(), false, "a.example");
        assert_eq!(
            seen,
            Forwarding {
                forwarded_for: "198.51.100.1, 10.0.0.1".into(),
                proto: "https".into(),
                host: "public.example".into(),
                forwarded: Some(
                    "for=198.51.100.1, for=10.0.0.1;host=\"a.example\";proto=http".into()
                ),
            }
        );
        let odd = Chain {
            proto: Some("gopher".into()),
            ..Chain::default()
        };
        assert_eq!(
            odd.extend("10.0.0.1".parse().unwrap(), false, "a").proto,
            "http"
        );
    }
}
