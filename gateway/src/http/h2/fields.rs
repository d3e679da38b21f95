//! Fields as slices, and as the h2 crate wants them.

use bytes::BytesMut;
use edd_http1::{Trailers, translate};
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::http::side::Field;

/// Room for the fields of a usual head on the stack.
pub(crate) type Fields<'m> = SmallVec<[Field<'m>; 24]>;

/// The fields of `map`.
pub(crate) fn of(map: &HeaderMap) -> Fields<'_> {
    map.iter()
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
        .collect()
}

/// The fields of `map` that may be trailers.
pub(crate) fn trailers(map: &HeaderMap) -> Trailers {
    let mut trailers = Trailers::new();
    for (name, value) in map {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        if translate::trailer_passes(name, value) {
            // It has just been checked.
            let _ = trailers.push(name, value);
        }
    }
    trailers
}

/// A map of `fields`, and of `own`, which replace them. All values share one buffer.
///
/// What is no field at all is left out: whoever parsed them has checked them.
pub(crate) fn map(fields: &[Field<'_>], own: &[(HeaderName, &[u8])]) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len() + own.len());
    let len = |value: &[u8]| value.len();
    let total = fields.iter().map(|(_, value)| len(value)).sum::<usize>();
    let mut values =
        BytesMut::with_capacity(total + own.iter().map(|(_, value)| len(value)).sum::<usize>());
    let mut value = |bytes: &[u8]| {
        values.extend_from_slice(bytes);
        HeaderValue::from_maybe_shared(values.split().freeze())
    };
    for (name, bytes) in fields {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value(bytes)) {
            map.append(name, value);
        }
    }
    for (name, bytes) in own {
        if let Ok(value) = value(bytes) {
            map.insert(name.clone(), value);
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_survive_the_way_there_and_back_and_bad_ones_do_not() {
        let fields: [Field<'_>; 5] = [
            (b"Set-Cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"x-latin", b"caf\xe9"),
            (b"bad name", b"1"),
            (b"bad", b"1\r\n2"),
        ];
        let map = map(&fields, &[]);
        let mut seen = of(&map);
        seen.sort_unstable();
        let expected: [Field<'_>; 3] = [
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"x-latin", b"caf\xe9"),
        ];
        assert_eq!(*seen, expected);
    }
}
