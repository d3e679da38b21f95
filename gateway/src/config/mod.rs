//! The configuration of `serve`: checked values, made from the command line once.

mod announced;
mod args;
mod check;
mod files;
mod parse;
mod ports;
mod ssh;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use edd_daemon::telemetry::LogFormat;
use edd_events::connect::NatsOptions;
use edd_events::signature::{Signer, Verifier};
use edd_store::DatabaseUrl;
use ipnet::IpNet;

use crate::listener::RequestRate;

pub use announced::Announced;
pub use args::ServeArgs;
pub use ports::Ports;
pub use ssh::{CipherOrder, Recordings, SshArgs, SshConfig};

/// The checked command line.
#[derive(Clone, Debug)]
pub struct Config {
    /// routes.yaml.
    pub routes: PathBuf,
    /// Folder of certificates.
    pub certs_dir: PathBuf,
    /// The gateway's own database.
    pub database_url: DatabaseUrl,
    /// How often the state is compared with compute's; none: never.
    pub digest_interval: Option<Duration>,
    /// How much of the past is kept in it.
    pub history: History,
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
    /// The SSH server.
    pub ssh: SshConfig,
    /// Peers whose forwarding headers and announcements are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether they announce their clients by the PROXY protocol.
    pub proxy_protocol: ProxyProtocol,
    /// Whose raw connections tell the container who the client is.
    pub send_proxy_protocol: Announced,
    /// Name servers for the names of targets; empty: the system's.
    pub resolvers: Vec<SocketAddr>,
    /// Every wait on a peer.
    pub timeouts: Timeouts,
    /// Client connections in all.
    pub max_connections: usize,
    /// Connections to upstreams in all.
    pub max_upstream_connections: usize,
    /// Client connections per address; none: no limit.
    pub max_connections_per_ip: Option<usize>,
    /// Requests per address; none: no limit.
    pub request_rate: Option<RequestRate>,
    /// Data-plane threads, and as many for SSH.
    pub workers: usize,
    /// Whether a gateway that runs on `state_dir` is taken over from.
    pub take_over: bool,
    /// Log filter.
    pub log: String,
    /// Log format.
    pub log_format: LogFormat,
}

impl Config {
    /// Whether `address` is a proxy whose words are believed.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted_proxies
            .iter()
            .any(|net| net.contains(&address))
    }
}

/// What connections begin with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyProtocol {
    /// Never with a PROXY header.
    Off,
    /// Those of trusted proxies may begin with one.
    Optional,
    /// All do, or are refused.
    Required,
}

/// How much of the past is kept in the database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct History {
    /// Changes younger than this,
    pub kept: Duration,
    /// but never more than so many.
    pub rows_max: u64,
}

/// How to reach NATS.
#[derive(Clone, Debug)]
pub struct NatsConfig {
    /// Where it is and who we are.
    pub options: NatsOptions,
    /// Replicas of streams that are created.
    pub replicas: usize,
    /// Signs the gateway's events.
    pub signer: Option<Arc<Signer>>,
    /// Knows who signs events.
    pub verifier: Option<Arc<Verifier>>,
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
