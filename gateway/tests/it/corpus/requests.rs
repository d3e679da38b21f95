//! Requests by HTTP/1.1: what the client got, and what the upstream received.

use tokio::io::AsyncWriteExt;

use super::client::Client;
use super::reader::{self, Case, Forwarded, Request};
use super::upstream::{Log, Recorder, plain};
use crate::support::{Gateway, Options};

pub(super) async fn start() -> (Recorder, Gateway) {
    let recorder = Recorder::start().await;
    let routes = format!(
        "routes:\n- {{host: a.example, target: '{}'}}\n",
        recorder.origin.address
    );
    let options = Options::routes(routes).flag("--workers", "1");
    (recorder, Gateway::start(options).await)
}

/// What is wrong with what the upstream got; the bodies are long, so it says where they differ.
pub(super) fn compare(case: &Case, log: Log, any_case: bool) -> Result<(), String> {
    let Log {
        requests,
        rest,
        faults,
    } = log;
    if !faults.is_empty() {
        return Err(format!("the upstream got what is ambiguous: {faults:?}"));
    }
    let got: Vec<Request> = requests.into_iter().map(|r| plain(r, any_case)).collect();
    let expected = match case.forwarded() {
        Forwarded::Cut if got.is_empty() => return Ok(()),
        Forwarded::Nothing if got.is_empty() && rest.is_empty() => return Ok(()),
        Forwarded::Cut | Forwarded::Nothing => Vec::new(),
        Forwarded::Requests(requests) => requests.into_iter().map(|r| plain(r, any_case)).collect(),
    };
    if got == expected && rest.is_empty() {
        return Ok(());
    }
    let show = |requests: &[Request]| {
        let show = |r: &Request| {
            let fields = |fields: &[(Vec<u8>, Vec<u8>)]| {
                let one = |(n, v): &(Vec<u8>, Vec<u8>)| {
                    format!("{}: {}", n.escape_ascii(), v.escape_ascii())
                };
                fields.iter().map(one).collect::<Vec<_>>().join(" | ")
            };
            format!(
                "{} {} | {} | {:?} {} + {}",
                r.method.escape_ascii(),
                r.target.escape_ascii(),
                fields(&r.fields),
                r.framing,
                r.body.escape_ascii(),
                fields(&r.trailers),
            )
        };
        requests.iter().map(show).collect::<Vec<_>>()
    };
    Err(format!(
        "the upstream got {:#?} and {}, not {:#?}",
        show(&got),
        rest.escape_ascii(),
        show(&expected)
    ))
}

/// What is wrong with what the client got.
async fn speak(gateway: &Gateway, case: &Case, piece: usize) -> Result<(), String> {
    let mut words: Vec<&str> = case.need("out").split(' ').collect();
    let ends = words.pop() == Some("closed");
    let methods: Vec<Vec<u8>> = match case.forwarded() {
        Forwarded::Requests(requests) => requests.into_iter().map(|r| r.method).collect(),
        _ => Vec::new(),
    };
    let mut client = Client::dial(gateway).await;
    for piece in case.input().chunks(piece) {
        // It may refuse in the middle.
        let written = client.stream.write_all(piece).await;
        if written.is_err() || client.stream.flush().await.is_err() {
            break;
        }
    }
    for (at, word) in words.iter().enumerate() {
        let head = methods.get(at).is_some_and(|m| m == b"HEAD");
        let Some(answer) = client.answer(&case.name, head).await else {
            return Err(format!("no answer {at}, {word} expected"));
        };
        if answer.status.to_string() != *word || !answer.whole {
            return Err(format!("{answer:?}, {word} expected"));
        }
        if answer.field("x-request-id").is_none() {
            return Err(format!("no X-Request-ID in {answer:?}"));
        }
        let last = at + 1 == words.len();
        let says_close = answer.field("connection") == Some("close");
        if last && ends != says_close {
            return Err(format!("closes: {ends}, but {answer:?}"));
        }
    }
    if !ends {
        let after = b"GET /after HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
        client
            .stream
            .write_all(after)
            .await
            .map_err(|error| format!("not kept: {error}"))?;
        match client.answer(&case.name, false).await {
            Some(answer) if answer.status == 200 => {}
            other => return Err(format!("not kept: {other:?}")),
        }
    }
    match client.answer(&case.name, false).await {
        None => Ok(()),
        Some(answer) => Err(format!("one more answer: {answer:?}")),
    }
}

/// Every case, its bytes in records of at most `piece`.
async fn run(piece: usize) {
    let (recorder, gateway) = start().await;
    let cases = reader::read(include_str!("../../corpus/requests.txt"));
    let mut wrong = Vec::new();
    for case in &cases {
        // The large ones would take minutes.
        let piece = piece.max(case.input().len() / 1_000 + 1);
        let heard = speak(&gateway, case, piece).await;
        let mut log = recorder.take();
        // The request that proved the connection to be alive.
        if log.requests.last().is_some_and(|r| r.target == b"/after") {
            log.requests.pop();
        }
        for outcome in [heard, compare(case, log, false)] {
            wrong.extend(outcome.err().map(|what| format!("{}: {what}", case.name)));
        }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_become_what_the_corpus_says() {
    run(usize::MAX).await;
}

/// Whoever attacks chooses the segments too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_single_bytes_become_the_same() {
    run(1).await;
}
