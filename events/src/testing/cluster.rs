//! Three `nats-server`s that are one: JetStream with replicas, and a leader to
//! lose.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use async_nats::jetstream;
use edd_store::testing::port_to_keep;
use tempfile::TempDir;

use super::{find_binary, tail};
use crate::connect::{NatsOptions, connect};
use crate::stream::is_missing;

const NODES: usize = 3;
/// How long the cluster may take to elect its leaders.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// Ports are chosen first and taken later: somebody else may be quicker.
const TRIES: usize = 3;

/// A running cluster; dropped, it is killed and its stores removed.
#[derive(Debug)]
pub struct NatsCluster {
    folder: TempDir,
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    port: u16,
    cluster: u16,
    child: Option<Child>,
}

impl NatsCluster {
    /// Starts three servers with empty stores and waits until JetStream answers.
    ///
    /// # Panics
    /// When the binary is missing or the cluster does not come up.
    pub async fn start() -> Self {
        for _ in 1..TRIES {
            if let Some(cluster) = Self::try_start().await {
                return cluster;
            }
        }
        Self::try_start().await.expect("a cluster of nats-servers")
    }

    async fn try_start() -> Option<Self> {
        let folder = tempfile::Builder::new()
            .prefix("edd-nats-cluster-")
            .tempdir()
            .expect("a temporary folder for nats-server");
        let ports: Vec<u16> = (0..NODES * 2).map(|_| port_to_keep()).collect();
        let nodes = ports
            .chunks(2)
            .map(|pair| Node {
                port: pair[0],
                cluster: pair[1],
                child: None,
            })
            .collect();
        let mut cluster = Self { folder, nodes };
        for n in 0..NODES {
            cluster.spawn(n);
        }
        let client = cluster.client().await;
        let deadline = Instant::now() + START_TIMEOUT;
        let js = jetstream::new(client);
        loop {
            // Answered by the leader only.
            if matches!(js.get_stream("NONE").await, Err(error) if is_missing(&error)) {
                return Some(cluster);
            }
            let ended = |node: &mut Node| {
                let child = node.child.as_mut();
                child.is_some_and(|child| child.try_wait().is_ok_and(|s| s.is_some()))
            };
            if cluster.nodes.iter_mut().any(ended) || Instant::now() > deadline {
                println!("nats-server: {}", tail(&cluster.log(0)));
                return None;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The URLs of all three, comma-separated.
    #[must_use]
    pub fn url(&self) -> String {
        let urls = self.nodes.iter().map(|node| {
            let port = node.port;
            format!("nats://127.0.0.1:{port}")
        });
        urls.collect::<Vec<_>>().join(",")
    }

    /// A client of all three.
    ///
    /// # Panics
    /// For options that are bad, and these are not.
    pub async fn client(&self) -> async_nats::Client {
        let options = NatsOptions {
            url: self.url(),
            name: "test".into(),
            ..NatsOptions::default()
        };
        connect(&options).await.expect("options of a client")
    }

    /// A JetStream context of all three.
    ///
    /// # Panics
    /// As [`NatsCluster::client`].
    pub async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }

    /// Which server leads a stream.
    ///
    /// # Panics
    /// When nobody does for a minute.
    pub async fn leader(&self, stream: &str) -> usize {
        let js = self.jetstream().await;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(stream) = js.get_stream(stream).await
                && let Some(cluster) = &stream.cached_info().cluster
                && let Some(leader) = &cluster.leader
                && let Some(n) = leader.strip_prefix('n').and_then(|n| n.parse().ok())
            {
                return n;
            }
            assert!(Instant::now() < deadline, "nobody leads {stream}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills a server; its store and ports stay for [`NatsCluster::resume`].
    pub fn stop(&mut self, n: usize) {
        if let Some(mut child) = self.nodes.get_mut(n).and_then(|node| node.child.take()) {
            // Both fail only for a process that is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a stopped server again and waits until it accepts connections.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn resume(&mut self, n: usize) {
        let deadline = Instant::now() + START_TIMEOUT;
        self.spawn(n);
        let port = self.nodes[n].port;
        while tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err()
        {
            let child = self.nodes[n].child.as_mut();
            if child.is_none_or(|child| child.try_wait().is_ok_and(|s| s.is_some())) {
                // The port may still be held by connections of its predecessor.
                self.spawn(n);
            }
            assert!(Instant::now() < deadline, "{}", tail(&self.log(n)));
            tokio::time::sleep(POLL).await;
        }
    }

    fn log(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("log{n}"))
    }

    fn spawn(&mut self, n: usize) {
        let routes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| format!("nats://127.0.0.1:{}", node.cluster))
            .collect();
        let log = self.log(n);
        let store = self.folder.path().join(format!("store{n}"));
        let node = &mut self.nodes[n];
        // Fails only where the folder is gone.
        let _ = File::options().create(true).append(true).open(&log);
        let child = Command::new(find_binary())
            .args(["-js", "-a", "127.0.0.1", "-p", &node.port.to_string()])
            .args(["--name", &format!("n{n}")])
            .args(["--cluster_name", "edd"])
            .args(["--cluster", &format!("nats://127.0.0.1:{}", node.cluster)])
            .args(["--routes", &routes.join(",")])
            .arg("-sd")
            .arg(store)
            .arg("-l")
            .arg(log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        node.child = Some(child.expect("nats-server starts"));
    }
}

impl Drop for NatsCluster {
    fn drop(&mut self) {
        for n in 0..self.nodes.len() {
            self.stop(n);
        }
    }
}
