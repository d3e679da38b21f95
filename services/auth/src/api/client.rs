//! Whose address a request came from.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};
use edd_daemon::server::Peer;
use ipnet::IpNet;

use super::Api;

/// Stands for a peer that the server did not name, which it always does.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The client's address: the peer's, or what trusted proxies say of it.
pub(crate) struct ClientAddress(pub(crate) IpAddr);

impl FromRequestParts<Arc<Api>> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Infallible> {
        let peer = parts
            .extensions
            .get::<Peer>()
            .map_or(UNKNOWN, |Peer(addr)| addr.ip());
        Ok(Self(client(peer, &parts.headers, &api.trusted_proxies)))
    }
}

/// Walks `X-Forwarded-For` from its end, as long as the one who wrote an entry
/// is trusted: the first address that is not is the client. What stands further
/// left, the client wrote itself.
fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |addr: IpAddr| trusted.iter().any(|net| net.contains(&addr));
    let mut client = peer.to_canonical();
    let entries = headers.get_all("x-forwarded-for").iter().rev();
    for entry in entries.flat_map(|value| value.to_str().unwrap_or("").rsplit(',')) {
        if !is_trusted(client) {
            break;
        }
        // A trusted proxy wrote something else than an address: it is as far as
        // the chain can be followed.
        let Ok(addr) = entry.trim().parse::<IpAddr>() else {
            break;
        };
        client = addr.to_canonical();
    }
    client
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted: Vec<IpNet> = ["127.0.0.0/8", "10.0.0.0/8"]
            .map(|c| c.parse().unwrap())
            .into();
        let cases: [(&str, &[&str], &str); 9] = [
            ("192.0.2.1", &[], "192.0.2.1"),
            ("192.0.2.1", &["198.51.100.1"], "192.0.2.1"),
            ("127.0.0.1", &[], "127.0.0.1"),
            ("127.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("127.0.0.1", &["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
            (
                "127.0.0.1",
                &["203.0.113.9, 198.51.100.1, 10.0.0.1"],
                "198.51.100.1",
            ),
            (
                "127.0.0.1",
                &["203.0.113.9", "198.51.100.1"],
                "198.51.100.1",
            ),
            ("127.0.0.1", &["198.51.100.1, unknown"], "127.0.0.1"),
            ("::ffff:127.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1"),
        ];
        for (peer, forwarded, expected) in cases {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", HeaderValue::from_str(value).unwrap());
            }
            let found = client(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(found.to_string(), expected, "{peer} {forwarded:?}");
        }
    }
}
