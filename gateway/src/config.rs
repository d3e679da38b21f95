//! The command line of `serve`: raw strings in, checked values out.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use edd_daemon::cli::{Invalid, Problems, parse_addr, parse_duration};
use edd_daemon::store::DatabaseUrl;
use edd_daemon::telemetry::{LogFormat, parse_filter};
use edd_route::Host;
use ipnet::IpNet;

/// Flags and variables of `serve`, as text; [`ServeArgs::check`] reports every mistake at once.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Static routes, watched and hot-swapped
    #[arg(
        long,
        env = "EDD_GATEWAY_ROUTES",
        default_value = "routes.yaml",
        value_name = "FILE"
    )]
    pub routes: PathBuf,
    /// Certificates: tls.crt + tls.key, and <any>/tls.crt + <any>/tls.key; empty: a development CA
    #[arg(
        long,
        env = "EDD_GATEWAY_CERTS_DIR",
        default_value = "certs/",
        value_name = "DIR"
    )]
    pub certs_dir: PathBuf,
    /// The gateway's own database
    #[arg(
        long,
        env = "DATABASE_URL",
        default_value = "sqlite://data/gateway.db",
        value_name = "URL",
        hide_env_values = true
    )]
    pub database_url: String,
    /// NATS with JetStream; none: no events
    #[arg(long, env = "NATS_URL", value_name = "URL", hide_env_values = true)]
    pub nats_url: Option<String>,
    /// NATS credentials file
    #[arg(long, env = "EDD_GATEWAY_NATS_CREDS", value_name = "FILE")]
    pub nats_creds: Option<PathBuf>,
    /// CA certificates for NATS; none: the system's
    #[arg(long, env = "EDD_GATEWAY_NATS_CA", value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,
    /// Replicas of streams that the gateway creates
    #[arg(
        long,
        env = "EDD_GATEWAY_NATS_REPLICAS",
        default_value = "1",
        value_name = "N"
    )]
    pub nats_replicas: String,
    /// Listener behind public port 80
    #[arg(
        long,
        env = "EDD_GATEWAY_HTTP_ADDR",
        default_value = "0.0.0.0:18080",
        value_name = "ADDR"
    )]
    pub http_addr: String,
    /// Listener behind public port 443
    #[arg(
        long,
        env = "EDD_GATEWAY_HTTPS_ADDR",
        default_value = "0.0.0.0:8443",
        value_name = "ADDR"
    )]
    pub https_addr: String,
    /// Listener behind public port 22
    #[arg(
        long,
        env = "EDD_GATEWAY_SSH_ADDR",
        default_value = "0.0.0.0:2222",
        value_name = "ADDR"
    )]
    pub ssh_addr: String,
    /// Dynamic ports: ranges and single ports
    #[arg(
        long,
        env = "EDD_GATEWAY_PORTS",
        default_value = "8000-8100",
        value_name = "LIST"
    )]
    pub ports: String,
    /// Address of the dynamic ports
    #[arg(
        long,
        env = "EDD_GATEWAY_PORTS_ADDR",
        default_value = "0.0.0.0",
        value_name = "IP"
    )]
    pub ports_addr: String,
    /// Public HTTP port, as told to clients
    #[arg(
        long,
        env = "EDD_GATEWAY_PUBLIC_HTTP_PORT",
        default_value = "80",
        value_name = "PORT"
    )]
    pub public_http_port: String,
    /// Public HTTPS port, as told to clients
    #[arg(
        long,
        env = "EDD_GATEWAY_PUBLIC_HTTPS_PORT",
        default_value = "443",
        value_name = "PORT"
    )]
    pub public_https_port: String,
    /// Public SSH port, as told to clients
    #[arg(
        long,
        env = "EDD_GATEWAY_PUBLIC_SSH_PORT",
        default_value = "22",
        value_name = "PORT"
    )]
    pub public_ssh_port: String,
    /// Health, metrics and the live table; keep it private
    #[arg(
        long,
        env = "EDD_GATEWAY_ADMIN_ADDR",
        default_value = "127.0.0.1:9090",
        value_name = "ADDR"
    )]
    pub admin_addr: String,
    /// SSH keys and the last good table
    #[arg(
        long,
        env = "EDD_GATEWAY_STATE_DIR",
        default_value = "data/",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,
    /// Containers are <id>.compute.<platform-domain>
    #[arg(
        long,
        env = "EDD_GATEWAY_PLATFORM_DOMAIN",
        default_value = "cloud.eddisonso.com",
        value_name = "DOMAIN"
    )]
    pub platform_domain: String,
    /// Addresses that a container may have
    #[arg(
        long,
        env = "EDD_GATEWAY_CONTAINER_CIDRS",
        default_value = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,fc00::/7",
        value_name = "LIST"
    )]
    pub container_cidrs: String,
    /// Container ports that get the client's TLS untouched
    #[arg(
        long,
        env = "EDD_GATEWAY_CONTAINER_TLS_PORTS",
        default_value = "443,8443",
        value_name = "LIST"
    )]
    pub container_tls_ports: String,
    /// Where containers listen for SSH
    #[arg(
        long,
        env = "EDD_GATEWAY_CONTAINER_SSH_PORT",
        default_value = "22",
        value_name = "PORT"
    )]
    pub container_ssh_port: String,
    /// Peers whose X-Forwarded-* and Forwarded are believed
    #[arg(
        long,
        env = "EDD_GATEWAY_TRUSTED_PROXIES",
        default_value = "",
        value_name = "LIST"
    )]
    pub trusted_proxies: String,
    /// First bytes, TLS and header section
    #[arg(
        long,
        env = "EDD_GATEWAY_HEADER_TIMEOUT",
        default_value = "10s",
        value_name = "TIME"
    )]
    pub header_timeout: String,
    /// A request body that stalls
    #[arg(
        long,
        env = "EDD_GATEWAY_BODY_TIMEOUT",
        default_value = "60s",
        value_name = "TIME"
    )]
    pub body_timeout: String,
    /// Keep-alive between requests
    #[arg(
        long,
        env = "EDD_GATEWAY_IDLE_TIMEOUT",
        default_value = "60s",
        value_name = "TIME"
    )]
    pub idle_timeout: String,
    /// Connecting to an upstream
    #[arg(
        long,
        env = "EDD_GATEWAY_CONNECT_TIMEOUT",
        default_value = "3s",
        value_name = "TIME"
    )]
    pub connect_timeout: String,
    /// Until an upstream's response header
    #[arg(
        long,
        env = "EDD_GATEWAY_UPSTREAM_TIMEOUT",
        default_value = "60s",
        value_name = "TIME"
    )]
    pub upstream_timeout: String,
    /// Silence on upgraded connections, event streams and raw TCP
    #[arg(
        long,
        env = "EDD_GATEWAY_STREAM_IDLE_TIMEOUT",
        default_value = "1h",
        value_name = "TIME"
    )]
    pub stream_idle_timeout: String,
    /// How long connections may finish after SIGTERM
    #[arg(
        long,
        env = "EDD_GATEWAY_DRAIN_TIMEOUT",
        default_value = "30s",
        value_name = "TIME"
    )]
    pub drain_timeout: String,
    /// Client connections in all; 0: from the file limit
    #[arg(
        long,
        env = "EDD_GATEWAY_MAX_CONNECTIONS",
        default_value = "0",
        value_name = "N"
    )]
    pub max_connections: String,
    /// Client connections per address; 0: no limit
    #[arg(
        long,
        env = "EDD_GATEWAY_MAX_CONNECTIONS_PER_IP",
        default_value = "0",
        value_name = "N"
    )]
    pub max_connections_per_ip: String,
    /// Data-plane threads; 0: one per core
    #[arg(
        long,
        env = "EDD_GATEWAY_WORKERS",
        default_value = "0",
        value_name = "N"
    )]
    pub workers: String,
    /// Log filter
    #[arg(
        long,
        env = "EDD_GATEWAY_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    pub log: String,
    /// Log format: text or json
    #[arg(
        long,
        env = "EDD_GATEWAY_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    pub log_format: String,
}

/// The checked command line.
#[derive(Clone, Debug)]
pub struct Config {
    /// routes.yaml.
    pub routes: PathBuf,
    /// Folder of certificates.
    pub certs_dir: PathBuf,
    /// The gateway's own database.
    pub database_url: DatabaseUrl,
    /// The event bus, if any.
    pub nats: Option<NatsConfig>,
    /// Listener behind public port 80.
    pub http_addr: SocketAddr,
    /// Listener behind public port 443.
    pub https_addr: SocketAddr,
    /// Listener behind public port 22.
    pub ssh_addr: SocketAddr,
    /// Dynamic ports.
    pub ports: Ports,
    /// Their address.
    pub ports_addr: IpAddr,
    /// Public HTTP port, as told to clients.
    pub public_http_port: u16,
    /// Public HTTPS port, as told to clients.
    pub public_https_port: u16,
    /// Public SSH port, as told to clients.
    pub public_ssh_port: u16,
    /// Admin listener.
    pub admin_addr: SocketAddr,
    /// SSH keys and the last good table.
    pub state_dir: PathBuf,
    /// Containers are `<id>.compute.<platform-domain>`; lower case.
    pub platform_domain: String,
    /// Addresses that a container may have.
    pub container_cidrs: Vec<IpNet>,
    /// Container ports that get the client's TLS untouched.
    pub container_tls_ports: Vec<u16>,
    /// Where containers listen for SSH.
    pub container_ssh_port: u16,
    /// Peers whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Every wait on a peer.
    pub timeouts: Timeouts,
    /// Client connections in all.
    pub max_connections: usize,
    /// Client connections per address; none: no limit.
    pub max_connections_per_ip: Option<usize>,
    /// Data-plane threads.
    pub workers: usize,
    /// Log filter.
    pub log: String,
    /// Log format.
    pub log_format: LogFormat,
}

/// How to reach NATS.
#[derive(Clone, Debug)]
pub struct NatsConfig {
    /// Its URL.
    pub url: String,
    /// Credentials file.
    pub creds: Option<PathBuf>,
    /// CA file.
    pub ca: Option<PathBuf>,
    /// Replicas of streams that are created.
    pub replicas: usize,
}

/// Deadlines.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// First bytes, TLS handshake and header section.
    pub header: Duration,
    /// A request body that stalls.
    pub body: Duration,
    /// Keep-alive between requests.
    pub idle: Duration,
    /// Connecting to an upstream.
    pub connect: Duration,
    /// Until an upstream's response header.
    pub upstream: Duration,
    /// Silence on streams.
    pub stream_idle: Duration,
    /// Finishing after SIGTERM.
    pub drain: Duration,
}

/// The set of dynamic ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

impl Ports {
    /// Reads `8000-8100,9000`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a list of ports such as 8000-8100");
        let mut ranges = Vec::new();
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let first: u16 = first.parse().map_err(|_| bad())?;
            let last: u16 = last.parse().map_err(|_| bad())?;
            if first == 0 || first > last {
                return Err(bad());
            }
            if ranges
                .iter()
                .any(|r: &RangeInclusive<u16>| first <= *r.end() && *r.start() <= last)
            {
                return Err(format!("{item} is listed twice"));
            }
            ranges.push(first..=last);
        }
        Ok(Self(ranges))
    }

    /// Whether `port` is one of them.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().cloned().flatten()
    }
}

impl ServeArgs {
    /// Checks everything; every mistake is in the error.
    pub fn check(self) -> Result<Config, Invalid> {
        let mut problems = Problems::of::<crate::commands::Cli>();
        let p = &mut problems;
        let http_addr = p.check("--http-addr", parse_addr(&self.http_addr));
        let https_addr = p.check("--https-addr", parse_addr(&self.https_addr));
        let ssh_addr = p.check("--ssh-addr", parse_addr(&self.ssh_addr));
        let admin_addr = p.check("--admin-addr", parse_addr(&self.admin_addr));
        let ports = p.check("--ports", Ports::parse(&self.ports));
        let ports_addr = p.check("--ports-addr", parse_ip(&self.ports_addr));
        if let (Some(ports), Some(ports_addr)) = (&ports, ports_addr) {
            let fixed = [
                ("--http-addr", http_addr),
                ("--https-addr", https_addr),
                ("--ssh-addr", ssh_addr),
                ("--admin-addr", admin_addr),
            ];
            for (flag, addr) in fixed {
                let Some(addr) = addr else { continue };
                let same = addr.ip() == ports_addr
                    || addr.ip().is_unspecified()
                    || ports_addr.is_unspecified();
                if same && ports.contains(addr.port()) {
                    p.push(flag, format!("{addr} lies inside --ports {}", self.ports));
                }
            }
        }
        let public_http_port = p.check("--public-http-port", parse_port(&self.public_http_port));
        let public_https_port = p.check("--public-https-port", parse_port(&self.public_https_port));
        let public_ssh_port = p.check("--public-ssh-port", parse_port(&self.public_ssh_port));
        let database_url = p.check("--database-url", self.database_url.parse::<DatabaseUrl>());
        let replicas = p.check("--nats-replicas", parse_number(&self.nats_replicas, 1, 5));
        let nats_url = self.nats_url.filter(|url| !url.is_empty());
        if let Some(url) = &nats_url {
            p.check("--nats-url", edd_events::connect::check_url(url));
        }
        let platform_domain = p.check("--platform-domain", parse_domain(&self.platform_domain));
        let container_cidrs = p.check_list("--container-cidrs", &self.container_cidrs, parse_net);
        let trusted_proxies = p.check_list("--trusted-proxies", &self.trusted_proxies, parse_net);
        let container_tls_ports = p.check_list(
            "--container-tls-ports",
            &self.container_tls_ports,
            parse_port,
        );
        let container_ssh_port =
            p.check("--container-ssh-port", parse_port(&self.container_ssh_port));
        let mut time = |flag, text: &str| {
            let checked = parse_duration(text)
                .map_err(|error| error.to_string())
                .and_then(|time| {
                    if time.is_zero() {
                        Err("must be longer than 0".to_owned())
                    } else {
                        Ok(time)
                    }
                });
            p.check(flag, checked).unwrap_or_default()
        };
        let timeouts = Timeouts {
            header: time("--header-timeout", &self.header_timeout),
            body: time("--body-timeout", &self.body_timeout),
            idle: time("--idle-timeout", &self.idle_timeout),
            connect: time("--connect-timeout", &self.connect_timeout),
            upstream: time("--upstream-timeout", &self.upstream_timeout),
            stream_idle: time("--stream-idle-timeout", &self.stream_idle_timeout),
            drain: time("--drain-timeout", &self.drain_timeout),
        };
        let max_connections = p.check(
            "--max-connections",
            parse_number(&self.max_connections, 0, usize::MAX),
        );
        let per_ip = p.check(
            "--max-connections-per-ip",
            parse_number(&self.max_connections_per_ip, 0, usize::MAX),
        );
        let workers = p.check("--workers", parse_number(&self.workers, 0, 1024));
        let log_format = p.check("--log-format", self.log_format.parse::<LogFormat>());
        p.check("--log", parse_filter(&self.log).map(drop));

        let (
            Some(http_addr),
            Some(https_addr),
            Some(ssh_addr),
            Some(admin_addr),
            Some(ports),
            Some(ports_addr),
            Some(public_http_port),
            Some(public_https_port),
            Some(public_ssh_port),
            Some(database_url),
            Some(replicas),
            Some(platform_domain),
            Some(container_ssh_port),
            Some(max_connections),
            Some(per_ip),
            Some(workers),
            Some(log_format),
        ) = (
            http_addr,
            https_addr,
            ssh_addr,
            admin_addr,
            ports,
            ports_addr,
            public_http_port,
            public_https_port,
            public_ssh_port,
            database_url,
            replicas,
            platform_domain,
            container_ssh_port,
            max_connections,
            per_ip,
            workers,
            log_format,
        )
        else {
            return Err(problems.into_invalid());
        };
        problems.finish()?;
        Ok(Config {
            routes: self.routes,
            certs_dir: self.certs_dir,
            database_url,
            nats: nats_url.map(|url| NatsConfig {
                url,
                creds: self.nats_creds,
                ca: self.nats_ca,
                replicas,
            }),
            http_addr,
            https_addr,
            ssh_addr,
            ports,
            ports_addr,
            public_http_port,
            public_https_port,
            public_ssh_port,
            admin_addr,
            state_dir: self.state_dir,
            platform_domain,
            container_cidrs,
            container_tls_ports,
            container_ssh_port,
            trusted_proxies,
            timeouts,
            max_connections: match max_connections {
                0 => connections_by_file_limit(),
                max => max,
            },
            max_connections_per_ip: Some(per_ip).filter(|max| *max > 0),
            workers: match workers {
                0 => std::thread::available_parallelism().map_or(1, usize::from),
                workers => workers,
            },
            log: self.log,
            log_format,
        })
    }
}

/// Every proxied connection takes two descriptors, and the rest of the process needs some.
fn connections_by_file_limit() -> usize {
    const RESERVE: u64 = 512;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let files = limit.current.unwrap_or(1 << 20);
    usize::try_from(files.saturating_sub(RESERVE) / 2)
        .unwrap_or(usize::MAX)
        .max(64)
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not an IP address"))
}

fn parse_net(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| format!("{text:?} is not a network such as 10.0.0.0/8"))
}

fn parse_port(text: &str) -> Result<u16, String> {
    text.parse::<u16>()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("{text:?} is not a port from 1 to 65535"))
}

fn parse_number(text: &str, min: usize, max: usize) -> Result<usize, String> {
    text.parse::<usize>()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| match max {
            usize::MAX => format!("{text:?} is not a whole number"),
            max => format!("{text:?} is not a whole number from {min} to {max}"),
        })
}

fn parse_domain(text: &str) -> Result<String, String> {
    Host::parse(text)
        .map(|host| host.to_string())
        .map_err(|error| format!("{text:?} {error}"))
        .and_then(|host| match text.contains(':') {
            true => Err(format!("{text:?} is not a domain name")),
            false => Ok(host),
        })
}
