//! The SSH server alone on a table that the test writes, and real `sshd`s as containers.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use clap::Parser;
use edd_gateway::config::{Config, ServeArgs};
use edd_gateway::drain::Drain;
use edd_gateway::listener::{Doors, Gate, RequestGate};
use edd_gateway::shared::Shared;
use edd_gateway::ssh::{Limits, SshServer};
use edd_gateway::telemetry::{AccessLog, Metrics};
use edd_gateway::tls::CertStore;
use edd_gateway::upstream::Fleet;
use edd_route::{
    ContainerId, ContainerSpec, KeySpec, Origin, RouteTable, RunSpec, Settings, TableWriter, UserId,
};
use prometheus_client::registry::Registry;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, HashAlg, PrivateKey};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::support::{DEADLINE, eventually, program};

/// The owner of every container that a test does not give to somebody else.
pub(crate) const OWNER: UserId = UserId(7);

/// The SSH server, its table and its folder.
pub(crate) struct Rig {
    pub(crate) folder: TempDir,
    pub(crate) shared: Arc<Shared>,
    pub(crate) server: SshServer,
    pub(crate) address: SocketAddr,
    writer: Mutex<TableWriter>,
    registry: Registry,
    ssh_port: u16,
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    serve: ServeArgs,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_with(Limits::default(), &[]).await
    }

    /// Connections that live; the listener, which a drain waits for too, is none.
    pub(crate) fn connections(&self) -> usize {
        self.shared.drain.connections().saturating_sub(1)
    }

    /// A server with other limits and more flags; the owner has the key of [`Rig::key`].
    pub(crate) async fn start_with(limits: Limits, flags: &[&str]) -> Self {
        Self::start_tuned(limits, flags, |_| {}).await
    }

    /// [`Self::start_with`], changing what no flag can.
    pub(crate) async fn start_tuned(
        limits: Limits,
        flags: &[&str],
        tune: impl FnOnce(&mut Config),
    ) -> Self {
        let folder = TempDir::new().expect("a folder");
        let state = folder.path().join("state").display().to_string();
        let ssh_port = free_port();
        let port = ssh_port.to_string();
        let certs = folder.path().join("certs");
        std::fs::create_dir_all(&certs).expect("a folder");
        let certs = certs.display().to_string();
        let usual = [
            "edd-gateway",
            "--certs-dir",
            &certs,
            "--container-ssh-port",
            &port,
            "--platform-domain",
            "localhost",
            "--state-dir",
            &state,
        ];
        let args = Flags::parse_from(usual.iter().chain(flags));
        let mut config = args.serve.check().expect("good flags");
        tune(&mut config);
        let table = RouteTable::empty(Settings::new("localhost", vec![]));
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let gate = Gate::new(
            config.max_connections,
            config.max_connections_per_ip,
            config.max_upstream_connections,
        );
        let runtime = tokio::runtime::Handle::current();
        let shared = Arc::new(Shared {
            certs: Arc::new(CertStore::open(&config, metrics.clone()).expect("certificates")),
            request_gate: RequestGate::new(config.request_rate),
            fleet: Fleet::new(gate.clone(), metrics.clone(), Vec::new(), runtime),
            gate,
            config,
            table: ArcSwap::from_pointee(table.clone()),
            metrics,
            access: AccessLog::off(),
            doors: Doors::new(),
            drain: Drain::new(),
        });
        shared.doors.open();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = SshServer::start_with(Arc::clone(&shared), listener, limits)
            .await
            .expect("a start");
        let rig = Self {
            folder,
            shared,
            server,
            address,
            writer: Mutex::new(TableWriter::new(table)),
            registry,
            ssh_port,
        };
        let fingerprint = rig.new_key("owner");
        rig.put_keys(OWNER, &[(1, &fingerprint)]);
        let host = PrivateKey::read_openssh_file(rig.path("state/ssh_host_ed25519")).unwrap();
        let host = host.public_key().to_openssh().unwrap();
        let known = format!("[127.0.0.1]:{} {host}\n", address.port());
        std::fs::write(rig.path("known_hosts"), known).unwrap();
        rig
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the folder as text.
    pub(crate) fn at(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Makes a key file `name` and tells its fingerprint.
    pub(crate) fn new_key(&self, name: &str) -> String {
        let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(name))
            .unwrap();
        file.write_all(key.to_openssh(LineEnding::LF).unwrap().as_bytes())
            .unwrap();
        key.public_key().fingerprint(HashAlg::Sha256).to_string()
    }

    /// The owner's key.
    pub(crate) fn key(&self) -> PrivateKey {
        PrivateKey::read_openssh_file(self.path("owner")).unwrap()
    }

    /// Changes the table as the control path does.
    pub(crate) fn change(&self, change: impl FnOnce(&mut TableWriter)) {
        let mut writer = self.writer.lock().unwrap();
        change(&mut writer);
        if let Some(published) = writer.publish(0) {
            self.shared.swap(published);
        }
    }

    pub(crate) fn put_keys(&self, user: UserId, keys: &[(i64, &str)]) {
        let specs = keys.iter().map(|(id, fingerprint)| KeySpec {
            id: *id,
            fingerprint: (*fingerprint).to_owned(),
            origin: origin(),
        });
        self.change(|writer| writer.put_keys(user, specs.collect()));
    }

    /// Puts a container in force; `edit` says what is not usual about it.
    pub(crate) fn put(
        &self,
        id: &str,
        address: IpAddr,
        host_key: Option<&str>,
        edit: impl FnOnce(&mut ContainerSpec),
    ) {
        let mut spec = ContainerSpec {
            id: ContainerId::new(id).unwrap(),
            owner: OWNER,
            name: id.to_owned(),
            running: Some(RunSpec {
                address,
                ssh_host_key: host_key.map(str::to_owned),
                start: 1,
                origin: origin(),
            }),
            ssh_enabled: true,
            https_enabled: true,
            rules: vec![],
            origin: origin(),
        };
        edit(&mut spec);
        self.change(|writer| writer.put_container(spec));
    }

    /// A container with a real sshd, in force, its host key announced.
    pub(crate) async fn container(&self, id: &str) -> Sshd {
        let sshd = self.sshd(id, &[]).await;
        self.put(id, sshd.address, Some(&sshd.host_key), |_| {});
        sshd
    }

    /// A real sshd on an address of its own that lets the gateway's key in.
    pub(crate) async fn sshd(&self, name: &str, options: &[&str]) -> Sshd {
        Sshd::start(
            &self.path(name),
            SocketAddr::new(free_address(), self.ssh_port),
            &self.server.public_key_line(),
            options,
        )
        .await
    }

    /// Where a container at `address` must listen.
    pub(crate) fn target(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, self.ssh_port)
    }

    /// The user name for a container: sshd without root lets in only its own user.
    pub(crate) fn login(&self, id: &str) -> String {
        format!("{}.{id}", unix_user())
    }

    /// Options that make OpenSSH's clients independent of this machine.
    pub(crate) fn options(&self, key: &str) -> Vec<String> {
        let mut options: Vec<String> = vec!["-F".into(), "none".into()];
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=60",
            "GlobalKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=yes",
            &format!("UserKnownHostsFile={}", self.at("known_hosts")),
            &format!("IdentityFile={}", self.at(key)),
        ] {
            options.extend(["-o".into(), option.to_owned()]);
        }
        options
    }

    /// `ssh` to a container with the owner's key; add what it shall run.
    pub(crate) fn ssh(&self, id: &str) -> Command {
        self.ssh_as(&self.login(id), "owner", &[])
    }

    /// `ssh` with any user name, key file and options.
    pub(crate) fn ssh_as(&self, user: &str, key: &str, options: &[&str]) -> Command {
        let mut command = command("ssh");
        command
            .args(self.options(key))
            .args(options)
            .args(["-o", "LogLevel=ERROR"])
            .args(["-p", &self.address.port().to_string(), "-l", user])
            .arg("127.0.0.1");
        command
    }

    /// `ssh` over a master connection, which `master` has made.
    pub(crate) fn ssh_over(&self, id: &str) -> Command {
        let socket = format!("ControlPath={}", self.at("master"));
        self.ssh_as(&self.login(id), "owner", &["-o", &socket])
    }

    /// A master connection that others share.
    pub(crate) async fn master(&self, id: &str) -> Child {
        let socket = format!("ControlPath={}", self.at("master"));
        let options = ["-o", &socket, "-o", "ControlMaster=yes", "-N"];
        let child = self
            .ssh_as(&self.login(id), "owner", &options)
            .stdin(Stdio::null())
            .spawn()
            .expect("ssh");
        let socket = self.path("master");
        eventually("the master's socket", || async { socket.exists() }).await;
        child
    }

    /// The metrics as text.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

/// A container's sshd; ends with its holder, its sessions with their connections.
pub(crate) struct Sshd {
    pub(crate) address: IpAddr,
    /// Its public line.
    pub(crate) host_key: String,
    pub(crate) child: Child,
}

impl Sshd {
    /// An sshd at `at` with its files in `folder`, which lets the key `authorized` in.
    pub(crate) async fn start(
        folder: &Path,
        at: SocketAddr,
        authorized: &str,
        options: &[&str],
    ) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        // Wanted by an sshd that runs as root; elsewhere it cannot be made and is not needed.
        let _ = std::fs::create_dir_all("/run/sshd");
        let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        let host_key = key.public_key().to_openssh().unwrap();
        key.write_openssh_file(folder.join("host"), LineEnding::LF)
            .unwrap();
        std::fs::write(folder.join("authorized"), format!("{authorized}\n")).unwrap();
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let mut command = Command::new(program("sshd", "EDD_SSHD"));
        command
            .args(["-D", "-e", "-f", "/dev/null"])
            .arg("-h")
            .arg(folder.join("host"));
        let authorized = format!("AuthorizedKeysFile={}", folder.join("authorized").display());
        let listen = format!("ListenAddress={at}");
        // The start-up files of whoever runs the tests may take any time.
        let home = format!("SetEnv=HOME={}", folder.display());
        let usual = [
            &*listen,
            &authorized,
            &home,
            "AcceptEnv=EDD_*",
            "MaxStartups=100:30:200",
            "PasswordAuthentication=no",
            "PermitRootLogin=yes",
            "PermitUserRC=no",
            "PidFile=none",
            "PrintMotd=no",
            "StrictModes=no",
            "Subsystem=sftp internal-sftp",
            "UsePAM=no",
        ];
        // The first of several is the one that counts.
        for option in options.iter().chain(&usual) {
            command.args(["-o", option]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("sshd");
        eventually("sshd listens", || async {
            TcpStream::connect(at).await.is_ok()
        })
        .await;
        Self {
            address: at.ip(),
            host_key,
            child,
        }
    }
}

/// A program that ends with its holder.
pub(crate) fn command(name: &str) -> Command {
    let mut command = Command::new(program(name, ""));
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

/// Runs to the end, in bounded time.
pub(crate) async fn output(command: &mut Command) -> Output {
    timeout(2 * DEADLINE, command.output())
        .await
        .expect("it ends in time")
        .expect("it starts")
}

/// Standard output of a command that must succeed.
pub(crate) async fn stdout(command: &mut Command) -> String {
    let output = output(command).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Waits for the end of a process, in bounded time.
pub(crate) async fn exit_code(child: &mut Child) -> Option<i32> {
    timeout(DEADLINE, child.wait())
        .await
        .expect("it ends in time")
        .expect("it was running")
        .code()
}

/// Reads from a pipe until `text` has come.
pub(crate) async fn until_text(pipe: &mut (impl tokio::io::AsyncRead + Unpin), text: &str) {
    let mut seen = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            let byte = pipe.read_u8().await.expect("more output");
            seen.push(byte);
        }
    };
    if timeout(DEADLINE, read).await.is_err() {
        panic!("{text:?} never came: {:?}", String::from_utf8_lossy(&seen));
    }
}

/// Who runs the tests.
pub(crate) fn unix_user() -> String {
    let output = std::process::Command::new("id").arg("-un").output();
    String::from_utf8(output.expect("id").stdout)
        .unwrap()
        .trim()
        .to_owned()
}

/// Bytes without a pattern that could hide a loss, the same every time.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Within `limit`, as measured from now.
pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    timeout(limit, future)
        .await
        .unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
}

/// An address of 127.64.0.0/16 that no other test has.
pub(crate) fn free_address() -> IpAddr {
    let [_, _, a, b] = rand::random::<u32>().to_be_bytes();
    Ipv4Addr::new(127, 64, a, b.clamp(1, 254)).into()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

pub(crate) fn origin() -> Origin {
    Origin::File {
        file: "test".into(),
        line: 1,
    }
}
