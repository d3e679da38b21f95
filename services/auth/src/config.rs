//! The command line: raw strings first, then checked values or every mistake.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use clap::Parser;
use edd_daemon::{
    cli::{Invalid, Problems, parse_addr, parse_duration},
    telemetry::{LogFormat, parse_filter},
};
use edd_events::{
    connect::NatsOptions,
    signature::{Signer, Verifier},
};
use edd_service::bus::{BusArguments, EventBus};
use edd_store::DatabaseUrl;
use ipnet::IpNet;

use crate::{identity::Username, limit::LoginLimits};

/// Users, sessions and token validation.
#[derive(Debug, Parser)]
#[command(
    name = "edd-auth",
    version,
    mut_arg("nats_creds", |arg| arg.env("EDD_AUTH_NATS_CREDS")),
    mut_arg("nats_nkey", |arg| arg.env("EDD_AUTH_NATS_NKEY")),
    mut_arg("nats_ca", |arg| arg.env("EDD_AUTH_NATS_CA")),
    mut_arg("nats_replicas", |arg| arg.env("EDD_AUTH_NATS_REPLICAS")),
    mut_arg("event_store_days", |arg| arg.env("EDD_AUTH_EVENT_STORE_DAYS")),
    mut_arg("events", |arg| arg.env("EDD_AUTH_EVENTS")),
    mut_arg("event_signing_key", |arg| arg.env("EDD_AUTH_EVENT_SIGNING_KEY")),
    mut_arg("event_keys", |arg| arg.env("EDD_AUTH_EVENT_KEYS")),
)]
pub struct Arguments {
    /// Where the REST API listens; port 0 takes any free port.
    #[arg(long, env = "EDD_AUTH_ADDR", default_value = "127.0.0.1:9101")]
    addr: String,

    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "EDD_AUTH_ADMIN_ADDR", default_value = "127.0.0.1:9191")]
    admin_addr: String,

    /// The database: sqlite://PATH, created when absent, or postgres://USER@HOST/NAME.
    #[arg(long, env = "DATABASE_URL", default_value = "sqlite://data/auth.db")]
    database_url: String,

    #[command(flatten)]
    bus: BusArguments,

    /// User names that may delete and change other users, comma-separated.
    /// Register them before the service is reachable by others.
    #[arg(long, env = "EDD_AUTH_ADMIN_USERS", default_value = "")]
    admin_users: String,

    /// CIDRs of proxies whose X-Forwarded-For is believed, comma-separated.
    #[arg(
        long,
        env = "EDD_AUTH_TRUSTED_PROXIES",
        default_value = "127.0.0.0/8,::1/128"
    )]
    trusted_proxies: String,

    /// How long to wait for compute to confirm a registration or deletion before it
    /// is announced again; three times, then an alert is due. 0: never wait.
    #[arg(long, env = "EDD_AUTH_SAGA_TIMEOUT", default_value = "1h")]
    saga_timeout: String,

    /// Undo a registration that compute has not confirmed after the third wait: the
    /// user is deleted and the name free again. Otherwise the user stays.
    #[arg(long, env = "EDD_AUTH_UNDO_REGISTRATIONS")]
    undo_registrations: bool,

    /// How long requests under way may finish after SIGTERM.
    #[arg(long, env = "EDD_AUTH_DRAIN_TIMEOUT", default_value = "10s")]
    drain_timeout: String,

    /// Log filter, such as info or edd_auth=debug,info.
    #[arg(long, env = "EDD_AUTH_LOG", default_value = "info")]
    log: String,

    /// text or json.
    #[arg(long, env = "EDD_AUTH_LOG_FORMAT", default_value = "text")]
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
    /// Who may change and delete other users.
    pub admins: BTreeSet<Username>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Attempts to log in; no flag.
    pub login_limits: LoginLimits,
    /// How long to wait for compute's confirmations; none: never.
    pub saga_timeout: Option<Duration>,
    /// Whether a registration that compute never confirms is undone.
    pub undo_registrations: bool,
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
        let mut problems = Problems::of::<Arguments>();
        let addr = problems.check("--addr", parse_addr(&arguments.addr));
        let admin_addr = problems.check("--admin-addr", parse_addr(&arguments.admin_addr));
        let database = problems.check("--database-url", arguments.database_url.parse());
        let bus = arguments.bus.check(&mut problems, "edd-auth");
        let admins = problems.check_list("--admin-users", &arguments.admin_users, Username::parse);
        let trusted_proxies =
            problems.check_list("--trusted-proxies", &arguments.trusted_proxies, parse_cidr);
        let saga_timeout = match arguments.saga_timeout.trim() {
            "0" => Some(None),
            text => problems
                .check("--saga-timeout", parse_duration(text))
                .map(Some),
        };
        let drain_timeout =
            problems.check("--drain-timeout", parse_duration(&arguments.drain_timeout));
        problems.check("--log", parse_filter(&arguments.log));
        let log_format = problems.check("--log-format", arguments.log_format.parse());

        let (
            Some(addr),
            Some(admin_addr),
            Some(database),
            Some(bus),
            Some(saga_timeout),
            Some(drain_timeout),
            Some(log_format),
        ) = (
            addr,
            admin_addr,
            database,
            bus,
            saga_timeout,
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
            admins: admins.into_iter().collect(),
            trusted_proxies,
            login_limits: LoginLimits::default(),
            saga_timeout,
            undo_registrations: arguments.undo_registrations,
            drain_timeout,
            log: arguments.log,
            log_format,
        })
    }
}

fn parse_cidr(text: &str) -> Result<IpNet, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a CIDR such as 10.0.0.0/8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(flags: &[&str]) -> Result<Config, Invalid> {
        let arguments = ["edd-auth"].iter().chain(flags);
        Config::check(Arguments::try_parse_from(arguments).expect("flags known to clap"))
    }

    #[test]
    fn defaults_are_valid_and_local() {
        let config = check(&[]).unwrap();
        assert_eq!(config.addr, "127.0.0.1:9101".parse().unwrap());
        assert_eq!(config.admin_addr, "127.0.0.1:9191".parse().unwrap());
        assert!(config.events && config.nats.is_none() && config.admins.is_empty());
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
            ("--nats-replicas", "0"),
            ("--events", "maybe"),
            ("--admin-users", "Root"),
            ("--trusted-proxies", "10.0.0.0/33"),
            ("--drain-timeout", "soon"),
            ("--log", "edd_auth=loud"),
            ("--log-format", "xml"),
        ];
        let flags: Vec<&str> = bad
            .iter()
            .flat_map(|(flag, value)| [*flag, *value])
            .collect();
        let problems = check(&flags).unwrap_err().problems;
        assert_eq!(problems.len(), bad.len(), "{problems:#?}");
        for (problem, (flag, _)) in problems.iter().zip(bad) {
            assert!(problem.starts_with(flag), "{problem}");
        }
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
    fn lists_replace_the_default() {
        let config = check(&[
            "--admin-users",
            "root, alice",
            "--trusted-proxies",
            "10.0.0.0/8",
        ])
        .unwrap();
        assert_eq!(config.admins.len(), 2);
        assert_eq!(
            config.trusted_proxies,
            ["10.0.0.0/8".parse::<IpNet>().unwrap()]
        );
    }
}
