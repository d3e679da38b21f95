#![no_main]
//! routes.yaml: checked routes, or mistakes that point into the text.

use edd_routes::{Context, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let context = Context {
        file: "routes.yaml",
        platform_domain: "cloud.example",
        read_ca: &|name| {
            if name.contains("good") {
                Ok(String::from("pem"))
            } else {
                Err(String::from("cannot be read"))
            }
        },
    };
    let outcome = parse(text, &context);
    match &outcome {
        Ok(routes) => {
            for route in routes {
                assert!(!route.host.is_empty());
                assert_eq!(route.host, route.host.to_ascii_lowercase());
                assert!(!route.host.ends_with('.'));
                assert!(!route.host.ends_with(".compute.cloud.example"));
                assert!(route.path.starts_with('/'), "{}", route.path);
            }
            // One route for a host and a path.
            let mut keys: Vec<_> = routes.iter().map(|r| (&r.host, &r.path)).collect();
            keys.sort();
            let before = keys.len();
            keys.dedup();
            assert_eq!(keys.len(), before, "two routes for one host and path");
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            // YAML knows more line ends than `\n`.
            let ends = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
            let lines = text.split(ends).count() as u32 + 1;
            for mistake in mistakes {
                assert!(
                    (1..=lines).contains(&mistake.line),
                    "{mistake} of {lines} lines"
                );
                assert!(mistake.column >= 1, "{mistake}");
                assert!(!mistake.message.is_empty());
            }
        }
    }
});
