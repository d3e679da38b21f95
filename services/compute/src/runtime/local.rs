//! The runtime for development: a container is a guest process, and the sshd
//! that the guest runs, on an address of its own in 127.64.0.0/16.
//!
//! No isolation: whoever may log in to such a container is a user of this
//! machine. Files are in `STATE_DIR/local/<id>/`.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use tokio::{net::TcpStream, process::Command, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Facts, Runtime, StartError, Started,
    gateway_key::GatewayKey,
    guest,
    sshd::Sshd,
    supervise::{self, Guest, NotReady},
};
use crate::store::Store;

/// Addresses tried when somebody else has one.
const ADDRESSES_TRIED: usize = 4;
/// How long a guest that says it is ready may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// What a guest gets of the service's environment: nothing that is secret.
const ENVIRONMENT: [&str; 7] = ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TMPDIR", "USER"];

/// What the runtime works with.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The binary with the `guest` subcommand: this one.
    pub guest_binary: PathBuf,
    /// Where the containers' files are; absolute.
    pub folder: PathBuf,
    /// The machine's SSH server.
    pub sshd: Option<Sshd>,
}

/// Guests on this machine.
#[derive(Debug)]
pub struct LocalRuntime {
    options: LocalOptions,
    store: Store,
    gateway_key: GatewayKey,
    /// By container; held for moments only.
    guests: Mutex<HashMap<String, Guest>>,
    tasks: TaskTracker,
    closed: CancellationToken,
}

impl LocalRuntime {
    /// A runtime without guests. Creates its folder.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(options: LocalOptions, store: Store, gateway_key: GatewayKey) -> io::Result<Self> {
        make_folder(&options.folder, 0o755)?;
        Ok(Self {
            options,
            store,
            gateway_key,
            guests: Mutex::default(),
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
        })
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<String, Guest>> {
        // Nothing panics while it is held.
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn start_one(&self, id: &str) -> Result<Started, StartError> {
        self.end(id).await;
        self.gateway_key.refresh();
        for _ in 0..ADDRESSES_TRIED {
            let address = self.store.local_address(id).await?;
            match self.start_at(id, address).await? {
                Some(started) => return Ok(started),
                None => {
                    tracing::warn!(id, %address, "somebody else has this address, trying another");
                    self.store.release_local_address(id).await?;
                }
            }
        }
        Err(StartError::Failed("no address is free".to_owned()))
    }

    /// `None`: somebody else has that address.
    async fn start_at(&self, id: &str, address: Ipv4Addr) -> Result<Option<Started>, StartError> {
        let failed = |what: &str, error: io::Error| StartError::Failed(format!("{what}: {error}"));
        let folder = self.folder(id);
        make_folder(&folder, 0o700).map_err(|error| failed("cannot create its folder", error))?;
        let mut command = self.command(id, address);
        let mut ssh_host_key = None;
        if let Some(sshd) = &self.options.sshd {
            let prepared = sshd
                .prepare(&folder, address, self.gateway_key.file())
                .map_err(|error| failed("cannot configure its SSH server", error))?;
            command.arg("--sshd").arg(&sshd.binary);
            command.arg("--sshd-config").arg(prepared.config);
            ssh_host_key = Some(prepared.host_key);
        }
        if self.closed.is_cancelled() {
            return Err(StartError::Closed);
        }
        let (guest, reports) = supervise::spawn(command, &self.tasks)
            .map_err(|error| failed("cannot start its guest", error))?;
        // Should this future be dropped, the guest ends.
        let end_on_drop = guest.stop.clone().drop_guard();
        let gone = guest.gone.clone();
        self.guests().insert(id.to_owned(), guest);
        if self.closed.is_cancelled() {
            return Err(StartError::Closed);
        }
        match reports.ready.await {
            Ok(Ok(())) => {}
            Ok(Err(NotReady::AddressInUse)) => {
                gone.cancelled().await;
                return Ok(None);
            }
            Ok(Err(NotReady::Failed(reason))) => return Err(StartError::Failed(reason)),
            Err(_) => return Err(StartError::Failed("its supervisor is gone".to_owned())),
        }
        let answer = timeout(
            CONNECT_TIMEOUT,
            TcpStream::connect((address, guest::HTTP_PORT)),
        );
        if !matches!(answer.await, Ok(Ok(_))) {
            return Err(StartError::Failed("it does not answer".to_owned()));
        }
        end_on_drop.disarm();
        Ok(Some(Started {
            external_ip: IpAddr::V4(address),
            ssh_host_key,
            ended: reports.ended.map(Result::ok).boxed(),
        }))
    }

    fn command(&self, id: &str, address: Ipv4Addr) -> Command {
        let mut command = Command::new(&self.options.guest_binary);
        command.env_clear();
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .arg("guest")
            .args(["--addr", &address.to_string(), "--name", id])
            .current_dir("/");
        command
    }

    fn folder(&self, id: &str) -> PathBuf {
        self.options.folder.join(id)
    }

    async fn end(&self, id: &str) {
        let guest = self.guests().remove(id);
        if let Some(guest) = guest {
            guest.stop.cancel();
            guest.gone.cancelled().await;
        }
    }

    async fn remove_one(&self, id: &str) -> Result<(), StartError> {
        self.end(id).await;
        match fs::remove_dir_all(self.folder(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(id, %error, "cannot remove the files of a container");
            }
            _ => {}
        }
        Ok(self.store.release_local_address(id).await?)
    }

    async fn end_all(&self) {
        self.closed.cancel();
        let guests: Vec<_> = self.guests().drain().map(|(_, guest)| guest).collect();
        for guest in &guests {
            guest.stop.cancel();
        }
        join_all(guests.iter().map(|guest| guest.gone.cancelled())).await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Runtime for LocalRuntime {
    fn facts(&self) -> Facts {
        Facts {
            http_port: guest::HTTP_PORT,
            login_user: login_user(),
        }
    }

    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Started, StartError>> {
        self.start_one(id).boxed()
    }

    fn stop<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ()> {
        self.end(id).boxed()
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), StartError>> {
        self.remove_one(id).boxed()
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        self.end_all().boxed()
    }
}

fn make_folder(folder: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(folder)
}

/// sshd of an ordinary user lets in only himself.
fn login_user() -> Option<String> {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return None;
    }
    let wanted = user.as_raw().to_string();
    let name = fs::read_to_string("/etc/passwd").ok().and_then(|users| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
            (id == wanted).then(|| name.to_owned())
        })
    });
    name.or_else(|| std::env::var("USER").ok())
}
