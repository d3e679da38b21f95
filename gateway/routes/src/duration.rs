//! Durations of the file: the command line's grammar, `500ms|10s|5m|1h`.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum DurationError {
    /// No whole number followed by a known unit.
    #[error("{0:?} is not a duration such as 500ms, 10s, 5m or 1h")]
    Syntax(String),
    /// Longer than any wait can be.
    #[error("{0:?} is too long")]
    TooLong(String),
}

/// Ten years: far beyond any use, and safe to add to a clock.
const LONGEST_MILLIS: u64 = 10 * 366 * 24 * 3_600_000;

/// Reads a whole number and one of the units `ms`, `s`, `m`, `h`.
pub(crate) fn parse(text: &str) -> Result<Duration, DurationError> {
    let syntax = || DurationError::Syntax(text.to_owned());
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit())
        .filter(|at| *at > 0)
        .ok_or_else(syntax)?;
    let (number, unit) = text.split_at_checked(unit_at).ok_or_else(syntax)?;
    let unit_millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(syntax()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit_millis))
        .filter(|millis| *millis <= LONGEST_MILLIS)
        .map(Duration::from_millis)
        .ok_or_else(|| DurationError::TooLong(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_anything_else_is_refused() {
        for (text, millis) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "1.5s", "-1s", "1 s", "1d", "é", "٣s"] {
            assert!(
                matches!(parse(text), Err(DurationError::Syntax(_))),
                "{text}"
            );
        }
        for text in ["99999999h", "99999999999999999999999s"] {
            assert!(
                matches!(parse(text), Err(DurationError::TooLong(_))),
                "{text}"
            );
        }
    }
}
