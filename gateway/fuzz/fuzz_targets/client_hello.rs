#![no_main]
//! A ClientHello, in any records: the same hello, and the names that rustls reads in it.

use std::io::Cursor;

use edd_detect::{Verdict, detect};
use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;

fuzz_target!(|input: &[u8]| {
    let Some(([kind, size], rest)) = input.split_first_chunk() else {
        return;
    };
    // Raw, or as a message that only lacks its length and its records.
    let bytes = if kind & 1 == 0 {
        rest.to_vec()
    } else {
        let mut message = vec![1, 0];
        message.extend_from_slice(&(rest.len().min(0xffff) as u16).to_be_bytes());
        message.extend_from_slice(&rest[..rest.len().min(0xffff)]);
        let one = records(&message, 0x4000);
        let many = records(&message, usize::from(*size) + 1);
        let verdict = detect(&one);
        if many.len() < edd_detect::HELLO_BYTES_MAX {
            assert_eq!(detect(&many), verdict, "cut into records of {size} + 1");
        }
        one
    };
    let Verdict::Tls(ours) = detect(&bytes) else {
        return;
    };
    // Whatever follows the hello does not change it.
    let longer = [&bytes[..], b"\x16\x03\x03\0\x01\x01"].concat();
    assert_eq!(detect(&longer), Verdict::Tls(ours.clone()));

    let mut acceptor = Acceptor::default();
    let mut cursor = Cursor::new(&bytes);
    while (cursor.position() as usize) < bytes.len() {
        match acceptor.read_tls(&mut cursor) {
            Ok(n) if n > 0 => {}
            _ => return,
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let theirs = accepted.client_hello();
                let name = theirs.server_name().map(str::to_ascii_lowercase);
                assert_eq!(ours.sni.map(|n| n.to_ascii_lowercase()), name);
                let protocols: Vec<_> = theirs
                    .alpn()
                    .map(|all| all.map(<[u8]>::to_vec).collect())
                    .unwrap_or_default();
                assert_eq!(ours.alpn, protocols);
                return;
            }
            Err(_) => return,
        }
    }
});

/// A handshake message in records of at most `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in message.chunks(size) {
        out.extend_from_slice(&[0x16, 0x03, 0x01]);
        out.extend_from_slice(&(piece.len() as u16).to_be_bytes());
        out.extend_from_slice(piece);
    }
    out
}
