//! Request ids: made here, or taken over from a trusted proxy.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::telemetry::Text;

/// Longest id that is taken over, in bytes.
const LEN_MAX: usize = 128;

/// A new id: UUIDv7, so that ids sort by time (RFC 9562, section 5.7).
///
/// The random part comes from the thread's generator: no system call per request.
pub(crate) fn generate() -> Text<40> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = now.map_or(0, |since| since.as_millis());
    let millis = u64::try_from(millis).unwrap_or(u64::MAX);
    let id = uuid::Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid();
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    Text::from(&*id.hyphenated().encode_lower(&mut text))
}

/// Whether `id` may be taken over: `[A-Za-z0-9._-]{1,128}`.
pub(crate) fn is_valid(id: &[u8]) -> bool {
    let known = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=LEN_MAX).contains(&id.len()) && id.iter().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_are_valid_and_differ() {
        let (a, b) = (generate(), generate());
        assert!(is_valid(a.as_str().as_bytes()));
        assert_ne!(a, b);
        assert_eq!(a.as_str().as_bytes().get(14), Some(&b'7'));
    }

    #[test]
    fn ids_that_could_break_a_log_are_refused() {
        assert!(is_valid(b"a.B_9-"));
        for bad in [
            &b""[..],
            b"a b",
            b"a\n",
            b"a\"",
            "ä".as_bytes(),
            &[b'a'; 129],
        ] {
            assert!(!is_valid(bad), "{bad:?}");
        }
    }
}
