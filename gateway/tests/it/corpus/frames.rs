//! HTTP/2 by hand: header blocks with whatever bytes a case wants (RFC 9113, RFC 7541).

use tokio::io::AsyncWriteExt;

use super::client::more;
use super::reader::Case;
use crate::support::Gateway;
use crate::support::client::Greeting;

/// What became of the stream.
#[derive(Debug)]
pub(super) enum Outcome {
    Answer(u16),
    /// GOAWAY, or the connection ended.
    Closed,
    Reset,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const FRAME_MAX: usize = 16_384;

/// Sends the case as stream 1 of a connection of its own.
pub(super) async fn ask(gateway: &Gateway, case: &Case) -> Outcome {
    let greeting = Greeting {
        alpn: &[b"h2"],
        ..Greeting::anyone("a.example")
    };
    let mut stream = greeting
        .dial(gateway.addresses.https)
        .await
        .expect("a handshake");
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut out, SETTINGS, 0, 0, b"");
    let body = case.get("body").map(|_| case.body());
    let trailers = case.trailers();
    let end = |is_last| if is_last { END_STREAM } else { 0 };
    headers(&mut out, end(body.is_none()), &case.fields());
    if let Some(body) = body {
        frame(&mut out, DATA, end(trailers.is_empty()), 1, &body);
    }
    if !trailers.is_empty() {
        headers(&mut out, END_STREAM, &trailers);
    }
    // It may refuse in the middle.
    let _ = stream.write_all(&out).await;
    let _ = stream.flush().await;

    let mut bytes = Vec::new();
    loop {
        while let Some((kind, flags, id, payload, used)) = next(&bytes) {
            let outcome = match (kind, id) {
                (SETTINGS, _) if flags & ACK == 0 => {
                    let mut ack = Vec::new();
                    frame(&mut ack, SETTINGS, ACK, 0, b"");
                    let _ = stream.write_all(&ack).await;
                    None
                }
                (HEADERS, 1) => Some(Outcome::Answer(status(payload))),
                (RST_STREAM, 1) => Some(Outcome::Reset),
                (GOAWAY, _) => Some(Outcome::Closed),
                _ => None,
            };
            bytes.drain(..used);
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
        if !more(&case.name, &mut stream, &mut bytes).await {
            return Outcome::Closed;
        }
    }
}

/// A header block as one HEADERS frame and as many CONTINUATIONs as it takes.
fn headers(out: &mut Vec<u8>, mut flags: u8, fields: &[(Vec<u8>, Vec<u8>)]) {
    let mut block = Vec::new();
    for (name, value) in fields {
        // Literal without indexing, a new name, no Huffman.
        block.push(0);
        string(&mut block, name);
        string(&mut block, value);
    }
    let mut pieces = block.chunks(FRAME_MAX).peekable();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            flags |= END_HEADERS;
        }
        frame(out, kind, flags, 1, piece);
        flags = 0;
        kind = CONTINUATION;
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a frame's length");
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Kind, flags, stream, payload, and how many bytes.
fn next(bytes: &[u8]) -> Option<(u8, u8, u32, &[u8], usize)> {
    let [a, b, c, kind, flags, id @ ..] = bytes.first_chunk::<9>()?;
    let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
    let payload = bytes.get(9..9 + length)?;
    Some((*kind, *flags, u32::from_be_bytes(*id), payload, 9 + length))
}

fn string(block: &mut Vec<u8>, text: &[u8]) {
    if text.len() < 127 {
        block.push(text.len() as u8);
    } else {
        // An integer with a prefix of seven bits (RFC 7541, section 5.1).
        block.push(127);
        let mut rest = text.len() - 127;
        while rest >= 128 {
            block.push((rest % 128 + 128) as u8);
            rest /= 128;
        }
        block.push(rest as u8);
    }
    block.extend_from_slice(text);
}

/// The status at the beginning of a header block, as the h2 crate writes it.
fn status(mut block: &[u8]) -> u16 {
    // Changes of the table's size.
    while let [byte @ 0x20..=0x3f, rest @ ..] = block {
        block = rest;
        if byte & 0x1f == 0x1f {
            let end = block.iter().position(|b| b & 0x80 == 0).expect("an end");
            block = &block[end + 1..];
        }
    }
    match block {
        [0x88, ..] => 200,
        [0x89, ..] => 204,
        [0x8a, ..] => 206,
        [0x8b, ..] => 304,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        // A literal with the name of `:status`.
        [_, length, text @ ..] => {
            let text = &text[..usize::from(length & 0x7f)];
            if length & 0x80 == 0 {
                let text = std::str::from_utf8(text).expect("digits");
                text.parse().expect("a status")
            } else {
                huffman_digits(text)
            }
        }
        _ => panic!("no status in {block:?}"),
    }
}

/// Three digits (RFC 7541, appendix B): 0 to 2 in five bits, the others in six.
fn huffman_digits(bytes: &[u8]) -> u16 {
    let bit = |at: usize| u16::from(bytes[at / 8] >> (7 - at % 8) & 1);
    let take = |at: usize, n: usize| (at..at + n).fold(0, |value, at| value * 2 + bit(at));
    let mut at = 0;
    let mut status = 0;
    for _ in 0..3 {
        let digit = match take(at, 5) {
            short @ 0..=2 => {
                at += 5;
                short
            }
            _ => {
                at += 6;
                take(at - 6, 6) - 0b01_0110
            }
        };
        status = status * 10 + digit;
    }
    status
}
