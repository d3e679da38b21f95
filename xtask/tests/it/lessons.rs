//! Old faults have numbers; each that the data plane closes is named by a test that would find it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Faults of security (S), correctness (C), reliability (R) and performance (P), by number.
const NUMBERS: [(char, &[u32]); 4] = [
    (
        'S',
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 19],
    ),
    (
        'C',
        &[
            1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24,
            25,
        ],
    ),
    ('R', &[2, 4, 5, 6, 7, 8, 9]),
    ('P', &[1, 2, 3, 4, 5]),
];

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                rust_files(&path, found);
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// The numbers in the comments of the tests of a file, with the test's name.
fn named(text: &str) -> Vec<(String, String)> {
    let mut named = Vec::new();
    let (mut comment, mut is_test) = (String::new(), false);
    for line in text.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("///") {
            comment.push_str(words);
        } else if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        } else {
            let name = line
                .split("fn ")
                .nth(1)
                .and_then(|rest| rest.split('(').next());
            if let (true, Some(name)) = (is_test, name) {
                let words = comment.split(|c: char| !c.is_ascii_alphanumeric());
                let numbers = words.filter(|word| {
                    let (letter, digits) = word.split_at(word.len().min(1));
                    "SCRP".contains(letter)
                        && !digits.is_empty()
                        && digits.bytes().all(|byte| byte.is_ascii_digit())
                });
                named.extend(numbers.map(|number| (number.to_owned(), name.to_owned())));
            }
            (comment, is_test) = (String::new(), false);
        }
    }
    named
}

#[test]
fn every_old_fault_is_named_by_a_test() {
    let mut files = Vec::new();
    rust_files(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../gateway"),
        &mut files,
    );
    let mut tests = BTreeMap::<String, BTreeSet<String>>::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("text");
        for (number, test) in named(&text) {
            tests.entry(number).or_default().insert(test);
        }
    }
    let wanted = NUMBERS
        .iter()
        .flat_map(|(letter, numbers)| numbers.iter().map(move |n| format!("{letter}{n}")));
    let missing: Vec<_> = wanted
        .filter(|number| !tests.contains_key(number))
        .collect();
    assert!(missing.is_empty(), "no test names {missing:?}");
}

#[test]
fn only_the_comment_of_a_test_counts() {
    let text = "//! S1\n/// S2, C12: a\n/// (R4)\n#[tokio::test(x = 1)]\nasync fn one() {\n\
        // S3\n}\n/// S5\nfn no_test() {}\n/// HTTP2 P5\n#[test]\n#[should_panic]\nfn two() {\n";
    let named = named(text);
    let named: Vec<_> = named
        .iter()
        .map(|(n, t)| (n.as_str(), t.as_str()))
        .collect();
    assert_eq!(
        named,
        [("S2", "one"), ("C12", "one"), ("R4", "one"), ("P5", "two")]
    );
}
