#![no_main]
//! First bytes: a final verdict stays whatever follows, and what the HTTP engine accepts is found to be HTTP.

use edd_detect::{FIRST_BYTES_MAX, HELLO_BYTES_MAX, Verdict, detect};
use edd_http1::{Limits, Progress, Slots, parse_request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = detect(bytes);
    // What arrives in pieces gets the verdict of the whole, or one that was final before.
    let mut last = Verdict::NeedMore;
    for end in 0..=bytes.len().min(400) {
        let verdict = detect(&bytes[..end]);
        if last.is_final() {
            assert_eq!(verdict, last, "changed at {end}");
        }
        if last == Verdict::PartialTls {
            assert!(
                matches!(
                    verdict,
                    Verdict::PartialTls | Verdict::Tls(_) | Verdict::BadTls(_)
                ),
                "TLS became {verdict:?}"
            );
        }
        last = verdict;
    }
    if last.is_final() {
        assert_eq!(whole, last);
    }
    if bytes.len() >= HELLO_BYTES_MAX || (bytes.len() >= FIRST_BYTES_MAX && bytes[0] != 0x16) {
        assert!(whole.is_final());
    }
    let mut slots = Slots::new();
    if let Ok(Progress::Complete(_, n)) = parse_request(bytes, &mut slots, &Limits::default())
        && n < FIRST_BYTES_MAX
        // A method may begin like an identification string; then it is SSH that is served.
        && !bytes.starts_with(b"SSH-")
    {
        assert_eq!(whole, Verdict::Http1);
    }
});
