//! The access log as it leaves the process.

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::client::dial;
use crate::support::daemon::Daemon;
use crate::support::{Origin, free_port};

const REQUESTS: usize = 500;

/// Runs a gateway with these flags, sends [`REQUESTS`] pipelined requests, and returns what it
/// wrote up to its end.
async fn lines(flags: &[&str]) -> Vec<String> {
    let origin = Origin::blunt(
        "127.0.0.1",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let folder = TempDir::new().unwrap();
    let routes = format!(
        "routes:\n- host: a.localhost\n  target: {}\n",
        origin.address
    );
    std::fs::write(folder.path().join("routes.yaml"), routes).unwrap();
    let mut all: Vec<String> = ["http", "https", "ssh", "admin"]
        .map(|name| format!("--{name}-addr=127.0.0.1:0"))
        .into();
    all.push(format!("--ports={}", free_port()));
    all.extend(flags.iter().map(|&flag| flag.to_owned()));
    let mut command = Daemon::command(folder.path(), "exec \"$@\"", &all);
    command.env("NO_COLOR", "1");
    let mut daemon = Daemon::start(command);
    let address = if flags.contains(&"--log-format=text") {
        let line = daemon.line("listening listener=\"http\"").await;
        line.rsplit_once("addr=").unwrap().1.parse().unwrap()
    } else {
        daemon.address("http").await
    };
    let mut stream = dial(address).await;
    for n in 0..REQUESTS {
        let ask = format!("GET /r{n}?secret HTTP/1.1\r\nHost: a.localhost\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 308");
        let mut rest = vec![0; 4096];
        // The answer is short and comes whole.
        assert_ne!(stream.read(&mut rest).await.unwrap(), 0);
    }
    drop(stream);
    // Right after the last answer: nothing of it may be lost.
    daemon.signal(Signal::TERM);
    let rest = daemon.rest().await;
    assert_eq!(daemon.ended().await.code(), Some(0));
    rest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_one_line_of_json_in_order_and_none_is_lost_at_the_end() {
    let lines = lines(&[]).await;
    let records: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .filter(|line: &Value| line["target"] == "access")
        .collect();
    assert_eq!(records.len(), REQUESTS);
    for (n, record) in records.iter().enumerate() {
        assert_eq!(record["path"], format!("/r{n}"), "{record}");
        assert_eq!(record["kind"], "http");
        assert_eq!(record["level"], "INFO");
        assert_eq!(record["host"], "a.localhost");
        assert_eq!(record["method"], "GET");
        assert_eq!(record["status"], 308);
        assert_eq!(record["version"], "1.1");
        for number in ["revision", "bytes_in", "bytes_out", "ms"] {
            assert!(record[number].is_number(), "{record}");
        }
        for text in [
            "timestamp",
            "request_id",
            "peer",
            "route",
            "upstream",
            "note",
        ] {
            assert!(record[text].is_string(), "{record}");
        }
    }
    let ids: std::collections::HashSet<_> = records
        .iter()
        .map(|record| record["request_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), REQUESTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_lines_are_whole_and_the_filter_switches_them_off() {
    let text = lines(&["--log-format=text"]).await;
    let records = text.iter().filter(|line| line.contains(" INFO access: "));
    let records: Vec<_> = records.collect();
    assert_eq!(records.len(), REQUESTS);
    for (n, record) in records.iter().enumerate() {
        assert!(record.contains(" kind=\"http\" request_id="), "{record}");
        assert!(record.contains(&format!(" path=/r{n} ")), "{record}");
        assert!(!record.contains("secret"), "{record}");
    }
    let off = lines(&["--log=info,access=off"]).await;
    assert!(off.iter().all(|line| !line.contains("access")), "{off:#?}");
    assert!(off.iter().any(|line| line.contains("drained")), "{off:#?}");
}
