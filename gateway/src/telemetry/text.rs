//! Short texts of a record: kept in place, so that a record moves without an allocation.

use std::fmt;

use smallvec::SmallVec;

/// A text; up to `N` bytes of it need no memory of their own.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Text<const N: usize>(SmallVec<[u8; N]>);

impl<const N: usize> Text<N> {
    /// It, as a string.
    pub fn as_str(&self) -> &str {
        // Made from strings only.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<const N: usize> From<&str> for Text<N> {
    fn from(text: &str) -> Self {
        Self(SmallVec::from_slice(text.as_bytes()))
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn short_and_long_texts_are_what_was_put_in() {
        for text in ["", "ä", "sixteen bytes...", "more than sixteen bytes"] {
            let mut kept = Text::<16>::from(text);
            assert_eq!(kept.as_str(), text);
            write!(kept, ":{}", 80).unwrap();
            assert_eq!(kept.to_string(), format!("{text}:80"));
        }
        assert!(Text::<16>::default().is_empty());
    }
}
