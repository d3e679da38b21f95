//! The processes of one run: built, started in order, waited for, and stopped in reverse.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::plan::Plan;
use crate::child;
use crate::daemon::Daemon;
use crate::http::Api;
use crate::site;
use crate::tools::{Program, Tools};
use crate::workspace::cargo;

/// What is built unless asked otherwise: optimised, without the minutes of link-time optimisation.
pub(crate) const PROFILE: &str = "dev-release";

/// How long a daemon may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// How long the gateway waits for live connections when it is told to stop.
const DRAIN: &str = "3s";

/// How long a daemon may take from SIGTERM to its end: more than the drain.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(10);

/// What cargo built, by name.
pub(crate) struct Binaries(BTreeMap<String, PathBuf>);

impl Binaries {
    /// Builds the daemons and the bench tool; cargo's own progress is on our terminal.
    pub(crate) fn build(profile: &str) -> Result<Self> {
        let packages = ["edd-auth", "edd-compute", "edd-gateway", "edd-bench"];
        Self::build_some(profile, &packages)
    }

    /// Builds some of them.
    pub(crate) fn build_some(profile: &str, packages: &[&str]) -> Result<Self> {
        let mut build = cargo();
        build.args(["build", "--profile", profile, "--locked"]);
        build.args(["--message-format", "json-render-diagnostics"]);
        for package in packages {
            build.args(["--package", package]);
        }
        let messages = child::stdout(&mut build, "cargo build")?;
        let built = String::from_utf8_lossy(&messages)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|message| {
                let name = message["target"]["name"].as_str()?.to_owned();
                Some((name, PathBuf::from(message["executable"].as_str()?)))
            })
            .collect();
        Ok(Self(built))
    }

    /// The path of one.
    pub(crate) fn path(&self, name: &str) -> Result<&Path> {
        let path = self.0.get(name).map(PathBuf::as_path);
        path.with_context(|| format!("cargo built no {name}"))
    }
}

/// Everything that runs. Dropped, it ends what still runs, the gateway first.
pub(crate) struct Stack {
    pub(crate) plan: Plan,
    pub(crate) gateway: Daemon,
    pub(crate) compute: Daemon,
    pub(crate) auth: Daemon,
    pub(crate) nats: Daemon,
    /// After the daemons, so that the folder is ours until the last has ended.
    _lock: Lock,
}

impl Stack {
    /// Starts all daemons on the plan's data folder and waits until each is ready.
    pub(crate) fn start(
        plan: Plan,
        lock: Lock,
        binaries: &Binaries,
        tools: &Tools,
    ) -> Result<Self> {
        let logs = plan.logs();
        for folder in [&logs, &plan.data.join("nats"), &plan.data.join("certs")] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        for log in fs::read_dir(&logs)
            .context("cannot list the logs")?
            .flatten()
        {
            // The logs are those of this run.
            let _ = fs::remove_file(log.path());
        }
        plan.write_routes()?;
        site::start(loopback(plan.ports.site))?;
        let nats = start_nats(&plan, tools)?;
        let mut auth = start_auth(&plan, binaries, tools)?;
        let mut gateway = start_gateway(&plan, binaries, tools)?;
        let mut compute = start_compute(&plan, binaries, tools)?;
        healthy(&mut auth, plan.ports.auth_admin, "/healthz")?;
        healthy(&mut gateway, plan.ports.admin, "/readyz")?;
        healthy(&mut compute, plan.ports.compute_admin, "/healthz")?;
        Ok(Self {
            plan,
            gateway,
            compute,
            auth,
            nats,
            _lock: lock,
        })
    }

    /// auth's REST API.
    pub(crate) fn auth_api(&self) -> Api {
        Api::new(loopback(self.plan.ports.auth))
    }

    /// compute's REST API.
    pub(crate) fn compute_api(&self) -> Api {
        Api::new(loopback(self.plan.ports.compute))
    }

    /// The gateway's admin endpoint.
    pub(crate) fn admin_api(&self) -> Api {
        Api::new(loopback(self.plan.ports.admin))
    }

    /// Fails once any of the daemons has ended.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        for daemon in [
            &mut self.gateway,
            &mut self.compute,
            &mut self.auth,
            &mut self.nats,
        ] {
            daemon.check_running()?;
        }
        Ok(())
    }

    /// The ends of all logs.
    pub(crate) fn tails(&self) -> String {
        [&self.gateway, &self.compute, &self.auth, &self.nats]
            .map(Daemon::tail)
            .concat()
    }
}

/// An address on 127.0.0.1.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// One run per data folder: held as long as the folder is ours.
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not read")] File);

impl Lock {
    /// Takes the folder, which is made if it is missing.
    pub(crate) fn take(data: &Path) -> Result<Self> {
        fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
        let path = data.join("lock");
        let lock =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        if lock.try_lock().is_err() {
            bail!(
                "{} is in use by another run: stop that one, or choose another folder with --data",
                data.display()
            );
        }
        Ok(Self(lock))
    }
}

/// Starts nats-server on the plan's store; also again, after it was stopped.
pub(crate) fn start_nats(plan: &Plan, tools: &Tools) -> Result<Daemon> {
    let program = tools.path(Program::NatsServer)?;
    let mut nats = Daemon::start("nats-server", program, &plan.logs(), |command| {
        command.arg("-js").arg("-sd").arg(plan.data.join("nats"));
        command.args(["-a", "127.0.0.1", "-p", &plan.ports.nats.to_string()]);
        Ok(())
    })?;
    let address = loopback(plan.ports.nats);
    nats.wait_until("accepting connections", READY_LIMIT, || {
        TcpStream::connect(address).is_ok()
    })?;
    Ok(nats)
}

fn start_auth(plan: &Plan, binaries: &Binaries, tools: &Tools) -> Result<Daemon> {
    let ports = &plan.ports;
    let flags = [
        ("--addr", loopback(ports.auth).to_string()),
        ("--admin-addr", loopback(ports.auth_admin).to_string()),
        ("--database-url", plan.database_url("auth")),
        ("--nats-url", plan.nats_url()),
    ];
    start("edd-auth", &flags, plan, binaries, tools)
}

fn start_compute(plan: &Plan, binaries: &Binaries, tools: &Tools) -> Result<Daemon> {
    let ports = &plan.ports;
    let mut flags = vec![
        ("--addr", loopback(ports.compute).to_string()),
        ("--admin-addr", loopback(ports.compute_admin).to_string()),
        ("--database-url", plan.database_url("compute")),
        ("--nats-url", plan.nats_url()),
        ("--auth-url", format!("http://{}", loopback(ports.auth))),
        ("--gateways", format!("http://{}", loopback(ports.admin))),
        ("--runtime", "local".to_owned()),
        ("--platform-domain", "localhost".to_owned()),
        ("--public-ssh-port", ports.ssh.to_string()),
        (
            "--state-dir",
            plan.data.join("compute").display().to_string(),
        ),
        (
            "--ports",
            format!("{}-{}", ports.range.start(), ports.range.end()),
        ),
        ("--sshd", tools.path(Program::Sshd)?.display().to_string()),
    ];
    if let Some(session) = tools.sshd_session() {
        flags.push(("--sshd-session", session.display().to_string()));
    }
    start("edd-compute", &flags, plan, binaries, tools)
}

/// Starts the gateway on the plan; also for the benchmark, which needs no services.
pub(crate) fn start_gateway(plan: &Plan, binaries: &Binaries, tools: &Tools) -> Result<Daemon> {
    let ports = &plan.ports;
    let flags = [
        ("--routes", plan.routes().display().to_string()),
        ("--certs-dir", plan.data.join("certs").display().to_string()),
        ("--database-url", plan.database_url("gateway")),
        ("--nats-url", plan.nats_url()),
        ("--http-addr", loopback(ports.http).to_string()),
        ("--https-addr", loopback(ports.https).to_string()),
        ("--ssh-addr", loopback(ports.ssh).to_string()),
        (
            "--ports",
            format!("{}-{}", ports.range.start(), ports.range.end()),
        ),
        ("--ports-addr", "127.0.0.1".to_owned()),
        ("--public-http-port", ports.http.to_string()),
        ("--public-https-port", ports.https.to_string()),
        ("--public-ssh-port", ports.ssh.to_string()),
        ("--admin-addr", loopback(ports.admin).to_string()),
        ("--state-dir", plan.gateway_state().display().to_string()),
        ("--platform-domain", "localhost".to_owned()),
        ("--container-cidrs", "127.64.0.0/16".to_owned()),
        ("--container-ssh-port", "2022".to_owned()),
        ("--drain-timeout", DRAIN.to_owned()),
    ];
    start("edd-gateway", &flags, plan, binaries, tools)
}

fn start(
    name: &'static str,
    flags: &[(&str, String)],
    plan: &Plan,
    binaries: &Binaries,
    tools: &Tools,
) -> Result<Daemon> {
    Daemon::start(
        name,
        binaries.path(name)?,
        &plan.logs(),
        |command: &mut Command| {
            // Only what is written here counts: a variable of the user's shell must not move a port.
            for (variable, _) in std::env::vars_os() {
                let variable_name = variable.to_string_lossy();
                let ours = variable_name.starts_with("EDD_");
                if ours || matches!(&*variable_name, "DATABASE_URL" | "NATS_URL") {
                    command.env_remove(&variable);
                }
            }
            for (flag, value) in flags {
                command.arg(flag).arg(value);
            }
            command.current_dir(&plan.data);
            tools.set_environment(command)
        },
    )
}

/// Waits until an admin endpoint answers 200.
pub(crate) fn healthy(daemon: &mut Daemon, port: u16, path: &str) -> Result<()> {
    let api = Api::new(loopback(port));
    daemon.wait_until("ready", READY_LIMIT, || {
        api.ask("GET", path, None)
            .is_ok_and(|answer| answer.status == 200)
    })
}
