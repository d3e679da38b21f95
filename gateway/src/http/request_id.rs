//! Request ids: made here, or taken over from a trusted proxy.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::telemetry::Text;

/// Longest id that is taken over, in bytes.
const LEN_MAX: usize = 128;

/// A new id: UUIDv7, so that ids sort by time (RFC 9562, section 5.7).
///
/// The random part comes from the thread's generator, the time from `now`: no system call and no
/// look at a clock per request.
pub(crate) fn generate(now: Instant) -> Text<40> {
    let millis = u64::try_from(wall(now).as_millis()).unwrap_or(u64::MAX);
    let id = uuid::Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid();
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    Text::from(&*id.hyphenated().encode_lower(&mut text))
}

/// The wall clock's time at `now`, since the epoch; at most a second older than a change of the clock.
fn wall(now: Instant) -> Duration {
    let known = ANCHOR.get().and_then(|(at, wall)| {
        let since = now.checked_duration_since(at)?;
        (since < ANCHOR_MAX).then(|| wall + since)
    });
    known.unwrap_or_else(|| {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let wall = wall.unwrap_or_default();
        ANCHOR.set(Some((now, wall)));
        wall
    })
}

thread_local! {
    /// A moment on both clocks.
    static ANCHOR: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
}

/// The wall clock is looked at so often: it may be set.
const ANCHOR_MAX: Duration = Duration::from_secs(1);

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
        let now = Instant::now();
        let (a, b) = (generate(now), generate(now));
        assert!(is_valid(a.as_str().as_bytes()));
        assert_ne!(a, b);
        assert_eq!(a.as_str().as_bytes().get(14), Some(&b'7'));
    }

    #[test]
    fn ids_sort_by_time_and_follow_the_wall_clock() {
        let begun = Instant::now();
        let millis = |id: Text<40>| {
            let id: uuid::Uuid = id.as_str().parse().unwrap();
            let (secs, nanos) = id.get_timestamp().unwrap().to_unix();
            Duration::new(secs, nanos)
        };
        let wall = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let before = wall();
        let first = millis(generate(begun));
        assert!(first + Duration::from_millis(1) > before && first <= wall());
        let later = millis(generate(begun + Duration::from_millis(300)));
        assert_eq!(later - first, Duration::from_millis(300));
        // Looks anew, since the last look is too long ago, or in the future.
        for at in [begun + Duration::from_secs(5), begun] {
            let id = millis(generate(at));
            assert!(id + Duration::from_millis(1) > before && id <= wall());
        }
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
