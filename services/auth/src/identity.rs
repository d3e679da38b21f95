//! Names as the service accepts them: checked once, then carried as types.

use std::fmt;

/// Longest display name, in characters.
const DISPLAY_NAME_CHARS_MAX: usize = 64;

/// A user name: `[a-z0-9][a-z0-9_-]{1,31}`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Username(String);

/// What a user is called: 1 to 64 characters, no control characters, no blanks
/// at the ends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DisplayName(String);

/// A name that is not accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    /// Not a display name.
    #[error("a display name has 1 to 64 characters and no control characters")]
    DisplayName,
    /// Not a user name.
    #[error(
        "a user name has 2 to 32 characters of a-z, 0-9, _ and -, and starts with a letter or digit"
    )]
    Username,
}

impl Username {
    /// Checks a user name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let valid = (2..=32).contains(&text.len())
            && text.bytes().next().is_some_and(plain)
            && text
                .bytes()
                .all(|byte| plain(byte) || matches!(byte, b'_' | b'-'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Username)
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl DisplayName {
    /// Checks a display name; blanks at the ends are dropped.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.trim();
        let valid = (1..=DISPLAY_NAME_CHARS_MAX).contains(&text.chars().count())
            && !text.chars().any(is_disruptive);
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::DisplayName)
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Control characters, and those that turn the text around them.
fn is_disruptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl From<Username> for DisplayName {
    fn from(name: Username) -> Self {
        Self(name.0)
    }
}

impl fmt::Display for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_are_short_lower_case_words() {
        for good in ["ab", "0x", "alice", "a-b_c", &"a".repeat(32)] {
            assert!(Username::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(33);
        for bad in [
            "", "a", "Alice", "_a", "-a", "a b", "a.b", "é1", "a\0", "аlice", &long,
        ] {
            assert!(Username::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn display_names_are_one_readable_line() {
        for good in ["A", "Zoë van der Berg", " padded ", "名前", &"é".repeat(64)] {
            assert!(DisplayName::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(65);
        for bad in ["", "  ", "a\nb", "a\0b", "a\u{202e}b", &long] {
            assert!(DisplayName::parse(bad).is_err(), "{bad}");
        }
    }
}
