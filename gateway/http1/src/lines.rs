//! Where a head ends: line ends checked one by one, so that no parser beneath is asked about half a head.

use memchr::memchr_iter;

/// The lines of a head after its start line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Section {
    /// The blank line has not come yet.
    Partial,
    /// Whole.
    Complete {
        /// Index behind the blank line.
        end: usize,
        /// Lines before the blank one.
        fields: usize,
    },
}

/// Why the lines are no head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LineError {
    /// A line feed without its carriage return (RFC 9112, section 2.2).
    BareLf,
    /// No end within the limit.
    TooLong,
    /// More lines than fields are allowed.
    TooMany,
}

/// Finds the blank line. `from` is the index behind the start line; errors are told as soon as the bytes show them,
/// whatever comes later.
///
/// Looks at every line feed again when called with more bytes: at most `head_max` bytes at memory speed.
pub(crate) fn section(
    bytes: &[u8],
    from: usize,
    head_max: usize,
    fields_max: usize,
) -> Result<Section, LineError> {
    let window = bytes.get(..bytes.len().min(head_max)).unwrap_or_default();
    let rest = window.get(from..).unwrap_or_default();
    let mut fields = 0;
    let mut line = 0;
    for feed in memchr_iter(b'\n', rest) {
        if feed == line || rest.get(feed - 1) != Some(&b'\r') {
            return Err(LineError::BareLf);
        }
        if feed - line == 1 {
            return Ok(Section::Complete {
                end: from + feed + 1,
                fields,
            });
        }
        fields += 1;
        if fields > fields_max {
            return Err(LineError::TooMany);
        }
        line = feed + 1;
    }
    if bytes.len() >= head_max {
        return Err(LineError::TooLong);
    }
    Ok(Section::Partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blank_line_ends_the_section_and_nothing_behind_it_counts() {
        let complete = |end, fields| Ok(Section::Complete { end, fields });
        for (bytes, expected) in [
            (&b"\r\n"[..], complete(2, 0)),
            (b"a: b\r\n\r\n", complete(8, 1)),
            (b"a: b\r\n\r\n\n\n", complete(8, 1)),
            (b"a: b\r\n\r", Ok(Section::Partial)),
            (b"", Ok(Section::Partial)),
            (b"\n", Err(LineError::BareLf)),
            (b"a: b\n", Err(LineError::BareLf)),
            (b"a: b\r\n\n", Err(LineError::BareLf)),
            (b"a\r\nb\r\nc\r\n", Err(LineError::TooMany)),
            (b"aaaaaaaaaaaaaaaaaaaa", Err(LineError::TooLong)),
            (b"aaaaaaaaaaaaaaaaa\r\n\r\n", Err(LineError::TooLong)),
            (b"aaaaaaaaaaaaaaaa\r\n\r\n", complete(20, 1)),
        ] {
            assert_eq!(section(bytes, 0, 20, 2), expected, "{bytes:?}");
        }
    }
}
