//! A gateway in this process, on free ports of loopback, in a folder of its own.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use clap::Parser;
use edd_daemon::cli::Exit;
use edd_gateway::app::{self, Addresses};
use edd_gateway::config::{Config, ServeArgs};
use edd_gateway::listener::Inherited;
use edd_gateway::shared::Shared;
use edd_route::RouteTable;
use edd_store::DatabaseUrl;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Bus, DEADLINE, eventually};

/// What differs from the usual gateway of a test.
#[derive(Clone)]
pub(crate) struct Options {
    /// The content of routes.yaml.
    pub(crate) routes: String,
    /// The bus to listen to.
    pub(crate) nats_url: Option<String>,
    /// How many dynamic ports.
    pub(crate) ports: usize,
    /// The folder to use again; none: a new one.
    pub(crate) folder: Option<Arc<TempDir>>,
    /// More flags.
    pub(crate) flags: Vec<String>,
    /// Changes what no flag can.
    pub(crate) tune: fn(&mut Config),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            routes: "routes: []\n".into(),
            nats_url: None,
            ports: 3,
            folder: None,
            flags: Vec::new(),
            tune: |_| {},
        }
    }
}

impl Options {
    pub(crate) fn routes(text: impl Into<String>) -> Self {
        Self {
            routes: text.into(),
            ..Self::default()
        }
    }

    pub(crate) fn bus(mut self, bus: &Bus) -> Self {
        self.nats_url = Some(bus.server.url());
        self
    }

    pub(crate) fn flag(mut self, flag: &str, value: impl Into<String>) -> Self {
        self.flags.extend([flag.to_owned(), value.into()]);
        self
    }
}

/// The gateway; its folder goes with the last one who holds it.
pub(crate) struct Gateway {
    pub(crate) addresses: Addresses,
    pub(crate) admin: SocketAddr,
    pub(crate) shared: Arc<Shared>,
    pub(crate) folder: Arc<TempDir>,
    shutdown: CancellationToken,
    ended: JoinHandle<()>,
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    serve: ServeArgs,
}

impl Gateway {
    /// Starts it, with other ports if those that were free are not any more: a program that another
    /// test is just starting may hold on to them for a moment.
    pub(crate) async fn start(options: Options) -> Self {
        for _ in 0..PORT_TRIES {
            match Self::try_start(options.clone()).await {
                Ok(gateway) => return gateway,
                Err(exit) if format!("{exit:?}").contains("already in use") => {}
                Err(exit) => panic!("{exit:?}"),
            }
        }
        panic!("no free ports");
    }

    /// Starts it; the platform domain is `localhost`, containers live in 127.64.0.0/16.
    pub(crate) async fn try_start(options: Options) -> Result<Self, Exit> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = options
            .folder
            .unwrap_or_else(|| Arc::new(TempDir::new().expect("a folder")));
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::create_dir_all(path("certs")).expect("a folder");
        std::fs::write(path("routes.yaml"), &options.routes).expect("a file");
        let ports: Vec<_> = (0..options.ports.max(1))
            .map(|_| free_port().to_string())
            .collect();
        let any = "127.0.0.1:0";
        let mut flags: Vec<String> = [
            ("--routes", path("routes.yaml")),
            ("--certs-dir", path("certs")),
            ("--state-dir", path("state")),
            ("--database-url", database_url(&folder).await),
            ("--http-addr", any.into()),
            ("--https-addr", any.into()),
            ("--ssh-addr", any.into()),
            ("--admin-addr", any.into()),
            ("--ports", ports.join(",")),
            ("--ports-addr", "127.0.0.1".into()),
            ("--platform-domain", "localhost".into()),
            ("--container-cidrs", "127.64.0.0/16".into()),
            ("--container-ssh-port", "2022".into()),
            ("--workers", "2".into()),
            ("--drain-timeout", "2s".into()),
        ]
        .into_iter()
        .filter(|(flag, _)| !options.flags.iter().any(|given| given == flag))
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        if let Some(url) = options.nats_url {
            flags.extend(["--nats-url".into(), url]);
        }
        flags.extend(options.flags);
        let args = Flags::parse_from(std::iter::once("edd-gateway".to_owned()).chain(flags));
        let shutdown = CancellationToken::new();
        let mut config = args.serve.check()?;
        (options.tune)(&mut config);
        let running = app::start(config, Inherited::default(), shutdown.clone()).await?;
        Ok(Self {
            addresses: running.addresses.clone(),
            admin: running.addresses.admin,
            shared: Arc::clone(&running.shared),
            folder,
            shutdown,
            ended: tokio::spawn(running.ended()),
        })
    }

    /// SIGTERM and the wait for its end.
    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, &mut self.ended)
            .await
            .expect("an end")
            .expect("no panic");
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(mut self) {
        tokio::time::timeout(DEADLINE, &mut self.ended)
            .await
            .expect("an end")
            .expect("no panic");
    }

    /// Begins the drain without waiting.
    pub(crate) fn drain(&self) {
        self.shutdown.cancel();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The development CA's certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.path("state/dev-certs/dev-ca.crt")
    }

    /// The n-th dynamic port's address.
    pub(crate) fn port(&self, n: usize) -> SocketAddr {
        self.addresses.ports[n]
    }

    pub(crate) fn table(&self) -> Arc<RouteTable> {
        self.shared.table()
    }

    /// Waits until the table in force is so.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&RouteTable) -> bool) {
        eventually(what, || async { is_so(&self.table()) }).await;
    }
}

/// A file in the folder, or with EDD_TEST_ENGINE=postgres a database of that server that is named
/// after the folder.
async fn database_url(folder: &TempDir) -> String {
    match edd_store::testing::database_of(folder.path()).await {
        DatabaseUrl::Sqlite(_) => {
            format!("sqlite://{}", folder.path().join("gateway.db").display())
        }
        url => url.to_string(),
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A port that is free now and that the system gives to nobody who asks for any.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes that run at once begin at different places.
    let begin = std::process::id() * 97;
    loop {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(10_000 + (begin + step) % 20_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Writes a file as `kubectl` and editors do: beside it, then renamed over it.
pub(crate) fn replace_file(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).expect("written");
    std::fs::rename(&beside, path).expect("renamed");
}

const PORT_TRIES: usize = 4;
