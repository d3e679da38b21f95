//! Answers of an upstream that misbehaves: what the client received, and whose the connection is afterwards.

use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::client::Client;
use super::reader::{self, Case};
use crate::support::{Gateway, Options, Origin, read_head};

/// What the upstream says next, and who heard what.
#[derive(Debug, Default)]
struct Script {
    bytes: Vec<u8>,
    closes: bool,
    /// Connection that carried the case, and the request after it.
    case: Option<usize>,
    second: Option<usize>,
}

async fn serve(number: usize, mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    loop {
        let head = read_head(&mut stream).await;
        if head.is_empty() {
            return;
        }
        let (bytes, closes) = {
            let mut script = script.lock().expect("a lock");
            if head.contains(" /second ") {
                script.second = Some(number);
                (
                    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond".to_vec(),
                    false,
                )
            } else {
                script.case = Some(number);
                (script.bytes.clone(), script.closes)
            }
        };
        if stream.write_all(&bytes).await.is_err() || closes {
            return;
        }
    }
}

/// What is wrong with the outcome of a case.
async fn play(gateway: &Gateway, script: &Mutex<Script>, case: &Case) -> Result<(), String> {
    *script.lock().expect("a lock") = Script {
        bytes: case.input(),
        closes: case.get("end") == Some("close"),
        ..Script::default()
    };
    let method = case.get("ask").unwrap_or("GET");
    let mut client = Client::dial(gateway).await;
    let ask = format!("{method} /case HTTP/1.1\r\nHost: a.example\r\n\r\n");
    client
        .stream
        .write_all(ask.as_bytes())
        .await
        .expect("asked");
    let mut out = Vec::new();
    loop {
        let Some(answer) = client.answer(&case.name, method == "HEAD").await else {
            out.push("no answer".to_owned());
            break;
        };
        match answer.status {
            100..200 => out.push(answer.status.to_string()),
            502 => {
                let id = answer.field("x-request-id").is_some();
                out.push(
                    if id {
                        "502"
                    } else {
                        "502 without X-Request-ID"
                    }
                    .to_owned(),
                );
                break;
            }
            status => {
                let how = if answer.whole {
                    format!("whole {}", String::from_utf8_lossy(&answer.body))
                } else {
                    "cut".to_owned()
                };
                out.push(format!("{status} {how}").trim_end().to_owned());
                break;
            }
        }
    }
    let out = out.join(", ");
    if out != case.need("out") {
        return Err(format!("{out}, {} expected", case.need("out")));
    }

    // Whoever comes next gets an answer of their own.
    let mut next = Client::dial(gateway).await;
    let ask = b"GET /second HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    next.stream.write_all(ask).await.expect("asked");
    match next.answer(&case.name, false).await {
        Some(answer) if answer.body == b"second" => {}
        other => return Err(format!("the next client got {other:?}")),
    }
    let script = script.lock().expect("a lock");
    let reused = script.case == script.second;
    if reused != (case.need("reuse") == "yes") {
        return Err(format!("reused: {reused}"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_become_what_the_corpus_says() {
    let script = Arc::new(Mutex::new(Script::default()));
    let shared = Arc::clone(&script);
    let upstream = Origin::raw("127.0.0.1", move |number, stream| {
        serve(number, stream, Arc::clone(&shared))
    })
    .await;
    let routes = format!(
        "routes:\n- {{host: a.example, target: '{}'}}\n",
        upstream.address
    );
    let options = Options::routes(routes).flag("--workers", "1");
    let gateway = Gateway::start(options).await;
    let cases = reader::read(include_str!("../../corpus/responses.txt"));
    let mut wrong = Vec::new();
    for case in &cases {
        let outcome = play(&gateway, &script, case).await;
        wrong.extend(outcome.err().map(|what| format!("{}: {what}", case.name)));
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
