//! Every fault is counted and logged once, with the id that the client was told.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use crate::support::ask::{Asker, End, Question, Speaks, unwatched};
use crate::support::process::Process;
use crate::support::{Bus, eventually};

use super::script::Act::{Close, Reset, Say, Seen, Stall};
use super::script::upstream;

const HOST: &str = "told.compute.localhost";

/// The sum of `http_requests_total`, and of those with this status.
async fn counted(admin: std::net::SocketAddr, status: &str) -> (u64, u64) {
    let seen = unwatched();
    let mut asker = Asker::dial(Speaks::H1, admin).await;
    let heard = asker.ask(&Question::get("admin", "/metrics"), &seen).await;
    assert_eq!(heard.status, 200);
    let (mut all, mut these) = (0, 0);
    for line in heard.text().lines() {
        if let Some(rest) = line.strip_prefix("edd_gateway_http_requests_total{") {
            let number: u64 = rest.rsplit(' ').next().unwrap().parse().unwrap();
            all += number;
            if rest.contains(&format!("status=\"{status}\"")) {
                these += number;
            }
        }
    }
    (all, these)
}

/// R9: what went wrong with an upstream can be found by the id in the client's hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_is_counted_and_logged_once_with_its_id() {
    let scripts = vec![
        (
            "/fine",
            vec![Say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")],
        ),
        ("/reset", vec![Reset]),
        ("/garbage", vec![Say("garbage\r\n\r\n"), Close]),
        ("/mute", vec![Stall]),
        (
            "/cut",
            vec![
                Say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"),
                Seen,
                Close,
            ],
        ),
    ];
    let paths: Vec<_> = scripts.iter().map(|(path, _)| *path).collect();
    let (seen, done) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let heads = Arc::new(HashMap::from_iter(
        paths.iter().map(|path| (*path, AtomicUsize::new(0))),
    ));
    let upstream = upstream("127.64.0.2", scripts, &seen, &done, &heads).await;
    let bus = Bus::start().await;
    let folder = tempfile::TempDir::new().unwrap();
    let nats = format!("--nats-url={}", bus.server.url());
    let ports = format!("--ports={}", crate::support::free_port());
    let flags = [
        "--platform-domain=localhost",
        "--container-cidrs=127.64.0.0/16",
        "--upstream-timeout=500ms",
        "--workers=1",
        &nats,
        &ports,
    ];
    let mut process = Process::start(folder.path(), 1000, &flags).await;
    let (http, admin) = (process.addresses["http"], process.addresses["admin"]);
    bus.container("told", 1, "127.64.0.2", &[(80, upstream.address.port())])
        .await;
    let tried = AtomicUsize::new(0);
    eventually("the container is routed", || async {
        tried.fetch_add(1, Ordering::SeqCst);
        let mut asker = Asker::dial(Speaks::H1, http).await;
        let heard = asker.ask(&Question::get(HOST, "/fine"), &seen).await;
        heard.status == 200
    })
    .await;

    let mut asked = tried.into_inner() as u64;
    for path in paths {
        for speaks in [Speaks::H1, Speaks::H2] {
            seen.forget_permits(usize::MAX);
            let mut asker = Asker::dial(speaks, http).await;
            let heard = asker.ask(&Question::get(HOST, path), &seen).await;
            asked += 1;
            let status = match path {
                "/reset" | "/garbage" => 502,
                "/mute" => 504,
                _ => 200,
            };
            assert_eq!(heard.status, status, "{path} by {speaks:?}");
            let id = heard.field("x-request-id").expect("an id");
            let line = process.line(id).await;
            let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            let said = |name: &str| {
                let value = line.get(name).or_else(|| line.get("fields")?.get(name));
                value.cloned().unwrap_or_default()
            };
            assert_eq!(said("kind"), "http", "{line}");
            assert_eq!(said("request_id"), id, "{line}");
            assert_eq!(said("status"), status, "{line}");
            assert_eq!(said("path"), path, "{line}");
            assert_eq!(
                said("upstream"),
                upstream.address.to_string().as_str(),
                "{line}"
            );
            let version = if speaks == Speaks::H1 { "1.1" } else { "2" };
            assert_eq!(said("version"), version, "{line}");
            let noted = said("note") != "-";
            assert_eq!(noted, path != "/fine", "{line}");
            if path == "/cut" {
                assert_eq!((heard.end, heard.text().as_str()), (End::Cut, "abc"));
                assert_eq!(said("bytes_out"), 3, "{line}");
            }
        }
    }
    // Counting is not on the way of the answers.
    eventually("all are counted", || async {
        counted(admin, "504").await == (asked, 2)
    })
    .await;
    assert_eq!(counted(admin, "502").await, (asked, 4));
}
