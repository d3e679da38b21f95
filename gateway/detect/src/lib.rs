//! What a connection speaks, by its first bytes.
//!
//! Bytes in, [`Verdict`] out: no sockets, no clock, no state. The listener
//! calls [`detect`] on everything read so far, each time more arrives, and
//! replays those bytes to whoever takes the connection. A verdict that asks for
//! no more bytes never changes when more follow, so how a client cuts its
//! bytes into segments makes no difference.
//!
//! [`hello`] reads a TLS ClientHello (RFC 8446, section 4.1.2) far enough to
//! route by it; [`http`] knows a request line (RFC 9112, section 3) and the
//! HTTP/2 preface (RFC 9113, section 3.4). [`proxy`] reads what a load balancer
//! may have put before all of it; it is asked apart, since only some are believed.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod hello;
pub mod http;
pub mod proxy;

pub use hello::{ClientHello, HelloError};

/// Bytes, at most, that may be needed to tell any protocol but TLS.
pub const FIRST_BYTES_MAX: usize = 16 * 1024;

/// Bytes, at most, of a ClientHello with the records around it.
pub const HELLO_BYTES_MAX: usize = 64 * 1024;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It began as TLS, but is no ClientHello that anyone could answer.
    BadTls(HelloError),
    /// An HTTP/1 request line has begun: a method and the blank after it.
    Http1,
    /// The whole preface of an HTTP/2 connection with prior knowledge.
    Http2Preface,
    /// Nothing yet, or what could still become any of the others. A client
    /// that falls silent here means none of them.
    NeedMore,
    /// Certainly TLS; the ClientHello is not complete yet.
    PartialTls,
    /// An SSH client's identification has begun (RFC 4253, section 4.2).
    Ssh,
    /// A whole ClientHello.
    Tls(ClientHello),
    /// None of these, whatever follows.
    Unknown,
}

impl Verdict {
    /// Whether more bytes could change it.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::NeedMore | Self::PartialTls)
    }
}

/// Judges all bytes read so far.
///
/// Looks at [`FIRST_BYTES_MAX`] of them, of TLS at [`HELLO_BYTES_MAX`]; given as
/// many, the verdict is final.
pub fn detect(bytes: &[u8]) -> Verdict {
    match bytes {
        [] | [0x16] => Verdict::NeedMore,
        [0x16, 0x03, ..] => hello::detect(bytes),
        _ => {
            let seen = bytes.get(..FIRST_BYTES_MAX).unwrap_or(bytes);
            let verdict = detect_text(seen);
            if verdict.is_final() || seen.len() < FIRST_BYTES_MAX {
                verdict
            } else {
                Verdict::Unknown
            }
        }
    }
}

fn detect_text(bytes: &[u8]) -> Verdict {
    if bytes.starts_with(SSH) {
        return Verdict::Ssh;
    }
    // Until its dash, an SSH beginning is the beginning of a method too.
    http::detect(bytes)
}

const SSH: &[u8] = b"SSH-";

#[cfg(test)]
mod tests;
