//! Dead letters: events that nobody can use, kept where people find them.
//!
//! The payload goes unchanged to `{service}.{entity}.{action}.dlq`, inside the
//! same stream, with the original's own headers, headers that say what happened,
//! and a message id of its own (the original's would be dropped as a duplicate).
//! `write` makes them, [`Letters`] lists, replays and removes them.

mod letters;
mod write;

use std::time::SystemTime;

use async_nats::{HeaderMap, HeaderValue};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

pub(crate) use letters::DLQ_SUBJECTS;
pub use letters::{Filter, Letter, LetterError, LetterRef, Letters, PAGE_MAX, Page};
pub(crate) use write::{DeadLetter, WriteError};

/// Header: the subject of the original.
pub const DLQ_SUBJECT: &str = "Edd-Dlq-Subject";
/// Header: why, one line.
pub const DLQ_REASON: &str = "Edd-Dlq-Reason";
/// Header: the durable consumer that gave up.
pub const DLQ_CONSUMER: &str = "Edd-Dlq-Consumer";
/// Header: how often it was delivered.
pub const DLQ_DELIVERIES: &str = "Edd-Dlq-Deliveries";
/// Header: the original's sequence in the stream.
pub const DLQ_STREAM_SEQ: &str = "Edd-Dlq-Stream-Seq";
/// Header: the original's message id, if it had one.
pub const DLQ_MSG_ID: &str = "Edd-Dlq-Msg-Id";
/// Header: when the stream took the original, RFC 3339.
pub const DLQ_PUBLISHED: &str = "Edd-Dlq-Published";
/// Header: when the consumer gave up, RFC 3339.
pub const DLQ_TIME: &str = "Edd-Dlq-Time";
/// Header, present only if the payload and these headers together exceed what
/// the server takes: the payload was left out and is found by its sequence.
pub const DLQ_PAYLOAD_OMITTED: &str = "Edd-Dlq-Payload-Omitted";
/// Header of an event that was a dead letter: the original, `STREAM:SEQUENCE`.
pub const REPLAY_OF: &str = "Edd-Replay-Of";

/// What begins the names of all headers above but the last.
const DLQ_PREFIX: &str = "edd-dlq-";
/// What begins the names of headers that the server acts upon: an original's
/// message id, expectations or roll-up must not act on its letter.
const NATS_PREFIX: &str = "nats-";

/// Copies the headers that belong to the event itself: its cause, its signature,
/// whatever its publisher added. Not those of the server and of the dead letter.
fn copy_own(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, values) in from.iter() {
        let lower = name.to_string().to_ascii_lowercase();
        if lower.starts_with(DLQ_PREFIX) || lower.starts_with(NATS_PREFIX) {
            continue;
        }
        for value in values {
            to.append(name.clone(), value.clone());
        }
    }
}

/// Sets a header, unless no header can hold the value.
fn insert(headers: &mut HeaderMap, name: &str, value: &str) {
    if let Ok(value) = value.parse::<HeaderValue>() {
        headers.insert(name, value);
    }
}

fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_event_survive_and_those_of_the_server_do_not() {
        let mut original = HeaderMap::new();
        for (name, value) in [
            ("traceparent", "00-1"),
            ("Edd-Signature", "ed25519:abc"),
            ("X-Two", "a"),
            ("Nats-Msg-Id", "1"),
            ("nats-expected-last-sequence", "7"),
            ("Nats-Rollup", "all"),
            ("Edd-Dlq-Reason", "forged"),
        ] {
            original.insert(name, value);
        }
        original.append("X-Two", "b");
        let mut copy = HeaderMap::new();
        copy_own(&original, &mut copy);
        let mut names: Vec<_> = copy.iter().map(|(name, _)| name.to_string()).collect();
        names.sort();
        assert_eq!(names, ["Edd-Signature", "X-Two", "traceparent"]);
        assert_eq!(copy.get_all("X-Two").count(), 2);
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00Z");
    }
}
