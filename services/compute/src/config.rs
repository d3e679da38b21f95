//! The command line: raw strings first, then checked values or every mistake.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use edd_daemon::{
    cli::{Invalid, Problems, parse_addr, parse_duration},
    telemetry::{LogFormat, parse_filter},
};
use edd_events::{
    connect::NatsOptions,
    signature::{Signer, Verifier},
};
use edd_service::bus::{BusArguments, EventBus, check_file, parse_number};
use edd_store::DatabaseUrl;

use crate::{http::PlainUrl, runtime::guest::GuestArguments};

/// Containers, SSH keys and ingress requests.
#[derive(Debug, Parser)]
#[command(name = "edd-compute", version)]
pub struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    #[command(flatten)]
    serve: ServeArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One guest of the local runtime; started by the daemon.
    #[command(hide = true)]
    Guest(GuestArguments),

    /// Builds what was built from other services' events anew, from the archive.
    RebuildProjections(RebuildArguments),
}

/// Of `rebuild-projections`.
#[derive(Debug, Args)]
pub(crate) struct RebuildArguments {
    /// The database: sqlite://PATH or postgres://USER@HOST/NAME.
    #[arg(long, env = "DATABASE_URL", default_value = "sqlite://data/compute.db")]
    pub(crate) database_url: String,
}

/// The daemon's flags.
#[derive(Debug, Args)]
#[command(
    mut_arg("nats_creds", |arg| arg.env("EDD_COMPUTE_NATS_CREDS")),
    mut_arg("nats_nkey", |arg| arg.env("EDD_COMPUTE_NATS_NKEY")),
    mut_arg("nats_ca", |arg| arg.env("EDD_COMPUTE_NATS_CA")),
    mut_arg("nats_replicas", |arg| arg.env("EDD_COMPUTE_NATS_REPLICAS")),
    mut_arg("event_store_days", |arg| arg.env("EDD_COMPUTE_EVENT_STORE_DAYS")),
    mut_arg("events", |arg| arg.env("EDD_COMPUTE_EVENTS")),
    mut_arg("event_signing_key", |arg| arg.env("EDD_COMPUTE_EVENT_SIGNING_KEY")),
    mut_arg("event_keys", |arg| arg.env("EDD_COMPUTE_EVENT_KEYS")),
)]
struct ServeArguments {
    /// Where the REST API listens; port 0 takes any free port.
    #[arg(long, env = "EDD_COMPUTE_ADDR", default_value = "127.0.0.1:9102")]
    addr: String,

    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "EDD_COMPUTE_ADMIN_ADDR", default_value = "127.0.0.1:9192")]
    admin_addr: String,

    /// The database: sqlite://PATH, created when absent, or postgres://USER@HOST/NAME.
    #[arg(long, env = "DATABASE_URL", default_value = "sqlite://data/compute.db")]
    database_url: String,

    #[command(flatten)]
    bus: BusArguments,

    /// Where auth's REST API is, asked about tokens when NATS does not answer.
    #[arg(
        long,
        env = "EDD_COMPUTE_AUTH_URL",
        default_value = "http://127.0.0.1:9101"
    )]
    auth_url: String,

    /// Admin endpoints of all gateways, comma-separated: asked by ?wait=routable. A name may stand
    /// for several.
    #[arg(
        long,
        env = "EDD_COMPUTE_GATEWAYS",
        value_name = "URL,..",
        value_delimiter = ','
    )]
    gateways: Vec<String>,

    /// Where containers run: local, docker or kubernetes.
    #[arg(long, env = "EDD_COMPUTE_RUNTIME", default_value = "local")]
    runtime: String,

    /// Where the local runtime keeps its files.
    #[arg(long, env = "EDD_COMPUTE_STATE_DIR", default_value = "data/compute")]
    state_dir: PathBuf,

    /// Containers are <id>.compute.<platform-domain>.
    #[arg(
        long,
        env = "EDD_COMPUTE_PLATFORM_DOMAIN",
        default_value = "cloud.eddisonso.com"
    )]
    platform_domain: String,

    /// The port in the ssh command that users are told.
    #[arg(long, env = "EDD_COMPUTE_PUBLIC_SSH_PORT", default_value = "22")]
    public_ssh_port: String,

    /// Ports that ingress rules may have besides 80 and 443.
    #[arg(long, env = "EDD_COMPUTE_PORTS", default_value = "8000-8100")]
    ports: String,

    /// Containers of one user.
    #[arg(long, env = "EDD_COMPUTE_CONTAINERS_PER_USER", default_value = "20")]
    containers_per_user: String,

    /// SSH keys of one user.
    #[arg(long, env = "EDD_COMPUTE_KEYS_PER_USER", default_value = "100")]
    keys_per_user: String,

    /// The gateway's SSH public key; without it the gateway is asked over NATS.
    #[arg(long, env = "EDD_COMPUTE_GATEWAY_SSH_KEY")]
    gateway_ssh_key: Option<PathBuf>,

    /// The sshd of local containers; else the one of PATH or /usr/sbin.
    #[arg(long, env = "EDD_COMPUTE_SSHD")]
    sshd: Option<PathBuf>,

    /// Its sshd-session (OpenSSH 9.8 and later), if it is not where sshd expects it.
    #[arg(long, env = "EDD_COMPUTE_SSHD_SESSION")]
    sshd_session: Option<PathBuf>,

    /// How long requests under way may finish after SIGTERM.
    #[arg(long, env = "EDD_COMPUTE_DRAIN_TIMEOUT", default_value = "10s")]
    drain_timeout: String,

    /// Log filter, such as info or edd_compute=debug,info.
    #[arg(long, env = "EDD_COMPUTE_LOG", default_value = "info")]
    log: String,

    /// text or json.
    #[arg(long, env = "EDD_COMPUTE_LOG_FORMAT", default_value = "text")]
    log_format: String,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the REST API listens.
    pub addr: SocketAddr,
    /// Where health and metrics are served.
    pub admin_addr: SocketAddr,
    /// The database.
    pub database: DatabaseUrl,
    /// NATS, if there is one.
    pub nats: Option<NatsOptions>,
    /// What carries events.
    pub event_bus: EventBus,
    /// Replicas of a stream that is created.
    pub nats_replicas: usize,
    /// Days that events stay in the archive; 0: none comes into it.
    pub event_store_days: u32,
    /// Whether changes are written as events.
    pub events: bool,
    /// Signs this service's events.
    pub signer: Option<Arc<Signer>>,
    /// Knows who signs events.
    pub verifier: Option<Arc<Verifier>>,
    /// Where auth answers over HTTP.
    pub auth_url: Option<PlainUrl>,
    /// Admin endpoints of the gateways; empty: they are not known.
    pub gateways: Vec<PlainUrl>,
    /// Where the local runtime keeps its files; absolute.
    pub state_dir: PathBuf,
    /// Without leading or trailing dot, lower case.
    pub platform_domain: String,
    /// The SSH port that users are told.
    pub public_ssh_port: u16,
    /// Ports of ingress rules besides 80 and 443.
    pub ports: RangeInclusive<u16>,
    /// Containers of one user.
    pub containers_per_user: u32,
    /// Keys of one user.
    pub keys_per_user: u32,
    /// A file with the gateway's public key.
    pub gateway_ssh_key: Option<PathBuf>,
    /// The SSH server of local containers.
    pub sshd: Option<PathBuf>,
    /// Its helper.
    pub sshd_session: Option<PathBuf>,
    /// The binary with the `guest` subcommand; no flag, for tests in process.
    pub guest_binary: Option<PathBuf>,
    /// How long requests may finish while draining.
    pub drain_timeout: Duration,
    /// The log filter.
    pub log: String,
    /// The form of log lines.
    pub log_format: LogFormat,
}

impl Config {
    /// Checks the command line.
    ///
    /// # Errors
    /// All mistakes together, each naming its flag and variable.
    pub fn check(arguments: Arguments) -> Result<Self, Invalid> {
        let arguments = arguments.serve;
        let mut problems = Problems::of::<Arguments>();
        let addr = problems.check("--addr", parse_addr(&arguments.addr));
        let admin_addr = problems.check("--admin-addr", parse_addr(&arguments.admin_addr));
        let database = problems.check("--database-url", arguments.database_url.parse());
        let bus = arguments.bus.check(&mut problems, "edd-compute");
        check_file(&mut problems, "--sshd", arguments.sshd.as_ref());
        check_file(
            &mut problems,
            "--sshd-session",
            arguments.sshd_session.as_ref(),
        );
        let auth_url = problems.check("--auth-url", PlainUrl::parse(&arguments.auth_url));
        let gateways = arguments
            .gateways
            .iter()
            .filter(|url| !url.trim().is_empty());
        let gateways: Result<Vec<_>, _> = gateways.map(|url| PlainUrl::parse(url.trim())).collect();
        let gateways = problems.check("--gateways", gateways);
        problems.check("--runtime", check_runtime(&arguments.runtime));
        let state_dir = problems.check("--state-dir", check_state_dir(&arguments.state_dir));
        let platform_domain = problems.check(
            "--platform-domain",
            check_domain(&arguments.platform_domain),
        );
        let public_ssh_port = problems.check(
            "--public-ssh-port",
            parse_number(&arguments.public_ssh_port, 1..=u16::MAX),
        );
        let ports = problems.check("--ports", parse_ports(&arguments.ports));
        let containers_per_user = problems.check(
            "--containers-per-user",
            parse_number(&arguments.containers_per_user, 0..=10_000_u32),
        );
        let keys_per_user = problems.check(
            "--keys-per-user",
            parse_number(&arguments.keys_per_user, 0..=10_000_u32),
        );
        let drain_timeout =
            problems.check("--drain-timeout", parse_duration(&arguments.drain_timeout));
        problems.check("--log", parse_filter(&arguments.log));
        let log_format = problems.check("--log-format", arguments.log_format.parse());

        let (
            Some(addr),
            Some(admin_addr),
            Some(database),
            Some(bus),
            Some(state_dir),
            Some(platform_domain),
            Some(public_ssh_port),
            Some(ports),
            Some(containers_per_user),
            Some(keys_per_user),
            Some(drain_timeout),
            Some(log_format),
        ) = (
            addr,
            admin_addr,
            database,
            bus,
            state_dir,
            platform_domain,
            public_ssh_port,
            ports,
            containers_per_user,
            keys_per_user,
            drain_timeout,
            log_format,
        )
        else {
            return Err(problems.into_invalid());
        };
        problems.finish()?;
        Ok(Self {
            addr,
            admin_addr,
            database,
            event_bus: bus.kind,
            nats: bus.nats,
            nats_replicas: bus.replicas,
            event_store_days: bus.event_store_days,
            events: bus.events,
            signer: bus.signer,
            verifier: bus.verifier,
            auth_url,
            gateways: gateways.unwrap_or_default(),
            state_dir,
            platform_domain,
            public_ssh_port,
            ports,
            containers_per_user,
            keys_per_user,
            gateway_ssh_key: arguments.gateway_ssh_key,
            sshd: arguments.sshd,
            sshd_session: arguments.sshd_session,
            guest_binary: None,
            drain_timeout,
            log: arguments.log,
            log_format,
        })
    }
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    text.split_once('-')
        .and_then(|(first, last)| Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?))
        .filter(|range| *range.start() >= 1 && !range.is_empty())
        .ok_or_else(|| format!("{text:?} is not a range of ports such as 8000-8100"))
}

fn check_runtime(text: &str) -> Result<(), String> {
    match text {
        "local" => Ok(()),
        "docker" | "kubernetes" => Err(format!("the runtime {text} is not in this version")),
        _ => Err(format!("{text:?} is none of local, docker and kubernetes")),
    }
}

/// Absolute, as sshd wants it, and without characters that its configuration
/// would understand as something else.
fn check_state_dir(folder: &Path) -> Result<PathBuf, String> {
    let folder = std::path::absolute(folder).map_err(|error| error.to_string())?;
    match folder.to_str() {
        Some(text) if !text.contains(['"', '%', '\\', '\n', '\0']) => Ok(folder),
        _ => Err(format!(
            "{:?} has characters that sshd does not take",
            folder
        )),
    }
}

fn check_domain(text: &str) -> Result<String, String> {
    let domain = text.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // Room for `<id>.compute.` before it.
    if domain.len() <= 200 && domain.split('.').all(label) {
        Ok(domain)
    } else {
        Err(format!(
            "{text:?} is not a domain such as cloud.example.com"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(flags: &[&str]) -> Result<Config, Invalid> {
        let arguments = ["edd-compute"].iter().chain(flags);
        let arguments = Arguments::try_parse_from(arguments).expect("flags known to clap");
        Config::check(arguments)
    }

    #[test]
    fn defaults_are_valid_and_local() {
        let config = check(&[]).unwrap();
        assert_eq!(config.addr, "127.0.0.1:9102".parse().unwrap());
        assert_eq!(config.admin_addr, "127.0.0.1:9192".parse().unwrap());
        assert!(config.events && config.nats.is_none() && config.state_dir.is_absolute());
        assert_eq!(config.ports, 8000..=8100);
    }

    #[test]
    fn every_bad_value_is_named() {
        let bad = [
            ("--addr", "localhost"),
            ("--admin-addr", ":1"),
            ("--database-url", "mysql://h/d"),
            ("--event-bus", "pigeon"),
            ("--nats-url", "http://h"),
            ("--nats-creds", "/does/not/exist"),
            ("--nats-ca", "/does/not/exist"),
            ("--event-signing-key", "/does/not/exist"),
            ("--event-keys", "/does/not/exist"),
            ("--sshd", "/does/not/exist"),
            ("--sshd-session", "/does/not/exist"),
            ("--nats-replicas", "0"),
            ("--events", "maybe"),
            ("--auth-url", "ftp://auth"),
            ("--runtime", "docker"),
            ("--state-dir", "a%d"),
            ("--platform-domain", "a..b"),
            ("--public-ssh-port", "0"),
            ("--ports", "9000-8000"),
            ("--containers-per-user", "-1"),
            ("--keys-per-user", "many"),
            ("--drain-timeout", "soon"),
            ("--log", "edd_compute=loud"),
            ("--log-format", "xml"),
        ];
        let flags: Vec<String> = bad
            .iter()
            .map(|(flag, value)| format!("{flag}={value}"))
            .collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let problems = check(&flags).unwrap_err().problems;
        assert_eq!(problems.len(), bad.len(), "{problems:#?}");
        for (flag, _) in bad {
            assert!(
                problems.iter().any(|problem| problem.starts_with(flag)),
                "{flag}"
            );
        }
    }

    #[test]
    fn runtimes_of_later_versions_say_so() {
        for runtime in ["docker", "kubernetes"] {
            let problems = check(&["--runtime", runtime]).unwrap_err().problems;
            assert!(problems[0].contains("not in this version"), "{problems:?}");
        }
        let problems = check(&["--runtime", "podman"]).unwrap_err().problems;
        assert!(problems[0].contains("none of"), "{problems:?}");
    }

    #[test]
    fn nats_knows_us_by_one_thing_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nkey");
        std::fs::write(&file, "no seed").unwrap();
        let file = file.to_str().unwrap();
        for flags in [
            &["--nats-nkey", file][..],
            &["--nats-nkey", "/does/not/exist"],
            &["--nats-nkey", file, "--nats-creds", file],
        ] {
            let problems = check(flags).unwrap_err().problems;
            assert_eq!(problems.len(), 1, "{problems:#?}");
            assert!(problems[0].starts_with("--nats-nkey"), "{problems:?}");
        }
        let problems = check(&["--nats-creds", file]).unwrap_err().problems;
        assert!(problems[0].starts_with("--nats-creds"), "{problems:?}");
    }

    #[test]
    fn secrets_of_a_url_are_not_repeated() {
        let problems = check(&["--nats-url", "nats://user:hunter2@h:x"])
            .unwrap_err()
            .problems;
        assert!(!problems.concat().contains("hunter2"), "{problems:?}");
    }

    #[test]
    fn domains_are_normalised() {
        let config = check(&["--platform-domain", "Cloud.Example.com."]).unwrap();
        assert_eq!(config.platform_domain, "cloud.example.com");
    }
}
