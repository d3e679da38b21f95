//! Strict HTTP/1.1 framing (RFC 9112) without I/O: bytes in, verdicts out, heads appended to a `Vec<u8>`.
//!
//! What this crate owns: where a head ends, what its start line and fields say
//! about framing, how a body is delimited, and how both are written again. What
//! it does not own: sockets, timers, routing, which fields pass.
//!
//! The rule behind every check: a message that two implementations could read
//! in two ways is refused before anybody else sees a byte of it. What is let
//! through is never copied as it came; the caller writes framing anew from
//! [`RequestBody`] and [`ResponseBody`]. `docs/http.md` lists what is refused.
//!
//! Reading: [`parse_request`], [`parse_response`] on a buffer that grows until
//! the head is whole, then [`BodyReader`] on what follows. The same bytes give
//! the same outcome however they are split. Writing: [`mod@write`]. From HTTP/2:
//! [`translate`].
//!
//! ```
//! use edd_http1::{BodyReader, Limits, Progress, Slots, What, parse_request};
//!
//! let bytes = b"POST /a?b HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhiGET ";
//! let mut slots = Slots::new();
//! let Progress::Complete(head, end) = parse_request(bytes, &mut slots, &Limits::default())? else {
//!     unreachable!("the head is whole");
//! };
//! assert_eq!((head.method, head.path, head.query), ("POST", "/a", Some("b")));
//! let step = BodyReader::from(head.body).read(&bytes[end..]).unwrap();
//! assert_eq!(step.what, What::Data(b"hi"));
//! # Ok::<(), edd_http1::RequestError>(())
//! ```

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod body;
mod chunked;
mod class;
mod fields;
mod framing;
mod lines;
mod request;
mod response;
mod target;
mod trailers;
pub mod translate;
pub mod write;

pub use body::{BodyError, BodyReader, Step, What};
pub use fields::{FIELDS_MAX, Fields, Slots, tokens};
pub use request::{RequestBody, RequestError, RequestHead, parse_request};
pub use response::{Question, ResponseBody, ResponseError, ResponseHead, parse_response};
pub use trailers::{Trailers, is_forbidden_trailer};

/// What a head may cost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Bytes of a request target.
    pub target_max: usize,
    /// Bytes of a head, start line and final blank line included.
    pub head_max: usize,
    /// Fields of a head; more than [`FIELDS_MAX`] are never read.
    pub fields_max: usize,
}

impl Default for Limits {
    /// 16 KiB, 64 KiB, 128.
    fn default() -> Self {
        Self {
            target_max: 16 * 1024,
            head_max: 64 * 1024,
            fields_max: FIELDS_MAX,
        }
    }
}

/// Whether a head is all there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress<T> {
    /// More bytes are needed; what came so far may still become a head.
    Partial,
    /// The head, and how many bytes it took. What follows them belongs to the body, or to the next message.
    Complete(T, usize),
}

/// Version of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// HTTP/1.0.
    H10,
    /// HTTP/1.1.
    H11,
}
