//! W3C trace context: a client's trace goes on, what is none ends here.
//!
//! The gateway makes no spans of its own, so a valid `traceparent` passes as it
//! is. Upstreams differ in what they make of a bad one, some log it as it came:
//! it is replaced by a new one, so that the upstream's logs still hang together.

/// What becomes of a request's `traceparent` and `tracestate`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Trace {
    /// There is no trace; `tracestate` alone means nothing and is dropped.
    None,
    /// The trace goes on. True: its `tracestate` too.
    Continued(bool),
    /// Both are dropped, and this is the `traceparent`.
    New(String),
}

/// Judges all values of the two fields.
pub(crate) fn judge<'h>(
    mut parents: impl Iterator<Item = &'h [u8]>,
    states: impl Iterator<Item = &'h [u8]>,
) -> Trace {
    match (parents.next(), parents.next()) {
        (None, _) => Trace::None,
        (Some(parent), None) if is_traceparent(parent) => Trace::Continued(is_tracestate(states)),
        // Several are as bad as a malformed one (section 3.2).
        (Some(_), _) => Trace::New(generate()),
    }
}

/// Whether `value` is a `traceparent` that can be continued (Trace Context, section 3.2.2).
///
/// Of later versions, only what version 00 has in common with them.
fn is_traceparent(value: &[u8]) -> bool {
    let Some((head, rest)) = value.split_first_chunk::<V00_BYTES>() else {
        return false;
    };
    let mut parts = head.split(|&byte| byte == b'-');
    let mut part = |length: usize| {
        let part = parts.next().unwrap_or_default();
        (part.len() == length && part.iter().all(|&b| is_hex(b))).then_some(part)
    };
    let (Some(version), Some(trace), Some(parent), Some(_flags)) =
        (part(2), part(32), part(16), part(2))
    else {
        return false;
    };
    let follows = match version {
        b"00" => rest.is_empty(),
        b"ff" => false,
        _ => matches!(rest, [] | [b'-', ..]),
    };
    follows && trace.iter().any(|&b| b != b'0') && parent.iter().any(|&b| b != b'0')
}

/// Whether the members of all `tracestate` fields are well-formed (section 3.3.1).
fn is_tracestate<'h>(states: impl Iterator<Item = &'h [u8]>) -> bool {
    let mut members = 0;
    let mut bytes = 0;
    for state in states {
        bytes += state.len();
        for member in state.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
            if member.is_empty() {
                continue;
            }
            members += 1;
            let equals = member.iter().position(|&b| b == b'=');
            let well_formed = equals.is_some_and(|at| {
                let (key, value) = member.split_at(at);
                is_key(key) && is_value(value.get(1..).unwrap_or_default())
            });
            if !well_formed {
                return false;
            }
        }
    }
    members <= MEMBERS_MAX && bytes <= STATE_BYTES_MAX
}

fn is_key(key: &[u8]) -> bool {
    let known = |&b: &u8| {
        b.is_ascii_lowercase()
            || b.is_ascii_digit()
            || matches!(b, b'_' | b'-' | b'*' | b'/' | b'@')
    };
    let begins = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    key.len() <= 256 && key.first().is_some_and(begins) && key.iter().all(known)
}

fn is_value(value: &[u8]) -> bool {
    let known = |&b: &u8| matches!(b, b' '..=b'~') && !matches!(b, b',' | b'=');
    (1..=256).contains(&value.len()) && value.iter().all(known)
}

/// Lower case only.
fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// A trace of its own, not sampled: who samples is the upstream's business.
fn generate() -> String {
    // Zero is the one number that neither may be.
    let trace = rand::random::<u128>().max(1);
    let parent = rand::random::<u64>().max(1);
    format!("00-{trace:032x}-{parent:016x}-00")
}

const V00_BYTES: usize = 55;

/// Section 3.3.1.1.
const MEMBERS_MAX: usize = 32;

/// Far above the 512 bytes that everyone should pass on.
const STATE_BYTES_MAX: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn judged(parents: &[&str], states: &[&str]) -> Trace {
        judge(
            parents.iter().map(|value| value.as_bytes()),
            states.iter().map(|value| value.as_bytes()),
        )
    }

    #[test]
    fn valid_traces_go_on() {
        let later = GOOD.replacen("00", "01", 1);
        for parent in [
            GOOD,
            "00-00000000000000000000000000000001-0000000000000001-00",
            &later,
            &format!("{later}-what-a-later-version-adds"),
        ] {
            assert_eq!(judged(&[parent], &[]), Trace::Continued(true), "{parent}");
        }
        assert_eq!(judged(&[], &["a=1"]), Trace::None);
    }

    #[test]
    fn anything_else_is_replaced_by_a_valid_one() {
        let bad = [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
        ];
        for parents in bad
            .map(|parent| vec![parent])
            .into_iter()
            .chain([vec![GOOD; 2]])
        {
            let Trace::New(made) = judged(&parents, &["a=1"]) else {
                panic!("{parents:?}")
            };
            assert_eq!(judged(&[&made], &[]), Trace::Continued(true), "{made}");
            assert!(!parents.contains(&made.as_str()));
        }
    }

    #[test]
    fn a_bad_state_is_dropped_and_the_trace_goes_on() {
        let long = "a".repeat(300);
        let many = vec!["k=v"; 33].join(",");
        for (states, kept) in [
            (&["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"][..], true),
            (&["t-1_2*3/4@v=x y", " , a=1 ,"], true),
            (&[""], true),
            (&["a"], false),
            (&["=v"], false),
            (&["a="], false),
            (&["A=1"], false),
            (&["a=1=2"], false),
            (&["a=\u{e9}"], false),
            (&[&format!("{long}=1")], false),
            (&[&many], false),
        ] {
            assert_eq!(
                judged(&[GOOD], states),
                Trace::Continued(kept),
                "{states:?}"
            );
        }
    }
}
