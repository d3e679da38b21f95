//! The command line of `serve` as text; it is checked in a second step.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::ssh::SshArgs;

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
    /// File with the seed of the nkey user that the gateway is for NATS
    #[arg(long, env = "EDD_GATEWAY_NATS_NKEY", value_name = "FILE")]
    pub nats_nkey: Option<PathBuf>,
    /// PEM file of the CAs to trust for NATS, instead of the system's
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
    /// Ed25519 private key (PKCS#8 PEM) that signs the gateway's events
    #[arg(long, env = "EDD_GATEWAY_EVENT_SIGNING_KEY", value_name = "FILE")]
    pub event_signing_key: Option<PathBuf>,
    /// Public keys that events must be signed with: a folder with SOURCE.pem files, or one file
    #[arg(long, env = "EDD_GATEWAY_EVENT_KEYS", value_name = "PATH")]
    pub event_keys: Option<PathBuf>,
    /// How often the state is compared with compute's, and repaired; 0: never
    #[arg(
        long,
        env = "EDD_GATEWAY_DIGEST_INTERVAL",
        default_value = "10m",
        value_name = "TIME"
    )]
    pub digest_interval: String,
    /// Days that changes are kept for `log` and `--at`; 0: only what is in force
    #[arg(
        long,
        env = "EDD_GATEWAY_HISTORY_DAYS",
        default_value = "30",
        value_name = "DAYS"
    )]
    pub history_days: String,
    /// Changes that are kept at most
    #[arg(
        long,
        env = "EDD_GATEWAY_HISTORY_ROWS",
        default_value = "1000000",
        value_name = "N"
    )]
    pub history_rows: String,
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
    /// The SSH server.
    #[command(flatten)]
    pub ssh: SshArgs,
    /// Peers whose X-Forwarded-*, Forwarded and PROXY protocol are believed
    #[arg(
        long,
        env = "EDD_GATEWAY_TRUSTED_PROXIES",
        default_value = "",
        value_name = "LIST"
    )]
    pub trusted_proxies: String,
    /// PROXY protocol (v1, v2) of trusted proxies: off, optional or required
    #[arg(
        long,
        env = "EDD_GATEWAY_PROXY_PROTOCOL",
        default_value = "off",
        value_name = "MODE"
    )]
    pub proxy_protocol: String,
    /// Raw connections that begin with a PROXY header (v2) for their container: CONTAINER,
    /// CONTAINER:PORT or * for all
    #[arg(
        long,
        env = "EDD_GATEWAY_SEND_PROXY_PROTOCOL",
        default_value = "",
        hide_default_value = true,
        value_name = "LIST"
    )]
    pub send_proxy_protocol: String,
    /// Name servers for the names of targets, ADDRESS or ADDRESS:PORT; default: the system's
    #[arg(
        long,
        env = "EDD_GATEWAY_RESOLVER",
        default_value = "",
        hide_default_value = true,
        value_name = "LIST"
    )]
    pub resolver: String,
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
    /// Take over from the gateway that runs on this --state-dir, if one does
    #[arg(
        long,
        env = "EDD_GATEWAY_TAKE_OVER",
        value_parser = BoolishValueParser::new()
    )]
    pub take_over: bool,
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
    /// Requests per second and address; 0: no limit
    #[arg(
        long,
        env = "EDD_GATEWAY_MAX_REQUESTS_PER_IP",
        default_value = "0",
        value_name = "N"
    )]
    pub max_requests_per_ip: String,
    /// Requests of an address at once, after a quiet time; 0: those of one second
    #[arg(
        long,
        env = "EDD_GATEWAY_MAX_REQUESTS_PER_IP_BURST",
        default_value = "0",
        value_name = "N"
    )]
    pub max_requests_per_ip_burst: String,
    /// Data-plane threads, and as many for SSH; 0: one per core
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
