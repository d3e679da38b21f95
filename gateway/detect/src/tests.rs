//! Tables, and the properties that hold for any bytes.

use proptest::prelude::*;

use super::*;

/// A hello with these extensions, without the records around it.
fn message(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([2, 9, 9]); // session id
    body.extend([0, 4, 0x13, 1, 0x13, 2]);
    body.extend([1, 0]);
    let mut all = Vec::new();
    for (kind, data) in extensions {
        all.extend(kind.to_be_bytes());
        all.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        all.extend(data);
    }
    body.extend(u16::try_from(all.len()).unwrap().to_be_bytes());
    body.extend(all);
    let mut message = vec![1];
    message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
    message.extend(body);
    message
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message
        .chunks(size)
        .flat_map(|part| {
            let mut record = vec![22, 3, 1];
            record.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
            record.extend(part);
            record
        })
        .collect()
}

fn sni(name: &[u8]) -> (u16, Vec<u8>) {
    let length = u16::try_from(name.len()).unwrap();
    let mut data = (length + 3).to_be_bytes().to_vec();
    data.push(0);
    data.extend(length.to_be_bytes());
    data.extend(name);
    (0, data)
}

fn alpn(protocols: &[&[u8]]) -> (u16, Vec<u8>) {
    let mut list = Vec::new();
    for protocol in protocols {
        list.push(u8::try_from(protocol.len()).unwrap());
        list.extend(*protocol);
    }
    let mut data = u16::try_from(list.len()).unwrap().to_be_bytes().to_vec();
    data.extend(list);
    (16, data)
}

fn padding(size: usize) -> (u16, Vec<u8>) {
    (21, vec![0; size])
}

fn hello(name: &str, protocols: &[&[u8]]) -> ClientHello {
    ClientHello {
        sni: Some(name.to_owned()),
        alpn: protocols.iter().map(|p| p.to_vec()).collect(),
    }
}

/// Feeds the bytes one by one until a verdict is final.
fn one_by_one(bytes: &[u8]) -> Verdict {
    (0..=bytes.len())
        .map(|end| detect(&bytes[..end]))
        .find(Verdict::is_final)
        .unwrap_or_else(|| detect(bytes))
}

#[test]
fn text_protocols_are_told_apart() {
    for (bytes, verdict) in [
        (&b""[..], Verdict::NeedMore),
        (b"G", Verdict::NeedMore),
        (b"GET", Verdict::NeedMore),
        (b"GET ", Verdict::Http1),
        (b"\r\nGET /", Verdict::Http1),
        (b"\r\n\r\nGET /", Verdict::Unknown),
        (b"VERSION-CONTROL /x", Verdict::Http1),
        (b"GET\t/ HTTP/1.1\r\n", Verdict::Unknown),
        (b" GET / HTTP/1.1\r\n", Verdict::Unknown),
        (b"BREW /pot HTTP/1.1", Verdict::NeedMore),
        (b"BREW /pot HTTP/1.1\r", Verdict::NeedMore),
        (b"BREW /pot HTTP/1.1\r\n", Verdict::Http1),
        (b"BREW /pot HTTP/1.0\n", Verdict::Http1),
        (b"BREW /pot HTTP/3.0\r\n", Verdict::Unknown),
        (b"get key\r\n", Verdict::Unknown),
        (b"EHLO client.example\r\n", Verdict::Unknown),
        (b"PING\r\n", Verdict::Unknown),
        (b"*1\r\n$4\r\nPING\r\n", Verdict::Unknown),
        (b"P", Verdict::NeedMore),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Verdict::NeedMore),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Verdict::Http2Preface),
        (b"PRI * HTTP/2.0\r\n\r\nXX", Verdict::Unknown),
        (b"S", Verdict::NeedMore),
        (b"SSH", Verdict::NeedMore),
        (b"SSH-", Verdict::Ssh),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Verdict::Ssh),
        (b"SEARCH /", Verdict::Http1),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Verdict::Unknown),
        (b"\x80\x2e\x01\x03\x01", Verdict::Unknown),
        (b"\x16", Verdict::NeedMore),
        (b"\x16\x02", Verdict::Unknown),
        (b"\x16\x03", Verdict::PartialTls),
    ] {
        assert_eq!(detect(bytes), verdict, "{}", bytes.escape_ascii());
        assert_eq!(one_by_one(bytes), verdict, "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_hello_says_its_name_and_protocols() {
    let message = message(&[alpn(&[b"h2", b"http/1.1"]), padding(5), sni(b"A.example")]);
    let expected = Verdict::Tls(hello("A.example", &[b"h2", b"http/1.1"]));
    let mut bytes = records(&message, 16384);
    assert_eq!(detect(&bytes), expected);
    bytes.extend(b"what follows is not looked at");
    assert_eq!(detect(&bytes), expected);
}

#[test]
fn records_may_cut_a_hello_anywhere() {
    let message = message(&[padding(1200), sni(b"a.example"), alpn(&[b"h2"])]);
    for size in [1, 2, 3, 4, 5, 100, 1000] {
        let bytes = records(&message, size);
        assert_eq!(
            one_by_one(&bytes),
            Verdict::Tls(hello("a.example", &[b"h2"]))
        );
    }
}

#[test]
fn long_hellos_are_read_up_to_the_bound() {
    let long = records(&message(&[padding(60_000), sni(b"a.example")]), 16384);
    assert_eq!(detect(&long), Verdict::Tls(hello("a.example", &[])));
    assert_eq!(detect(&long[..long.len() - 1]), Verdict::PartialTls);

    // The message alone fits, with its records it does not.
    let wordy = records(&message(&[padding(60_000), sni(b"a.example")]), 10);
    assert_eq!(detect(&wordy), Verdict::BadTls(HelloError::TooLong));
    assert_eq!(detect(&wordy[..HELLO_BYTES_MAX - 1]), Verdict::PartialTls);
    assert_eq!(
        detect(b"\x16\x03\x01\x01\x00\x01\x02\x00\x00"),
        Verdict::BadTls(HelloError::TooLong)
    );
}

#[test]
fn a_hello_without_a_usable_name_has_none() {
    for extensions in [vec![], vec![sni(b"192.0.2.1")], vec![sni(b"2001:db8::1")]] {
        let bytes = records(&message(&extensions), 16384);
        assert_eq!(detect(&bytes), Verdict::Tls(ClientHello::default()));
    }
    // TLS 1.2 without any extensions, not even their length.
    let mut bare = message(&[]);
    bare.truncate(bare.len() - 2);
    bare[3] -= 2;
    assert_eq!(
        detect(&records(&bare, 16384)),
        Verdict::Tls(ClientHello::default())
    );
}

#[test]
fn broken_hellos_are_refused() {
    let two = {
        let mut data = vec![0, 8];
        data.extend([0, 0, 1, b'a', 0, 0, 1, b'b']);
        (0, data)
    };
    for (extensions, error) in [
        (vec![sni(b"a"), sni(b"a")], HelloError::Duplicate),
        (vec![alpn(&[b"h2"]), alpn(&[b"h2"])], HelloError::Duplicate),
        (vec![sni(b"")], HelloError::ServerName),
        (vec![sni("ä".as_bytes())], HelloError::ServerName),
        (vec![two], HelloError::ServerName),
        (vec![(0, vec![0, 0])], HelloError::Malformed),
        (vec![(0, vec![])], HelloError::Malformed),
        (vec![(0, vec![0, 9, 0, 0, 1, b'a'])], HelloError::Malformed),
        (vec![(16, vec![0, 0])], HelloError::Malformed),
        (vec![(16, vec![0, 1, 0])], HelloError::Malformed),
        (vec![(16, vec![0, 2, 5, b'h'])], HelloError::Malformed),
    ] {
        let bytes = records(&message(&extensions), 16384);
        assert_eq!(detect(&bytes), Verdict::BadTls(error), "{extensions:?}");
    }
    for (bytes, error) in [
        (&b"\x16\x03\x01\x00\x00"[..], HelloError::Record),
        (b"\x16\x03\x01\x40\x01", HelloError::Record),
        (b"\x16\x03\x01\x00\x01\x01\x17", HelloError::Record),
        (b"\x16\x03\x01\x00\x01\x01\x16\x02", HelloError::Record),
        (b"\x16\x03\x01\x00\x04\x02", HelloError::NotHello),
        (
            b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
            HelloError::Malformed,
        ),
        (
            b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",
            HelloError::Malformed,
        ),
    ] {
        assert_eq!(
            detect(bytes),
            Verdict::BadTls(error),
            "{}",
            bytes.escape_ascii()
        );
    }
}

#[test]
fn nothing_is_waited_for_without_end() {
    let line = [b"BREW /".to_vec(), vec![b'a'; FIRST_BYTES_MAX]].concat();
    assert_eq!(detect(&line[..FIRST_BYTES_MAX - 1]), Verdict::NeedMore);
    assert_eq!(detect(&line), Verdict::Unknown);
    assert_eq!(detect(&[b'A'; 40]), Verdict::Unknown);
}

/// Bytes that get far into the parsers.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let name = proptest::collection::vec(any::<u8>(), 0..80);
    let blob = proptest::collection::vec(any::<u8>(), 0..300);
    let extension = prop_oneof![
        name.prop_map(|name| sni(&name)),
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..4)
            .prop_map(|list| alpn(&list.iter().map(Vec::as_slice).collect::<Vec<_>>())),
        (any::<u16>(), blob.clone()),
        (prop_oneof![Just(0), Just(16)], blob.clone()),
    ];
    let tls = (
        proptest::collection::vec(extension, 0..5),
        1..2000usize,
        proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    )
        .prop_map(|(extensions, size, flips)| {
            let mut bytes = records(&message(&extensions), size);
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        });
    let text = "(\r\n)?(GET|SSH-|SSH|PRI \\* HTTP/2|BREW|get|[A-Z]{1,40})[ -~]{0,40}( HTTP/1\\.[01])?\r?\n?";
    prop_oneof![tls, text.prop_map(String::into_bytes), blob]
}

proptest! {
    #[test]
    fn verdicts_do_not_depend_on_the_segments(bytes in likely()) {
        let whole = detect(&bytes);
        let mut settled = None;
        for end in 0..=bytes.len() {
            let verdict = detect(&bytes[..end]);
            if let Some(settled) = &settled {
                prop_assert_eq!(settled, &verdict, "changed at {}", end);
            } else if verdict.is_final() {
                settled = Some(verdict);
            }
        }
        prop_assert_eq!(settled.is_some(), whole.is_final());
    }

    #[test]
    fn tls_once_certain_stays_tls(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [&[0x16, 0x03], bytes.as_slice()].concat();
        let verdict = detect(&bytes);
        prop_assert!(matches!(verdict, Verdict::PartialTls | Verdict::Tls(_) | Verdict::BadTls(_)));
    }

    #[test]
    fn any_bytes_up_to_the_bound_get_a_verdict(byte in any::<u8>(), rest in any::<u8>()) {
        let mut bytes = vec![rest; HELLO_BYTES_MAX];
        bytes[0] = byte;
        prop_assert!(detect(&bytes).is_final());
    }

    #[test]
    fn names_survive(name in "[a-z0-9-]{1,60}(\\.[a-z]{2,20}){1,3}", size in 1..500usize) {
        let bytes = records(&message(&[sni(name.as_bytes())]), size);
        prop_assert_eq!(detect(&bytes), Verdict::Tls(hello(&name, &[])));
    }
}
