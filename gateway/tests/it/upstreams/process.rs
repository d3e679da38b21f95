//! Upstreams that are processes of their own, so that they can be killed.
//!
//! The test binary starts itself again as a server.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use axum::Router;
use axum::extract::State;
use axum::http::Method;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::support::DEADLINE;

/// A server process; killed when dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts one on `address` that answers with `name`; bodies of POSTs become lines of `log`.
    pub(super) async fn start(name: &str, address: &str, log: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "upstreams::process::serve_as_upstream"])
            .args(["--ignored", "--nocapture"])
            .env(NAME, name)
            .env(ADDRESS, address)
            .env(LOG, log)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let address = async {
            loop {
                let line = lines
                    .next_line()
                    .await
                    .expect("a line")
                    .expect("it listens");
                if let Some((_, address)) = line.split_once("listening on ") {
                    return address.trim().parse().expect("an address");
                }
            }
        };
        let address = timeout(DEADLINE, address)
            .await
            .expect("it listens in time");
        // Its output is read for as long as it lives.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { address, child }
    }

    /// SIGKILL: its connections are reset or end in the middle.
    pub(super) async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }
}

const NAME: &str = "EDD_TEST_UPSTREAM_NAME";
const ADDRESS: &str = "EDD_TEST_UPSTREAM_ADDRESS";
const LOG: &str = "EDD_TEST_UPSTREAM_LOG";

/// Not a test: what [`Server`] runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a server for other tests"]
async fn serve_as_upstream() {
    let Ok(name) = std::env::var(NAME) else {
        return;
    };
    let address = std::env::var(ADDRESS).expect("an address");
    let log = std::env::var(LOG).expect("a file");
    let listener = TcpListener::bind(&address).await.expect("a listener");
    println!(
        "listening on {}",
        listener.local_addr().expect("an address")
    );
    let app = Router::new().fallback(answer).with_state((name, log));
    axum::serve(listener, app).await.expect("a server");
}

async fn answer(
    State((name, log)): State<(String, String)>,
    method: Method,
    body: String,
) -> String {
    if method == Method::POST {
        let mut options = tokio::fs::OpenOptions::new();
        let file = options.append(true).create(true).open(&log);
        let mut file = file.await.expect("a log");
        file.write_all(format!("{body}\n").as_bytes())
            .await
            .expect("written");
        file.flush().await.expect("written");
    }
    name
}
