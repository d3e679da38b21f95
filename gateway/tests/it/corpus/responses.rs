//! Answers of an upstream that misbehaves: what the client received, and whose the connection is afterwards.

use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

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

/// An answer that nobody asked for waits on an idle connection for the next request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_unasked_is_nobodys() {
    let (say, sayer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (go, gone) = (Arc::clone(&say), Arc::clone(&sayer));
    let upstream = Origin::raw("127.0.0.1", move |number, mut stream| {
        let (go, gone) = (Arc::clone(&go), Arc::clone(&gone));
        async move {
            while !read_head(&mut stream).await.is_empty() {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}");
                let _ = stream.write_all(answer.as_bytes()).await;
                go.notified().await;
                let evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
                let _ = stream.write_all(evil).await;
                gone.notify_one();
            }
        }
    })
    .await;
    let routes = format!(
        "routes:\n- {{host: a.example, target: '{}'}}\n",
        upstream.address
    );
    let gateway = Gateway::start(Options::routes(routes).flag("--workers", "1")).await;
    for expected in [b"0", b"1"] {
        let mut client = Client::dial(&gateway).await;
        let ask = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
        client.stream.write_all(ask).await.expect("asked");
        let answer = client.answer("unasked", false).await.expect("an answer");
        assert_eq!(
            answer.body.escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
        say.notify_one();
        // On loopback what was written has arrived.
        sayer.notified().await;
    }
    gateway.stop().await;
}
