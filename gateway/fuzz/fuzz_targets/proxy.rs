#![no_main]
//! PROXY headers: a final verdict stays whatever follows, headers are bounded, and nothing of the client's is taken.

use edd_detect::proxy::{Announcement, Client, V1_BYTES_MAX, V2_BYTES_MAX, announced};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = announced(bytes);
    for end in 0..=bytes.len().min(400) {
        let verdict = announced(&bytes[..end]);
        if verdict.is_final() {
            assert_eq!(verdict, whole, "changed after {end}");
            break;
        }
    }
    if bytes.len() >= V2_BYTES_MAX {
        assert!(whole.is_final());
    }
    if let Announcement::Complete { client, length } = whole {
        let most = if bytes[0] == b'P' {
            V1_BYTES_MAX
        } else {
            V2_BYTES_MAX
        };
        assert!(length <= bytes.len().min(most));
        // Only version 2's LOCAL makes a connection the sender's own.
        let is_local = bytes[0] != b'P' && bytes[12] == 0x20;
        assert_eq!(client == Client::Sender, is_local);
        // What follows the header has no say in it.
        assert_eq!(announced(&bytes[..length]), whole);
    }
});
