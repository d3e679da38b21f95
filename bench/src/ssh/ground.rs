//! A gateway, a container's sshd behind it, and a client that both let in.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::cost::Cost;
use crate::site::{Engine, Site, free_port};

/// The container's id, and with it the user name at the gateway.
const CONTAINER: &str = "box";

/// Nothing that is waited for here takes longer.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// How often something that should come is looked for.
const POLL: Duration = Duration::from_millis(20);

/// How to reach the container.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    Direct,
    Gateway,
}

impl Way {
    pub(super) const BOTH: [Self; 2] = [Self::Direct, Self::Gateway];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Gateway => "gateway",
        }
    }
}

/// Dropped, everything ends at once.
pub(super) struct Ground {
    site: Site,
    sshd: Child,
    target: SocketAddr,
    user: String,
}

impl Ground {
    /// Starts all of it and waits until the way through the gateway works.
    pub(super) async fn prepare(gateway: PathBuf, guest: SocketAddr) -> Result<Self> {
        let mut site = Site::prepare(gateway, Engine::Sqlite, guest).await?;
        let port = free_port()?;
        site.flags = vec![format!("--container-ssh-port={port}")];
        let folder = site.folder().to_owned();
        for name in ["client", "host"] {
            keygen(&["-q", "-t", "ed25519", "-N", "", "-f"], &folder.join(name)).await?;
        }
        let listed = keygen(&["-l", "-f"], &folder.join("client.pub")).await?;
        let fingerprint = listed.split(' ').nth(1).context("no fingerprint")?;
        let public_key = std::fs::read_to_string(folder.join("client.pub"))?;
        site.start()?;
        site.until_ready().await?;
        // Both may log in: the client, and the gateway on its behalf.
        let own = std::fs::read_to_string(folder.join("data/ssh_client_ed25519.pub"))?;
        std::fs::write(folder.join("authorized"), format!("{public_key}\n{own}\n"))?;
        let target = SocketAddr::new(guest.ip(), port);
        let sshd = sshd(&folder, target)?;
        let publisher = &site.publisher;
        let mut acks = publisher.create(CONTAINER, &[], 1).await?;
        acks.extend(
            publisher
                .let_in(CONTAINER, public_key.trim(), fingerprint)
                .await?,
        );
        for ack in acks {
            ack.await.context("the stream did not take an event")?;
        }
        let user = Command::new("id").arg("-un").output().await?;
        let ground = Self {
            site,
            sshd,
            target,
            user: String::from_utf8(user.stdout)?.trim().to_owned(),
        };
        ground.until_let_in().await?;
        Ok(ground)
    }

    async fn until_let_in(&self) -> Result<()> {
        let began = Instant::now();
        for way in Way::BOTH {
            loop {
                let reachable = TcpStream::connect(self.address(way)).await.is_ok();
                let mut ssh = self.ssh(way, &[]);
                ssh.arg("true").stdin(Stdio::null());
                if reachable && ssh.status().await?.success() {
                    break;
                }
                ensure!(began.elapsed() < LIMIT, "no log-in, {}", way.name());
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Where a client goes.
    pub(super) fn address(&self, way: Way) -> SocketAddr {
        match way {
            Way::Direct => self.target,
            Way::Gateway => SocketAddr::from(([127, 0, 0, 1], self.site.ssh)),
        }
    }

    /// `ssh` to the container, without a command yet.
    pub(super) fn ssh(&self, way: Way, options: &[&str]) -> Command {
        let mut command = self.client("ssh", way, options);
        let address = self.address(way);
        command.args(["-p", &address.port().to_string()]);
        command.args(["-l", &self.login(way), &address.ip().to_string()]);
        command
    }

    /// `sftp` to the container, with commands from the standard input.
    pub(super) fn sftp(&self, way: Way) -> Command {
        let mut command = self.client("sftp", way, &["-b", "-"]);
        let address = self.address(way);
        command.args(["-P", &address.port().to_string()]);
        command.arg(format!("{}@{}", self.login(way), address.ip()));
        command
    }

    fn client(&self, program: &str, _way: Way, options: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(["-F", "/dev/null"]).args(options);
        let key = self.folder().join("client");
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "LogLevel=ERROR",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            &format!("IdentityFile={}", key.display()),
        ] {
            command.args(["-o", option]);
        }
        command.kill_on_drop(true);
        command
    }

    fn login(&self, way: Way) -> String {
        match way {
            Way::Direct => self.user.clone(),
            Way::Gateway => format!("{}.{CONTAINER}", self.user),
        }
    }

    /// A folder for whatever is transferred.
    pub(super) fn folder(&self) -> &Path {
        self.site.folder()
    }

    /// Processor time of all so far. Waits until no session is left.
    pub(super) async fn cost(&self) -> Result<Cost> {
        let gateway = self.site.process_id().context("no gateway")?;
        let sshd = self.sshd.id().context("no sshd")?;
        Cost::so_far(gateway, sshd).await
    }

    /// Resident memory of the gateway, in KiB.
    pub(super) fn gateway_memory(&self) -> Result<u64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no VmRSS")?.parse()?)
    }

    fn proc(&self, file: &str) -> Result<String> {
        let id = self.site.process_id().context("no gateway")?;
        Ok(std::fs::read_to_string(format!("/proc/{id}/{file}"))?)
    }

    /// Ends the gateway as an operator would.
    pub(super) async fn stop(mut self) -> Result<()> {
        self.sshd.kill().await?;
        self.site.stop().await
    }
}

async fn keygen(args: &[&str], file: &Path) -> Result<String> {
    let mut command = Command::new("ssh-keygen");
    command.args(args).arg(file).stdin(Stdio::null());
    let output = timeout(LIMIT, command.output()).await??;
    ensure!(output.status.success(), "ssh-keygen: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

fn sshd(folder: &Path, listen: SocketAddr) -> Result<Child> {
    // Where Debian's separates its privileges.
    let _ = std::fs::create_dir_all("/run/sshd");
    let program = std::env::var_os("EDD_SSHD").unwrap_or_else(|| "/usr/sbin/sshd".into());
    let mut command = Command::new(program);
    command.args(["-D", "-e", "-f", "/dev/null", "-h"]);
    command.arg(folder.join("host"));
    for option in [
        format!("ListenAddress={listen}"),
        format!("AuthorizedKeysFile={}", folder.join("authorized").display()),
        "LogLevel=ERROR".to_owned(),
        "MaxSessions=1000".to_owned(),
        "MaxStartups=1000".to_owned(),
        "PermitRootLogin=yes".to_owned(),
        "PidFile=none".to_owned(),
        "StrictModes=no".to_owned(),
        "Subsystem=sftp internal-sftp".to_owned(),
        "UsePAM=no".to_owned(),
    ] {
        command.args(["-o", &option]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(folder.join("sshd.log"))?)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start sshd")
}
