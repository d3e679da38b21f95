//! A client that sends the frames it is told, right or wrong.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::DEADLINE;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const INTERNAL_ERROR: u32 = 2;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame as it came.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn ends(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// The status of an answer's head. It is its first field, from the static table or a literal of three digits.
    pub(crate) fn status(&self) -> u16 {
        assert_eq!(self.kind, HEADERS);
        // The table of the compression is closed at first (see `Raw::with_settings`).
        let skip = usize::from(self.payload[0] & 0xe0 == 0x20);
        let payload = &self.payload[skip..];
        match payload[0] {
            0x88 => 200,
            0x89 => 204,
            0x8a => 206,
            0x8b => 304,
            0x8c => 400,
            0x8d => 404,
            0x8e => 500,
            // A literal with the name of entry 8 to 14, Huffman or plain.
            _ => match payload[1] {
                3 => std::str::from_utf8(&payload[2..5])
                    .unwrap()
                    .parse()
                    .unwrap(),
                huffman => digits(&payload[2..2 + usize::from(huffman & 0x7f)]),
            },
        }
    }
}

/// Three digits in HPACK's Huffman code: 0 to 2 have five bits, 3 to 9 six.
fn digits(bytes: &[u8]) -> u16 {
    let mut bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1)));
    let mut number = 0;
    for _ in 0..3 {
        let mut code = 0;
        for _ in 0..5 {
            code = code << 1 | bits.next().unwrap();
        }
        if code > 2 {
            code = (code << 1 | bits.next().unwrap()) - 0x19 + 3;
        }
        number = number * 10 + code;
    }
    number
}

/// The bytes of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields as literals that are never indexed.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let mut text = |text: &str| {
        if text.len() < 127 {
            block.push(u8::try_from(text.len()).unwrap());
        } else {
            block.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                block.push(u8::try_from(rest % 128).unwrap() | 0x80);
                rest /= 128;
            }
            block.push(u8::try_from(rest).unwrap());
        }
        block.extend(text.as_bytes());
    };
    for (name, value) in fields {
        // The first byte of such a literal is a zero, as is the length of nothing.
        text("");
        text(name);
        text(value);
    }
    block
}

/// The usual head, then `more`.
pub(crate) fn head<'f>(
    method: &'f str,
    host: &'f str,
    path: &'f str,
    more: &[(&'f str, &'f str)],
) -> Vec<u8> {
    let mut fields = vec![
        (":method", method),
        (":scheme", "http"),
        (":authority", host),
        (":path", path),
    ];
    fields.extend(more);
    block(&fields)
}

/// A connection of which the preface and one SETTINGS frame are sent.
pub(crate) struct Raw {
    pub(crate) io: TcpStream,
}

impl Raw {
    pub(crate) async fn open(addr: SocketAddr) -> Self {
        Self::with_settings(addr, &[]).await
    }

    /// Settings as pairs of identifier and value.
    pub(crate) async fn with_settings(addr: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self {
            io: TcpStream::connect(addr).await.unwrap(),
        };
        raw.io.set_nodelay(true).unwrap();
        // No table for answers' fields: so a test can read them.
        let mut payload = vec![0, 1, 0, 0, 0, 0];
        for (id, value) in settings {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.send(&frame(SETTINGS, 0, 0, &payload)).await;
        raw
    }

    /// Sends bytes; a gateway that has closed takes none.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = timeout(DEADLINE, self.io.write_all(bytes))
            .await
            .expect("the gateway reads");
    }

    pub(crate) async fn get(&mut self, stream: u32, host: &str, path: &str) {
        self.head(stream, END_STREAM, &head("GET", host, path, &[]))
            .await;
    }

    /// A head in as many frames as it needs.
    pub(crate) async fn head(&mut self, stream: u32, flags: u8, block: &[u8]) {
        let mut parts = block.chunks(16_000).enumerate().peekable();
        while let Some((number, part)) = parts.next() {
            let (kind, mut flags) = if number == 0 {
                (HEADERS, flags)
            } else {
                (CONTINUATION, 0)
            };
            if parts.peek().is_none() {
                flags |= END_HEADERS;
            }
            self.send(&frame(kind, flags, stream, part)).await;
        }
    }

    /// The next frame; none at the end.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let read = async {
            let mut head = [0; 9];
            self.io.read_exact(&mut head).await.ok()?;
            let [a, b, c, kind, flags, d, e, f, g] = head;
            let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap()];
            self.io.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([d, e, f, g]);
            Some(Frame {
                kind,
                flags,
                stream,
                payload,
            })
        };
        timeout(DEADLINE, read).await.expect("a frame in time")
    }

    /// The next frame of that kind on that stream; settings and pings are answered on the way.
    pub(crate) async fn until(&mut self, kind: u8, stream: u32) -> Frame {
        loop {
            let frame = self.next().await.expect("no end yet");
            if frame.kind == kind && frame.stream == stream {
                return frame;
            }
            self.answer(&frame).await;
        }
    }

    /// The code of the connection's end.
    pub(crate) async fn until_goaway(&mut self) -> u32 {
        loop {
            let frame = self.next().await.expect("no end before a GOAWAY");
            if frame.kind == GOAWAY && frame.code() != NO_ERROR {
                return frame.code();
            }
        }
    }

    pub(crate) async fn answer(&mut self, seen: &Frame) {
        if matches!(seen.kind, PING | SETTINGS) && seen.flags & 1 == 0 {
            let payload = if seen.kind == PING {
                &seen.payload[..]
            } else {
                &[]
            };
            self.send(&frame(seen.kind, 1, 0, payload)).await;
        }
    }

    /// Head and body of an answer, and the reset that came instead of its end.
    pub(crate) async fn whole(&mut self, stream: u32) -> (u16, Vec<u8>, Option<u32>) {
        let (mut status, mut body) = (0, Vec::new());
        loop {
            let frame = self.next().await.expect("no end yet");
            self.answer(&frame).await;
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                HEADERS if status < 200 => status = frame.status(),
                DATA => body.extend(&frame.payload),
                RST_STREAM => return (status, body, Some(frame.code())),
                _ => {}
            }
            if frame.ends() {
                return (status, body, None);
            }
        }
    }
}
