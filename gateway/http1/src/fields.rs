//! The fields of a head: room for them, and how they are walked.

use std::mem::MaybeUninit;

use httparse::Header;

use crate::class::{is_token, trim};

/// How many fields a head may ever have.
pub const FIELDS_MAX: usize = 128;

/// Room for the fields of one head, on the caller's stack (4 KiB, not initialised).
#[derive(Debug)]
pub struct Slots<'b>(pub(crate) [MaybeUninit<Header<'b>>; FIELDS_MAX]);

impl Slots<'_> {
    /// Empty room; costs nothing.
    #[inline]
    pub const fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; FIELDS_MAX])
    }
}

impl Default for Slots<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// The fields of a head in the order and the case of the wire. Values come without the blanks around them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Fields<'h, 'b>(pub(crate) &'h [Header<'b>]);

impl<'h, 'b> Fields<'h, 'b> {
    /// Name and value of each.
    #[inline]
    pub fn iter(
        &self,
    ) -> impl ExactSizeIterator<Item = (&'b [u8], &'b [u8])> + Clone + use<'h, 'b> {
        self.0.iter().map(|h| (h.name.as_bytes(), h.value))
    }

    /// How many.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The members of a comma-separated value, without blanks around and without empty ones (RFC 9110, section 5.6.1).
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    value
        .split(|b| *b == b',')
        .map(trim)
        .filter(|t| !t.is_empty())
}

/// What the fields say about the connection itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ConnectionOptions {
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
    count: usize,
}

/// Options of all `Connection` fields together: each is looked for among all fields.
const OPTIONS_MAX: usize = 32;

impl ConnectionOptions {
    /// Adds one `Connection` field; false if a member is no token, or there are too many.
    pub(crate) fn add(&mut self, value: &[u8]) -> bool {
        for option in tokens(value) {
            self.count += 1;
            if !is_token(option) || self.count > OPTIONS_MAX {
                return false;
            }
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_tokens_and_bounded_over_all_fields() {
        let mut options = ConnectionOptions::default();
        assert!(options.add(b"Close, , upgrade"));
        assert!(options.add(b"keep-alive"));
        assert!(options.close && options.upgrade && options.keep_alive);
        assert!(!options.add(b"a b"));
        let mut many = ConnectionOptions::default();
        for _ in 0..OPTIONS_MAX {
            assert!(many.add(b"x-hop,"));
        }
        assert!(!many.add(b"x-hop"), "one more");
    }
}
