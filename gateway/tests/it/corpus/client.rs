//! Answers as a client reads them: independent of the gateway's own parser.

use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::client::TlsStream;

use crate::support::client::Greeting;
use crate::support::{DEADLINE, Gateway};

/// An answer, whole or not.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Whether its framing was complete.
    pub(super) whole: bool,
}

impl Answer {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let found = self
            .fields
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn is_interim(&self) -> bool {
        (100..200).contains(&self.status)
    }
}

/// A connection, HTTP/1.1.
pub(super) struct Client<S = TlsStream<TcpStream>> {
    pub(super) stream: S,
    bytes: Vec<u8>,
    ended: bool,
}

impl Client {
    /// By TLS.
    pub(super) async fn dial(gateway: &Gateway) -> Self {
        let greeting = Greeting {
            alpn: &[b"http/1.1"],
            ..Greeting::anyone("a.example")
        };
        let stream = greeting.dial(gateway.addresses.https).await;
        Self::over(stream.expect("a handshake"))
    }
}

impl<S: AsyncRead + Unpin> Client<S> {
    pub(super) fn over(stream: S) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
            ended: false,
        }
    }

    /// The next answer; none at the end. `head`: it has no body.
    pub(super) async fn answer(&mut self, name: &str, head: bool) -> Option<Answer> {
        loop {
            if let Some((answer, used)) = read(&self.bytes, head, self.ended) {
                self.bytes.drain(..used);
                return Some(answer);
            }
            if self.ended {
                let rest = self.bytes.escape_ascii();
                assert!(self.bytes.is_empty(), "{name}: half a head: {rest}");
                return None;
            }
            self.ended = !more(name, &mut self.stream, &mut self.bytes).await;
        }
    }
}

/// Reads on; false at the end.
pub(super) async fn more(
    name: &str,
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
) -> bool {
    let deadline = Instant::now() + DEADLINE;
    match timeout_at(deadline.into(), stream.read_buf(bytes)).await {
        Ok(Ok(n)) => n > 0,
        // A reset, or an end without TLS's farewell.
        Ok(Err(_)) => false,
        Err(_) => panic!(
            "{name}: nothing within {DEADLINE:?}, after {}",
            bytes.escape_ascii()
        ),
    }
}

/// One answer at the beginning of `bytes`, and how many of them it took.
fn read(bytes: &[u8], head: bool, ended: bool) -> Option<(Answer, usize)> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = text.split("\r\n");
    let status = lines.next()?.get(9..12)?.parse().expect("a status");
    let fields = lines
        .map(|line| {
            let (name, value) = line.split_once(':').expect("a field");
            (name.to_owned(), value.trim().to_owned())
        })
        .collect();
    let mut answer = Answer {
        status,
        fields,
        ..Answer::default()
    };
    let at = end + 4;
    if head || answer.is_interim() || matches!(status, 204 | 304) {
        answer.whole = true;
        return Some((answer, at));
    }
    let rest = &bytes[at..];
    let used = if let Some(length) = answer.field("content-length") {
        let length: usize = length.parse().expect("a length");
        answer.body = rest[..length.min(rest.len())].to_vec();
        answer.whole = rest.len() >= length;
        answer.body.len()
    } else if answer.field("transfer-encoding").is_some() {
        let (body, used, whole) = chunks(rest);
        answer.body = body;
        answer.whole = whole;
        used
    } else {
        answer.body = rest.to_vec();
        answer.whole = ended;
        rest.len()
    };
    (answer.whole || ended).then_some((answer, at + used))
}

/// The data of the chunks there are, the bytes they take, and whether the last one is among them.
fn chunks(bytes: &[u8]) -> (Vec<u8>, usize, bool) {
    let mut data = Vec::new();
    let mut at = 0;
    loop {
        let Some(line) = bytes[at..].windows(2).position(|w| w == b"\r\n") else {
            return (data, bytes.len(), false);
        };
        let digits = std::str::from_utf8(&bytes[at..at + line]).expect("a size");
        let size = usize::from_str_radix(digits, 16).expect("a size");
        at += line + 2;
        if size == 0 {
            break;
        }
        let end = (at + size).min(bytes.len());
        data.extend_from_slice(&bytes[at..end]);
        if bytes.len() < at + size + 2 {
            return (data, bytes.len(), false);
        }
        at += size + 2;
    }
    // Trailers, then a blank line.
    loop {
        let Some(line) = bytes[at..].windows(2).position(|w| w == b"\r\n") else {
            return (data, bytes.len(), false);
        };
        at += line + 2;
        if line == 0 {
            return (data, at, true);
        }
    }
}
