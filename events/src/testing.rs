//! A real `nats-server` with JetStream for integration tests, on a free port of
//! 127.0.0.1, its store in a temporary folder, ended by its process id.
//!
//! Behind the cargo feature `testing`; tests of all crates use this one. The
//! binary is the one named by `EDD_NATS_SERVER`, else the first `nats-server`
//! of `PATH`, `/usr/sbin` and `/usr/local/bin`. Everything here panics with a
//! line that says what to do, as tests want it.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a fixture fails its test by panicking"
)]

mod cloud;
mod cluster;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use async_nats::jetstream;
use edd_store::testing::port_to_keep;
use tempfile::TempDir;

pub use cloud::Cloud;
pub use cluster::NatsCluster;

use crate::connect::{NatsOptions, connect};

/// How long a server may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// A running `nats-server`; dropped, it is killed and its store removed.
#[derive(Debug)]
pub struct NatsServer {
    folder: TempDir,
    child: Option<Child>,
    port: u16,
    /// A configuration of its own, and what its variables stand for.
    env: Option<Vec<(String, String)>>,
}

impl NatsServer {
    /// Starts a server with an empty store and waits until it accepts
    /// connections.
    ///
    /// # Panics
    /// When the binary is missing or the server does not come up.
    pub async fn start() -> Self {
        Self::start_as(None).await
    }

    /// Starts a server with this configuration, whose variables come from
    /// `env`, `EDD_NATS_STORE_DIR` from this fixture; addresses stay its own. [`NatsServer::client`]
    /// knows nothing of its keys and certificates.
    ///
    /// # Panics
    /// As [`NatsServer::start`].
    pub async fn start_with(config: &str, env: Vec<(String, String)>) -> Self {
        Self::start_as(Some((config, env))).await
    }

    async fn start_as(config: Option<(&str, Vec<(String, String)>)>) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("edd-nats-")
            .tempdir()
            .expect("a temporary folder for nats-server");
        let mut server = Self {
            folder,
            child: None,
            port: 0,
            env: None,
        };
        if let Some((config, env)) = config {
            fs::write(server.config_file(), config).expect("a configuration file");
            let store = server.folder.path().join("store").display().to_string();
            let env = env.into_iter();
            server.env = Some(env.chain([("EDD_NATS_STORE_DIR".into(), store)]).collect());
        }
        server.spawn().await;
        server
    }

    /// `nats://127.0.0.1:PORT`, the same over restarts.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The client port, the same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder that goes with the server.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("nats.conf")
    }

    /// The process id while the server runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A connected client.
    ///
    /// # Panics
    /// When the server cannot be reached in time.
    pub async fn client(&self) -> async_nats::Client {
        let options = NatsOptions {
            url: self.url(),
            name: "test".into(),
            ..NatsOptions::default()
        };
        let client = connect(&options).await.expect("options of a client");
        tokio::time::timeout(START_TIMEOUT, client.flush())
            .await
            .expect("nats-server answers in time")
            .expect("a flush of a live connection");
        client
    }

    /// A connected JetStream context.
    ///
    /// # Panics
    /// As [`NatsServer::client`].
    pub async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }

    /// Kills the server (no clean end: what it promised must be on disk) and
    /// keeps its store and port for [`NatsServer::resume`].
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only for a process that is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts the stopped server again on the same port and store.
    ///
    /// # Panics
    /// When it is running, or does not come up.
    pub async fn resume(&mut self) {
        assert!(self.child.is_none(), "nats-server is running already");
        self.spawn().await;
    }

    /// Removes all that the stopped server kept.
    ///
    /// # Panics
    /// When it is running, or its store cannot be removed.
    pub fn wipe(&mut self) {
        assert!(self.child.is_none(), "nats-server is running");
        fs::remove_dir_all(self.folder.path().join("store")).expect("its store is removed");
    }

    /// [`NatsServer::stop`] and [`NatsServer::resume`].
    ///
    /// # Panics
    /// When the server does not come up again.
    pub async fn restart(&mut self) {
        self.stop();
        self.resume().await;
    }

    async fn spawn(&mut self) {
        let binary = find_binary();
        let folder = self.folder.path().to_owned();
        let log = folder.join("log");
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let port = match self.port {
                0 => port_to_keep(),
                port => port,
            };
            let mut command = Command::new(&binary);
            if let Some(env) = &self.env {
                command.arg("-c").arg(self.config_file());
                command.envs(env.iter().map(|(name, value)| (name, value)));
            } else {
                command.arg("-js").arg("-sd").arg(folder.join("store"));
            }
            let mut child = command
                .args(["-a", "127.0.0.1", "-p", &port.to_string()])
                .arg("--ports_file_dir")
                .arg(&folder)
                .arg("-l")
                .arg(&log)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("cannot start {}: {error}", binary.display()));
            let ports_file = folder.join(format!("nats-server_{}.ports", child.id()));
            loop {
                if let Some(port) = read_port(&ports_file)
                    && tokio::net::TcpStream::connect(("127.0.0.1", port))
                        .await
                        .is_ok()
                {
                    self.port = port;
                    self.child = Some(child);
                    return;
                }
                if child.try_wait().is_ok_and(|status| status.is_some()) {
                    break;
                }
                if Instant::now() > deadline {
                    let _ = child.kill();
                    let _ = child.wait();
                    panic!(
                        "nats-server is not up after {START_TIMEOUT:?}: {}",
                        tail(&log)
                    );
                }
                tokio::time::sleep(POLL).await;
            }
            // It ended by itself: on a restart the port may still be held for a
            // moment by the connections of its predecessor, and before somebody
            // else may have been quicker.
            assert!(
                Instant::now() < deadline,
                "nats-server ends at once: {}",
                tail(&log)
            );
            tokio::time::sleep(POLL * 10).await;
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn find_binary() -> PathBuf {
    if let Some(path) = env::var_os("EDD_NATS_SERVER") {
        let path = PathBuf::from(path);
        assert!(
            path.is_file(),
            "EDD_NATS_SERVER names {}, which is no file",
            path.display()
        );
        return path;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/bin"].map(PathBuf::from))
        .map(|folder| folder.join("nats-server"))
        .find(|file| file.is_file())
        .expect("no nats-server found: run `cargo xtask test`, which fetches it")
}

/// The client port of the server's ports file, once it is written whole.
fn read_port(file: &Path) -> Option<u16> {
    let text = fs::read_to_string(file).ok()?;
    let (_, rest) = text.split_once("://127.0.0.1:")?;
    let (digits, _) = rest.split_once('"')?;
    digits.parse().ok()
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
