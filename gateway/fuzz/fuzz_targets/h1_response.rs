#![no_main]
//! An upstream's bytes, read by us and by hyper: the same status, fields and body, or no answer at all.

use edd_fuzz::hyper_reads;
use edd_fuzz::ours::{Side, Stop, read};
use edd_http1::Question;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((first, bytes)) = input.split_first() else {
        return;
    };
    let (question, method) = match first & 1 {
        0 => (Question::Other, "GET"),
        _ => (Question::Head, "HEAD"),
    };
    let ours = read(bytes, 0, Side::Response(question));
    match (ours.messages.first(), &ours.stop) {
        // What follows is another protocol.
        (Some(message), _) if message.start == "101" => {}
        (Some(message), _) => {
            let mut theirs = hyper_reads::response(bytes, method)
                .unwrap_or_else(|| panic!("hyper sees no answer: {message:?}"));
            theirs
                .trailers
                .retain(|(name, _)| !edd_http1::is_forbidden_trailer(name));
            assert_eq!(message, &theirs);
        }
        (None, Stop::BodyOpen | Stop::HeadOpen) => {
            let theirs = hyper_reads::response(bytes, method);
            assert_eq!(theirs, None, "cut for us, whole for hyper");
        }
        (None, _) => {}
    }
});
