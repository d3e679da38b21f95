//! The chunked decoder against a reference: every byte string up to a small length over a small alphabet.

use edd_http1::{BodyReader, What};

/// What a string of bytes means, read with all of it in hand.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Meaning {
    /// No continuation is a chunked body.
    Broken,
    /// Whole: the data, the trailers, and how many bytes it took.
    Whole(Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>, usize),
    /// May become one.
    Open(Vec<u8>),
}

/// The grammar of RFC 9112, section 7.1, without blanks, read by recursive descent.
fn reference(bytes: &[u8]) -> Meaning {
    let mut at = 0;
    let mut data = Vec::new();
    loop {
        let size_len = bytes[at..]
            .iter()
            .take_while(|b| b.is_ascii_hexdigit())
            .count();
        if size_len == 0 {
            return open_or_broken(&bytes[at..], data);
        }
        let digits = std::str::from_utf8(&bytes[at..at + size_len]).unwrap();
        let size = usize::from_str_radix(digits, 16).unwrap();
        at += size_len;
        at = match extensions(bytes, at) {
            Line::Broken => return Meaning::Broken,
            Line::Open => return Meaning::Open(data),
            Line::Ends(end) => end,
        };
        if size == 0 {
            return match trailers(bytes, at) {
                Ok(Some((fields, end))) => Meaning::Whole(data, fields, end),
                Ok(None) => Meaning::Open(data),
                Err(()) => Meaning::Broken,
            };
        }
        let there = size.min(bytes.len() - at);
        data.extend_from_slice(&bytes[at..at + there]);
        at += there;
        if there < size {
            return Meaning::Open(data);
        }
        match &bytes[at..] {
            [] | [b'\r'] => return Meaning::Open(data),
            [b'\r', b'\n', ..] => at += 2,
            _ => return Meaning::Broken,
        }
    }
}

fn open_or_broken(rest: &[u8], data: Vec<u8>) -> Meaning {
    if rest.is_empty() {
        Meaning::Open(data)
    } else {
        Meaning::Broken
    }
}

enum Line {
    Broken,
    Open,
    Ends(usize),
}

/// `*( ";" token [ "=" ( token / quoted-string ) ] ) CRLF`
fn extensions(bytes: &[u8], mut at: usize) -> Line {
    let is_token = |b: &u8| b.is_ascii_alphanumeric();
    let token = |at: usize| bytes[at..].iter().take_while(|b| is_token(b)).count();
    loop {
        match &bytes[at..] {
            [] | [b'\r'] => return Line::Open,
            [b'\r', b'\n', ..] => return Line::Ends(at + 2),
            [b';', ..] => at += 1,
            _ => return Line::Broken,
        }
        let name = token(at);
        at += name;
        if name == 0 {
            return if at == bytes.len() {
                Line::Open
            } else {
                Line::Broken
            };
        }
        if bytes.get(at) != Some(&b'=') {
            continue;
        }
        at += 1;
        match bytes.get(at) {
            None => return Line::Open,
            Some(b'"') => {
                at += 1;
                loop {
                    match &bytes[at..] {
                        [] => return Line::Open,
                        [b'"', ..] => {
                            at += 1;
                            break;
                        }
                        [b'\r' | b'\n', ..] => return Line::Broken,
                        [_, ..] => at += 1,
                    }
                }
            }
            Some(b) if is_token(b) => at += token(at),
            Some(_) => return Line::Broken,
        }
    }
}

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Lines until a blank one. A line is judged when the section is whole, line ends at once.
fn trailers(bytes: &[u8], mut at: usize) -> Result<Option<(Fields, usize)>, ()> {
    let mut lines = Vec::new();
    loop {
        let rest = &bytes[at..];
        // A blank line that cannot be one any more.
        if lines.is_empty() && rest.len() > 1 && rest[0] == b'\r' && rest[1] != b'\n' {
            return Err(());
        }
        let Some(feed) = rest.iter().position(|b| *b == b'\n') else {
            return Ok(None);
        };
        if feed == 0 || rest[feed - 1] != b'\r' {
            return Err(());
        }
        at += feed + 1;
        if feed == 1 {
            break;
        }
        lines.push(&rest[..feed - 1]);
    }
    let mut fields = Vec::new();
    for line in lines {
        let colon = line.iter().position(|b| *b == b':').ok_or(())?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || !name.iter().all(u8::is_ascii_alphanumeric) || value.contains(&b'\r')
        {
            return Err(());
        }
        fields.push((name.to_vec(), value.to_vec()));
    }
    Ok(Some((fields, at)))
}

fn decoder(bytes: &[u8], step: usize) -> Meaning {
    let mut reader = BodyReader::chunked();
    let mut data = Vec::new();
    let mut fields = Vec::new();
    let mut at = 0;
    let mut end = 0;
    loop {
        let result = match reader.read(&bytes[at..end]) {
            Ok(result) => result,
            Err(error) => {
                assert_eq!(reader.read(b"0\r\n\r\n"), Err(error), "an error lasts");
                return Meaning::Broken;
            }
        };
        at += result.consumed;
        match result.what {
            What::Data(piece) => data.extend_from_slice(piece),
            What::Trailers(trailers) => {
                fields = trailers
                    .iter()
                    .map(|(n, v)| (n.to_vec(), v.to_vec()))
                    .collect();
            }
            What::End => return Meaning::Whole(data, fields, at),
            What::NeedMore => {
                assert_eq!(at, end);
                if end == bytes.len() {
                    return Meaning::Open(data);
                }
                end = (end + step).min(bytes.len());
            }
        }
    }
}

fn compare_all(alphabet: &[u8], length: usize) {
    let mut counters = vec![0_usize; length];
    let mut compared = [0_usize; 3];
    for len in 0..=length {
        counters[..len].fill(0);
        loop {
            let bytes: Vec<u8> = counters[..len].iter().map(|i| alphabet[*i]).collect();
            let expected = reference(&bytes);
            assert_eq!(
                decoder(&bytes, bytes.len().max(1)),
                expected,
                "{}",
                bytes.escape_ascii()
            );
            assert_eq!(
                decoder(&bytes, 1),
                expected,
                "bytewise {}",
                bytes.escape_ascii()
            );
            compared[match expected {
                Meaning::Broken => 0,
                Meaning::Open(_) => 1,
                Meaning::Whole(..) => 2,
            }] += 1;
            let Some(at) = counters[..len].iter().position(|i| *i + 1 < alphabet.len()) else {
                break;
            };
            counters[..at].fill(0);
            counters[at] += 1;
        }
    }
    assert!(
        compared.iter().all(|n| *n > 0),
        "every meaning occurs: {compared:?}"
    );
}

#[test]
fn sizes_and_line_ends_decode_as_the_reference_does() {
    compare_all(b"01\r\n", 9);
    compare_all(b"02a\r\n ", 7);
}

#[test]
fn extensions_decode_as_the_reference_does() {
    // Behind "0", so that the strings reach further into the grammar.
    compare_all(b"0;=\"a\r\n", 7);
}

#[test]
fn trailers_decode_as_the_reference_does() {
    for prefix in [&b"0\r\n"[..], b"0\r\na:0\r\n"] {
        let alphabet = b"a:\r\n 0";
        for len in 0..=6_u32 {
            for number in 0..alphabet.len().pow(len) {
                let mut bytes = prefix.to_vec();
                let mut rest = number;
                for _ in 0..len {
                    bytes.push(alphabet[rest % alphabet.len()]);
                    rest /= alphabet.len();
                }
                let expected = trimmed(reference(&bytes));
                assert_eq!(
                    decoder(&bytes, bytes.len()),
                    expected,
                    "{}",
                    bytes.escape_ascii()
                );
                assert_eq!(
                    decoder(&bytes, 1),
                    expected,
                    "bytewise {}",
                    bytes.escape_ascii()
                );
            }
        }
    }
}

/// Values lose the blanks around.
fn trimmed(meaning: Meaning) -> Meaning {
    match meaning {
        Meaning::Whole(data, fields, end) => {
            let fields = fields
                .into_iter()
                .map(|(name, value)| (name, value.trim_ascii().to_vec()))
                .collect();
            Meaning::Whole(data, fields, end)
        }
        other => other,
    }
}

#[test]
fn sizes_are_bounded() {
    for (bytes, expected) in [
        (&b"7fffffffffffffff\r\n"[..], true),
        (b"8000000000000000\r\n", false),
        (b"ffffffffffffffff\r\n", false),
        (b"10000000000000000\r\n", false),
        (b"00000000000000001\r\n", false),
        (b"0000000000000001\r\n", true),
        (b"-1\r\n", false),
        (b"+1\r\n", false),
        (b"0x1\r\n", false),
        (b" 1\r\n", false),
        (b"1 \r\n", false),
        (b"1\t\r\n", false),
        (b"1_0\r\n", false),
        (b"g\r\n", false),
        (b"\r\n", false),
        (b"1\n", false),
        (b"1\r\r\n", false),
        (b"1 ;a\r\n", false),
        (b"1; a\r\n", false),
        (b"1;a =b\r\n", false),
        (b"1;\r\n", false),
        (b"1;a=\r\n", false),
        (b"1;a=\"\n\"\r\n", false),
        (b"1;a=\"\\\r\n\"\r\n", false),
        (b"1;a=\"\\\"\"\r\n", true),
        (b"1;a\n", false),
        (b"1;a;b=c;d=\"e f;g\"\r\n", true),
    ] {
        let outcome = BodyReader::chunked().read(bytes);
        assert_eq!(outcome.is_ok(), expected, "{}", bytes.escape_ascii());
    }
}

#[test]
fn extensions_and_trailers_are_bounded() {
    let long = [&b"1;"[..], &b"a".repeat(2_000), b"\r\n"].concat();
    assert!(BodyReader::chunked().read(&long).is_err());

    // Each within its bound, all together out of proportion to the body.
    let one = [&b"1;"[..], &b"a".repeat(900), b"\r\nx\r\n"].concat();
    let many = one.repeat(40);
    assert_eq!(decoder(&many, many.len()), Meaning::Broken);
    let large = [
        b"1000;",
        &b"a".repeat(900)[..],
        b"\r\n",
        &b"x".repeat(0x1000),
        b"\r\n",
    ]
    .concat();
    let mut body = large.repeat(40);
    body.extend_from_slice(b"0\r\n\r\n");
    assert!(matches!(decoder(&body, body.len()), Meaning::Whole(..)));

    let mut endless = b"0\r\n".to_vec();
    endless.resize(17 * 1024, b'a');
    assert_eq!(decoder(&endless, 1_000), Meaning::Broken);
    let fields = [&b"0\r\n"[..], &b"a: b\r\n".repeat(65)].concat();
    assert_eq!(decoder(&fields, fields.len()), Meaning::Broken);
    let fields = [&b"0\r\n"[..], &b"a: b\r\n".repeat(64), b"\r\n"].concat();
    assert!(matches!(decoder(&fields, 1), Meaning::Whole(..)));
}
