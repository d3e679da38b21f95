//! Request paths: what is refused, and how a prefix matches.
//!
//! Matching is on the raw path, and the same bytes go to the upstream, so that
//! gateway and upstream cannot understand two different paths.

/// Why a path is answered with 400.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PathError {
    /// `\` or `%5c`: some upstreams take it for `/`.
    #[error("backslash in the path")]
    Backslash,
    /// `.` or `..` as a segment, also with `%2e`.
    #[error("dot segment in the path")]
    DotSegment,
    /// `%00` or a NUL byte.
    #[error("NUL in the path")]
    Nul,
    /// Not starting with `/`.
    #[error("path does not start with a slash")]
    Relative,
}

/// Refuses paths that an upstream may understand differently.
///
/// `path` is the raw path without the query.
pub fn check(path: &str) -> Result<(), PathError> {
    if !path.starts_with('/') {
        return Err(PathError::Relative);
    }
    // Most paths have none of these bytes.
    if !path.bytes().any(|b| matches!(b, b'.' | b'%' | b'\\' | 0)) {
        return Ok(());
    }
    for segment in path.split('/') {
        if is_dots(segment.as_bytes()) {
            return Err(PathError::DotSegment);
        }
    }
    let mut rest = path.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        match (*first, tail) {
            (b'\\', _) | (b'%', [b'5', b'c' | b'C', ..]) => return Err(PathError::Backslash),
            (0, _) | (b'%', [b'0', b'0', ..]) => return Err(PathError::Nul),
            _ => rest = tail,
        }
    }
    Ok(())
}

/// `.` or `..`, each dot perhaps written `%2e`.
fn is_dots(mut segment: &[u8]) -> bool {
    let mut dots = 0;
    while !segment.is_empty() {
        segment = match segment {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return false,
        };
        dots += 1;
    }
    dots == 1 || dots == 2
}

/// A route's path as it is compared: without its trailing slashes, `/` being empty.
pub fn prefix_key(path: &str) -> &str {
    path.trim_end_matches('/')
}

/// All prefixes of `path` on segment borders, the longest first, ending with the empty one.
///
/// At most `depth_max` segments deep, so that a path of thousands of slashes
/// costs no more than the deepest route.
pub fn prefixes(path: &str, depth_max: usize) -> impl Iterator<Item = &str> {
    let mut end = Some(border(path, depth_max));
    std::iter::from_fn(move || {
        let current = path.get(..end?)?;
        end = if current.is_empty() {
            None
        } else {
            Some(current.rfind('/').unwrap_or(0))
        };
        Some(current)
    })
}

/// Where the first `depth` segments of `path` end.
fn border(path: &str, depth: usize) -> usize {
    path.match_indices('/')
        .nth(depth)
        .map_or(path.len(), |(at, _)| at)
}

/// The path towards the upstream when `prefix` (a [`prefix_key`]) is stripped; nothing left is `/`.
pub fn strip<'p>(path: &'p str, prefix: &str) -> &'p str {
    match path.strip_prefix(prefix) {
        Some("") => "/",
        Some(rest) => rest,
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_paths_are_refused() {
        for (path, error) in [
            ("/a/../b", PathError::DotSegment),
            ("/a/./b", PathError::DotSegment),
            ("/..", PathError::DotSegment),
            ("/%2e%2E/b", PathError::DotSegment),
            ("/.%2e", PathError::DotSegment),
            ("/a\\b", PathError::Backslash),
            ("/a%5Cb", PathError::Backslash),
            ("/a%00", PathError::Nul),
            ("a", PathError::Relative),
            ("", PathError::Relative),
        ] {
            assert_eq!(check(path), Err(error), "{path}");
        }
        for path in [
            "/",
            "/a%2Fb",
            "/a.b",
            "/...",
            "/a..b",
            "/.hidden",
            "//a",
            "/%2e%2e%2e",
            "/%",
        ] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
    }

    #[test]
    fn prefixes_end_on_segment_borders() {
        let of = |p, d| prefixes(p, d).collect::<Vec<_>>();
        assert_eq!(of("/a/b", 9), ["/a/b", "/a", ""]);
        assert_eq!(of("/a/b/", 9), ["/a/b/", "/a/b", "/a", ""]);
        assert_eq!(of("/", 9), ["/", ""]);
        assert_eq!(of("/a/b/c/d", 2), ["/a/b", "/a", ""]);
        assert_eq!(of("/a/b", 0), [""]);
    }

    #[test]
    fn stripping_leaves_a_path() {
        assert_eq!(strip("/compute/x", "/compute"), "/x");
        assert_eq!(strip("/compute", "/compute"), "/");
        assert_eq!(strip("/compute/", "/compute"), "/");
        assert_eq!(strip("/x", ""), "/x");
    }
}
