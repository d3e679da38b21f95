//! Requests by HTTP/2: what the upstream received as HTTP/1.1.

use super::requests::{compare, start};
use super::{frames, reader};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_requests_become_what_the_corpus_says() {
    let (recorder, gateway) = start().await;
    let cases = reader::read(include_str!("../../corpus/h2.txt"));
    let mut wrong = Vec::new();
    for case in &cases {
        let outcome = frames::ask(&gateway, case).await;
        let out = case.need("out");
        let fits = match &outcome {
            frames::Outcome::Answer(status) if out == "refused" => (400..500).contains(status),
            frames::Outcome::Answer(status) => status.to_string() == out,
            frames::Outcome::Closed | frames::Outcome::Reset => out == "refused",
        };
        if !fits {
            wrong.push(format!("{}: {outcome:?}, {out} expected", case.name));
        }
        let compared = compare(case, recorder.take(), true);
        wrong.extend(compared.err().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    gateway.stop().await;
}
