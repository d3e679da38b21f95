//! The ClientHello, as far as routing needs it: server name and ALPN.
//!
//! A hello may be cut into TLS records anywhere (RFC 8446, section 5.1), and
//! one with post-quantum key shares never fits a segment. The records are
//! walked each time more bytes arrive, cheaply; the message is put together
//! and read once, when it is whole.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::{HELLO_BYTES_MAX, Verdict};

/// What a client says before anything is encrypted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientHello {
    /// The `host_name` of `server_name` (RFC 6066, section 3), ASCII, as sent. An
    /// IP address is not allowed there and counts as none.
    pub sni: Option<String>,
    /// The offered protocols (RFC 7301), in the client's order; empty: no ALPN.
    pub alpn: Vec<Vec<u8>>,
}

impl ClientHello {
    /// Whether the client offers this protocol.
    pub fn offers(&self, protocol: &[u8]) -> bool {
        self.alpn.iter().any(|offered| offered == protocol)
    }
}

/// Why TLS bytes are no ClientHello.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HelloError {
    /// An extension that appears twice.
    #[error("the client hello has an extension twice")]
    Duplicate,
    /// Lengths inside it that do not add up, or a part that is missing.
    #[error("the client hello is malformed")]
    Malformed,
    /// A handshake message of another type.
    #[error("the first handshake message is no client hello")]
    NotHello,
    /// A record of another type or version, an empty or an oversized one.
    #[error("the record around the client hello is malformed")]
    Record,
    /// A server name that is empty or not ASCII, or several of them.
    #[error("the client hello has a bad server name")]
    ServerName,
    /// More than [`HELLO_BYTES_MAX`].
    #[error("the client hello is too long")]
    TooLong,
}

/// Judges bytes that begin as a TLS handshake record.
pub(crate) fn detect(bytes: &[u8]) -> Verdict {
    let seen = bytes.get(..HELLO_BYTES_MAX).unwrap_or(bytes);
    match read(seen) {
        Ok(Some(hello)) => Verdict::Tls(hello),
        Ok(None) if seen.len() < HELLO_BYTES_MAX => Verdict::PartialTls,
        Ok(None) => Verdict::BadTls(HelloError::TooLong),
        Err(error) => Verdict::BadTls(error),
    }
}

/// The hello, once it is there as a whole.
fn read(bytes: &[u8]) -> Result<Option<ClientHello>, HelloError> {
    match gather(bytes)? {
        None => Ok(None),
        Some(body) => parse(Reader(&body)).map(Some),
    }
}

/// Puts the body of the first handshake message together from its records.
///
/// Everything is judged in the order it arrives, so that a verdict does not
/// depend on how much has been read when it is made.
fn gather(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, HelloError> {
    let mut rest = bytes;
    let mut head = Head::default();
    loop {
        let Some((record, after)) = next_record(rest)? else {
            return Ok(None);
        };
        let fragment = head.take(record)?;
        if let Some(length) = head.length() {
            if length > HELLO_BYTES_MAX {
                return Err(HelloError::TooLong);
            }
            if let Some(body) = fragment.get(..length) {
                return Ok(Some(Cow::Borrowed(body)));
            }
            return collect(fragment, length, after);
        }
        let Some(after) = after else { return Ok(None) };
        rest = after;
    }
}

/// The body when it goes on in further records. Copies only when all of it is there.
fn collect<'b>(
    first: &'b [u8],
    length: usize,
    after: Option<&'b [u8]>,
) -> Result<Option<Cow<'b, [u8]>>, HelloError> {
    let mut have = first.len();
    let mut next = after;
    while have < length {
        let Some(rest) = next else { return Ok(None) };
        let Some((record, after)) = next_record(rest)? else {
            return Ok(None);
        };
        have += record.len();
        next = after;
    }
    let mut body = Vec::with_capacity(have);
    body.extend_from_slice(first);
    let mut next = after;
    while body.len() < length {
        let Some(rest) = next else { return Ok(None) };
        let Some((record, after)) = next_record(rest)? else {
            return Ok(None);
        };
        body.extend_from_slice(record);
        next = after;
    }
    body.truncate(length);
    Ok(Some(Cow::Owned(body)))
}

/// The four bytes before the body: type and length.
#[derive(Default)]
struct Head {
    bytes: [u8; 4],
    have: usize,
}

impl Head {
    /// Takes what it needs of a fragment and returns the rest.
    fn take<'b>(&mut self, fragment: &'b [u8]) -> Result<&'b [u8], HelloError> {
        let need = self.bytes.len() - self.have;
        let (mine, rest) = fragment.split_at(need.min(fragment.len()));
        for (slot, byte) in self.bytes.iter_mut().skip(self.have).zip(mine) {
            *slot = *byte;
        }
        self.have += mine.len();
        if self.have > 0 && self.bytes[0] != CLIENT_HELLO {
            return Err(HelloError::NotHello);
        }
        Ok(rest)
    }

    fn length(&self) -> Option<usize> {
        let [_, a, b, c] = self.bytes;
        (self.have == self.bytes.len()).then(|| be(&[a, b, c]))
    }
}

/// What a record holds so far, and what follows it, if it is whole.
type Record<'b> = (&'b [u8], Option<&'b [u8]>);

/// The next record; none if its head is not whole.
fn next_record(bytes: &[u8]) -> Result<Option<Record<'_>>, HelloError> {
    if bytes.first().is_some_and(|&kind| kind != HANDSHAKE)
        || bytes.get(1).is_some_and(|&major| major != 3)
    {
        return Err(HelloError::Record);
    }
    let Some(([_, _, _, high, low], payload)) = bytes.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let length = be(&[*high, *low]);
    if length == 0 || length > RECORD_MAX {
        return Err(HelloError::Record);
    }
    Ok(Some(match payload.split_at_checked(length) {
        Some((whole, after)) => (whole, Some(after)),
        None => (payload, None),
    }))
}

fn parse(mut body: Reader<'_>) -> Result<ClientHello, HelloError> {
    body.take(2 + 32)?; // legacy_version, random
    body.vector(1)?; // legacy_session_id
    body.vector(2)?; // cipher_suites
    body.vector(1)?; // legacy_compression_methods
    let mut hello = ClientHello::default();
    if body.is_empty() {
        // TLS 1.2 clients may leave all extensions out.
        return Ok(hello);
    }
    let mut extensions = body.vector(2)?;
    if !body.is_empty() {
        return Err(HelloError::Malformed);
    }
    let (mut named, mut negotiated) = (false, false);
    while !extensions.is_empty() {
        let kind = extensions.number(2)?;
        let data = extensions.vector(2)?;
        let seen = match kind {
            SERVER_NAME => {
                hello.sni = parse_server_name(data)?;
                &mut named
            }
            ALPN => {
                hello.alpn = parse_alpn(data)?;
                &mut negotiated
            }
            _ => continue,
        };
        if std::mem::replace(seen, true) {
            return Err(HelloError::Duplicate);
        }
    }
    Ok(hello)
}

fn parse_server_name(mut data: Reader<'_>) -> Result<Option<String>, HelloError> {
    let mut list = data.vector(2)?;
    if !data.is_empty() || list.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut name = None;
    while !list.is_empty() {
        let kind = list.number(1)?;
        let text = list.vector(2)?.0;
        if kind != HOST_NAME {
            continue;
        }
        if text.is_empty() || !text.is_ascii() || name.is_some() {
            return Err(HelloError::ServerName);
        }
        name = Some(String::from_utf8_lossy(text).into_owned());
    }
    Ok(name.filter(|name| name.parse::<IpAddr>().is_err()))
}

fn parse_alpn(mut data: Reader<'_>) -> Result<Vec<Vec<u8>>, HelloError> {
    let mut list = data.vector(2)?;
    if !data.is_empty() || list.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let protocol = list.vector(1)?.0;
        if protocol.is_empty() {
            return Err(HelloError::Malformed);
        }
        protocols.push(protocol.to_vec());
    }
    Ok(protocols)
}

/// Takes TLS's presentation language apart (RFC 8446, section 3).
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize) -> Result<&'b [u8], HelloError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, width: usize) -> Result<usize, HelloError> {
        self.take(width).map(be)
    }

    /// A vector with a length of `width` bytes before it.
    fn vector(&mut self, width: usize) -> Result<Self, HelloError> {
        let length = self.number(width)?;
        self.take(length).map(Self)
    }
}

fn be(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |number, &byte| number << 8 | usize::from(byte))
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: usize = 0;
const HOST_NAME: usize = 0;
const ALPN: usize = 16;

/// Most plaintext that a record may hold (RFC 8446, section 5.1).
const RECORD_MAX: usize = 1 << 14;
