#![no_main]
//! A client's bytes, read by us and by hyper. What we accept, hyper must understand in the same way: method, target,
//! fields, body, and where the next message begins.

use edd_fuzz::hyper_reads;
use edd_fuzz::ours::{Side, read};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let ours = read(bytes, 0, Side::Requests);
    if ours.messages.is_empty() {
        return;
    }
    let theirs = hyper_reads::requests(bytes);
    // From the first target on that its URI type refuses, hyper answers 400 and closes.
    for (at, message) in ours.messages.iter().take(ours.plain_targets).enumerate() {
        let other = theirs
            .get(at)
            .unwrap_or_else(|| panic!("message {at} that hyper does not see: {message:?}"));
        let mut other = other.clone();
        // hyper leaves the forbidden ones to its user.
        other
            .trailers
            .retain(|(name, _)| !edd_http1::is_forbidden_trailer(name));
        // `http::Uri` writes the path that an absolute target lacks, and its scheme in lower case.
        if other.start != message.start {
            let (method, target) = message.start.split_once(' ').expect("a start line");
            let uri: http::Uri = target.parse().expect("a plain target");
            other.start = other.start.replacen(&uri.to_string(), target, 1);
            assert!(other.start.starts_with(method));
        }
        assert_eq!(message, &other);
    }
});
