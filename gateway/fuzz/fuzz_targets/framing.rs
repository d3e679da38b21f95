#![no_main]
//! The state machine alone: the same meaning however the bytes are split, and the same message after it was written
//! anew with another framing.

use edd_fuzz::ours::{Side, read, write_request};
use edd_http1::Question;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(([kind, cut], bytes)) = input.split_first_chunk() else {
        return;
    };
    let side = match kind & 3 {
        0 | 1 => Side::Requests,
        2 => Side::Response(Question::Other),
        _ => Side::Response(Question::Head),
    };
    let whole = read(bytes, 0, side);
    assert_eq!(
        read(bytes, usize::from(*cut) + 1 + bytes.len() / 256, side),
        whole,
        "in pieces of {cut} + 1"
    );
    // Each piece is a look at the whole head: longer inputs would only be slow.
    if bytes.len() <= 256 {
        assert_eq!(read(bytes, 1, side), whole, "byte by byte");
    }
    assert!(whole.consumed <= bytes.len());

    if side != Side::Requests {
        return;
    }
    for message in &whole.messages {
        for in_chunks in [false, true] {
            if !in_chunks && !message.trailers.is_empty() {
                continue;
            }
            // TRACE has no body to frame, HTTP/1.0 may lack the host that 1.1 needs.
            let has_host = message.fields.iter().any(|(name, _)| name == b"host");
            if message.start.starts_with("TRACE ") || !has_host {
                continue;
            }
            let written = write_request(message, in_chunks);
            let again = read(&written, 0, Side::Requests);
            let [read_back] = &again.messages[..] else {
                panic!("{} messages of one: {:?}", again.messages.len(), again.stop);
            };
            assert_eq!(again.consumed, written.len());
            assert_eq!(read_back.start, message.start);
            assert_eq!(read_back.body, message.body);
            assert_eq!(read_back.trailers, message.trailers);
            let framing = |name: &[u8]| name == b"content-length" || name == b"transfer-encoding";
            let plain = |fields: &[(Vec<u8>, Vec<u8>)]| {
                fields
                    .iter()
                    .filter(|(n, _)| !framing(n))
                    .cloned()
                    .collect::<Vec<_>>()
            };
            assert_eq!(plain(&read_back.fields), plain(&message.fields));
        }
    }
});
