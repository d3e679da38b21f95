//! Whose connection it is: its peer's, or that of a client which a trusted proxy announces.
//!
//! Reads a PROXY header before anything else. It is believed of
//! `--trusted-proxies` alone; from anyone else a header is an attempt to be
//! somebody else, and the connection is refused. Whom it announces is a client
//! like any other from here on, judged by its own address, never trusted by its
//! messenger.

use std::net::SocketAddr;

use bytes::{Buf as _, BytesMut};
use edd_detect::proxy::{Announcement, Client, ProxyError, announced};
use tokio::io::AsyncRead;
use tokio::time::{Instant, timeout_at};

use super::first::{Patience, read_more};
use crate::config::{Config, ProxyProtocol};

/// A connection whose client is known.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Identified {
    pub(crate) client: SocketAddr,
    /// Who that is.
    pub(crate) who: Who,
    /// What was read of the client's own bytes.
    pub(crate) bytes: BytesMut,
    /// Whether the client has been silent for as long as it may be.
    pub(crate) was_silent: bool,
}

/// Whose address a connection goes by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Who {
    /// That of a client that a proxy announced, who is like any other.
    Announced,
    /// The peer's own: nobody is announced, or it speaks for itself.
    Peer,
    /// The peer's, for want of one: a proxy that cannot name its client. Nothing that the
    /// address stands for is the client's.
    Unknown,
}

/// Why it is not known whose connection it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Unidentified {
    /// A header that cannot be used.
    #[error(transparent)]
    Bad(ProxyError),
    /// The connection broke, or nothing has come and the gateway is draining.
    #[error("gone before it was said whose it is")]
    Gone,
    /// No header where one is required.
    #[error("the PROXY header is missing")]
    Missing,
    /// A header from a peer that is no trusted proxy, or a peer that is none where one is required.
    #[error("the peer is no trusted proxy")]
    Untrusted,
}

impl Unidentified {
    /// The metric's label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Bad(_) => "proxy_bad",
            Self::Gone => "proxy_gone",
            Self::Missing => "proxy_missing",
            Self::Untrusted => "proxy_untrusted",
        }
    }
}

/// Reads a PROXY header, if connections of `peer` may or must begin with one.
///
/// Bounded by the longest header and by `patience`. Not cancellation safe: what
/// was read is lost.
pub(crate) async fn identify<S>(
    stream: &mut S,
    peer: SocketAddr,
    config: &Config,
    patience: Patience<'_>,
) -> Result<Identified, Unidentified>
where
    S: AsyncRead + Unpin,
{
    let is_trusted = config.trusts(peer.ip());
    read_announcement(stream, peer, config.proxy_protocol, is_trusted, patience).await
}

async fn read_announcement<S>(
    stream: &mut S,
    peer: SocketAddr,
    mode: ProxyProtocol,
    is_trusted: bool,
    patience: Patience<'_>,
) -> Result<Identified, Unidentified>
where
    S: AsyncRead + Unpin,
{
    let is_required = match (mode, is_trusted) {
        (ProxyProtocol::Off, _) => return Ok(itself(peer, BytesMut::new(), false)),
        (ProxyProtocol::Required, false) => return Err(Unidentified::Untrusted),
        (ProxyProtocol::Required, true) => true,
        (ProxyProtocol::Optional, _) => false,
    };
    let mut bytes = BytesMut::new();
    loop {
        match announced(&bytes) {
            Announcement::Complete { .. } | Announcement::Bad(_) if !is_trusted => {
                return Err(Unidentified::Untrusted);
            }
            Announcement::Complete { client, length } => {
                bytes.advance(length);
                let (client, who) = match client {
                    Client::Known(client) => (client, Who::Announced),
                    Client::Sender => (peer, Who::Peer),
                    Client::Unknown => (peer, Who::Unknown),
                };
                return Ok(Identified {
                    client,
                    who,
                    bytes,
                    was_silent: false,
                });
            }
            Announcement::Bad(error) => return Err(Unidentified::Bad(error)),
            Announcement::None if is_required => return Err(Unidentified::Missing),
            Announcement::None => return Ok(itself(peer, bytes, false)),
            Announcement::NeedMore => {}
        }
        // A required header is the proxy's, and proxies are not silent at first.
        let silence = patience.silence.filter(|_| !is_required);
        let silent_at = silence.map(|silence| Instant::now() + silence);
        let until = silent_at.map_or(patience.deadline, |at| at.min(patience.deadline));
        let idle = bytes.is_empty();
        let read = tokio::select! {
            biased;
            read = timeout_at(until, read_more(stream, &mut bytes)) => read,
            () = patience.draining.cancelled(), if idle => return Err(Unidentified::Gone),
        };
        match read {
            Ok(Ok(1..)) => {}
            Ok(Err(_)) => return Err(Unidentified::Gone),
            Ok(Ok(0)) | Err(_) if is_required => return Err(Unidentified::Missing),
            // The end is there to be read again.
            Ok(Ok(0)) => return Ok(itself(peer, bytes, false)),
            Err(_) => return Ok(itself(peer, bytes, true)),
        }
    }
}

fn itself(peer: SocketAddr, bytes: BytesMut, was_silent: bool) -> Identified {
    Identified {
        client: peer,
        who: Who::Peer,
        bytes,
        was_silent,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncWriteExt as _, duplex};
    use tokio_util::sync::CancellationToken;

    use super::*;

    const HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.9 4711 443\r\n";
    const PROXY: &str = "10.0.0.1:5";

    use ProxyProtocol::{Off, Optional, Required};

    /// Sends the bytes one by one, then ends or stays; tells what was made of it and when.
    async fn heard(
        mode: ProxyProtocol,
        is_trusted: bool,
        bytes: &[u8],
        end: bool,
    ) -> (Result<(String, Who, Vec<u8>), Unidentified>, Duration) {
        let (mut near, mut far) = duplex(1 << 16);
        let draining = CancellationToken::new();
        let begun = Instant::now();
        let patience = Patience {
            deadline: begun + Duration::from_secs(10),
            silence: Some(Duration::from_millis(500)),
            draining: &draining,
        };
        let send = async {
            for byte in bytes {
                near.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if end {
                drop(near);
            } else {
                std::future::pending::<()>().await;
            }
            std::future::pending().await
        };
        let peer = PROXY.parse().unwrap();
        let found = tokio::select! {
            found = read_announcement(&mut far, peer, mode, is_trusted, patience) => found,
            () = send => unreachable!(),
        };
        let found = found.map(|found| {
            let client = found.client.to_string();
            (client, found.who, found.bytes.to_vec())
        });
        (found, begun.elapsed())
    }

    fn told(client: &str, rest: &[u8]) -> Result<(String, Who, Vec<u8>), Unidentified> {
        let who = match client {
            PROXY => Who::Peer,
            _ => Who::Announced,
        };
        Ok((client.to_owned(), who, rest.to_vec()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_trusted_proxys_client_is_the_client() {
        for mode in [Optional, Required] {
            let (found, _) = heard(mode, true, HEADER, false).await;
            assert_eq!(found, told("192.0.2.1:4711", b""));
            let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
            let (found, _) = heard(mode, true, local, false).await;
            assert_eq!(found, told(PROXY, b""));
            let (found, _) = heard(mode, true, b"PROXY UNKNOWN\r\n", false).await;
            assert_eq!(found, Ok((PROXY.to_owned(), Who::Unknown, Vec::new())));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_header_it_is_the_peers_or_nobodys() {
        for (mode, is_trusted, expected) in [
            (Off, true, told(PROXY, b"")),
            (Off, false, told(PROXY, b"")),
            (Optional, true, told(PROXY, b"PR!")),
            (Optional, false, told(PROXY, b"PR!")),
            (Required, true, Err(Unidentified::Missing)),
            (Required, false, Err(Unidentified::Untrusted)),
        ] {
            let (found, _) = heard(mode, is_trusted, b"PR!", false).await;
            assert_eq!(found, expected, "{mode:?} {is_trusted}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_else_is_believed_and_nonsense_is_not_either() {
        let bad = b"PROXY TCP4 6.6.6.6\r\n";
        for (is_trusted, bytes, expected) in [
            (false, HEADER, Unidentified::Untrusted),
            (false, bad, Unidentified::Untrusted),
            (true, bad, Unidentified::Bad(ProxyError::Malformed)),
        ] {
            let (found, _) = heard(Optional, is_trusted, bytes, false).await;
            assert_eq!(found, Err(expected));
        }
        let (found, _) = heard(Required, false, HEADER, false).await;
        assert_eq!(found, Err(Unidentified::Untrusted));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_ends_are_left_to_what_follows_unless_a_header_is_due() {
        for (bytes, end, took_ms) in [
            (&b""[..], false, 500),
            (b"PRO", false, 502),
            (b"P", true, 1),
        ] {
            let (found, took) = heard(Optional, true, bytes, end).await;
            assert_eq!(found, told(PROXY, bytes));
            let off = took.as_millis().abs_diff(took_ms);
            assert!(off <= 3, "{took:?}");
            let (found, took) = heard(Required, true, bytes, end).await;
            assert_eq!(found, Err(Unidentified::Missing));
            assert!(end || took >= Duration::from_secs(10), "{took:?}");
        }
    }
}
