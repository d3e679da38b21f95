//! Which bytes may stand where.

use memchr::memchr3;

const TOKEN: u8 = 1;
const TARGET: u8 = 2;
const TEXT: u8 = 4;
const HOST: u8 = 8;

static CLASS: [u8; 256] = table();

const fn table() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        let mut class = 0;
        if b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            )
        {
            class |= TOKEN;
        }
        // A fragment never travels (RFC 9112, section 3.2).
        if b > b' ' && b != 0x7f && b != b'#' {
            class |= TARGET;
        }
        if b == b'\t' || (b >= b' ' && b != 0x7f) {
            class |= TEXT;
        }
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'[' | b']') {
            class |= HOST;
        }
        #[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        {
            table[byte] = class;
        }
        byte += 1;
    }
    table
}

#[inline]
fn is(byte: u8, class: u8) -> bool {
    // A `u8` cannot miss a table of 256; the compiler drops the check.
    CLASS.get(usize::from(byte)).is_some_and(|c| c & class != 0)
}

/// `tchar` (RFC 9110, section 5.6.2).
#[inline]
pub(crate) fn is_token_byte(byte: u8) -> bool {
    is(byte, TOKEN)
}

/// A token: at least one `tchar` and nothing else.
#[inline]
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    // Names are short and hardly ever bad: looking at all of them is cheaper than stopping early.
    let class = |b: &u8| CLASS.get(usize::from(*b)).copied().unwrap_or_default();
    !bytes.is_empty() && bytes.iter().fold(TOKEN, |all, b| all & class(b)) != 0
}

/// Whether there is a CR, an LF or a NUL: what would end a value, or make a second line of it.
#[inline]
pub(crate) fn has_line_end(bytes: &[u8]) -> bool {
    // Eight bytes at a time, the last ones twice. Few values have a control byte at all.
    let (words, rest) = bytes.as_chunks::<8>();
    let controls = words.iter().fold(0, |any, word| any | controls_in(*word));
    let rest_controls = match bytes.last_chunk::<8>() {
        Some(last) => controls_in(*last),
        None => u64::from(rest.iter().any(|b| *b < b' ')),
    };
    controls | rest_controls != 0 && memchr3(b'\r', b'\n', 0, bytes).is_some()
}

/// Not zero if one of the bytes is below a blank.
#[inline]
fn controls_in(word: [u8; 8]) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let word = u64::from_le_bytes(word);
    word.wrapping_sub(ONES * 0x20) & !word & (ONES * 0x80)
}

/// What a request target may hold: no blank, no control byte, no `#`. Bytes beyond ASCII pass as they are.
#[inline]
pub(crate) fn is_target_byte(byte: u8) -> bool {
    is(byte, TARGET)
}

/// What a field value or a reason may hold: no control byte but the tab.
#[inline]
pub(crate) fn is_text_byte(byte: u8) -> bool {
    is(byte, TEXT)
}

/// Whether the bytes may name a host and a port: only what names, addresses and ports are made of, hence no
/// userinfo, path, list or blank. Whether it is a host, the router decides.
#[inline]
pub(crate) fn is_authority(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| is(*b, HOST))
}

/// Without the blanks and tabs around.
pub(crate) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_the_grammar() {
        for b in 0..=u8::MAX {
            let separator = b"()<>@,;:\\\"/[]?={} \t".contains(&b);
            let visible = (0x21..0x7f).contains(&b);
            assert_eq!(is_token_byte(b), visible && !separator, "{b:#x}");
            assert_eq!(
                is_target_byte(b),
                (visible && b != b'#') || b > 0x7f,
                "{b:#x}"
            );
            assert_eq!(
                is_text_byte(b),
                visible || b > 0x7f || b == b' ' || b == b'\t',
                "{b:#x}"
            );
        }
        assert!(is_authority(b"[2001:db8::1]:443"));
        for bad in ["", "a b", "u@a", "a/b", "a,b", "a?b", "a#b", "a\\b", "%61"] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_line_end_is_seen_wherever_it_is() {
        for len in 0..40 {
            for fill in [b'a', b'\t', b' ', 0x1f, 0x7f, 0x80, 0xff] {
                let mut bytes = vec![fill; len];
                assert!(!has_line_end(&bytes), "{fill:#x} x {len}");
                for at in 0..len {
                    for end in [b'\r', b'\n', 0] {
                        bytes[at] = end;
                        assert!(has_line_end(&bytes), "{end:#x} at {at} of {len}");
                    }
                    bytes[at] = fill;
                }
            }
        }
    }

    #[test]
    fn blanks_around_go() {
        assert_eq!(trim(b" \t a b \t"), b"a b");
        assert_eq!(trim(b" \t"), b"");
    }
}
