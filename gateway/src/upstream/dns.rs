//! The resolver: DNS with its times to live, `/etc/hosts`, and the system's own way for the rest.
//!
//! `/etc/resolv.conf` is read again when it changes, and gives servers, search
//! domains and ndots. What DNS does not know the system is asked about, which
//! may have other sources; not so when the operator has named the servers.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

use super::names::Ask;

/// What a lookup found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Found {
    /// All addresses, in the order of preference.
    pub(crate) addresses: Vec<IpAddr>,
    /// How long they may be used.
    pub(crate) ttl: Duration,
}

/// Why a lookup found nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody could be asked.
    #[error("{0}")]
    Away(String),
    /// The resolver says that the name does not exist, or has no addresses.
    #[error("the name does not exist")]
    NoSuchName,
}

impl AskError {
    /// Whether asking others would not help.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::NoSuchName)
    }
}

/// Asks `servers`, or those of the system if there are none. For a tokio runtime.
pub(crate) fn resolver(servers: Vec<SocketAddr>) -> Ask {
    let system = Arc::new(System {
        servers,
        built: Mutex::default(),
    });
    Arc::new(move |host| {
        let system = Arc::clone(&system);
        Box::pin(async move { system.ask(&host).await })
    })
}

struct System {
    /// As the operator named them.
    servers: Vec<SocketAddr>,
    // Held for a moment per lookup, by tasks of the control runtime only.
    built: Mutex<Option<Built>>,
}

/// What was made of the system's files, and which these were.
#[derive(Clone)]
struct Built {
    stamps: [Option<SystemTime>; 2],
    hosts: Arc<Hosts>,
    /// None: there are no servers to ask.
    dns: Option<TokioResolver>,
}

impl System {
    async fn ask(&self, host: &str) -> Result<Found, AskError> {
        let built = self.current();
        if let Some(found) = in_hosts(&built.hosts, host) {
            return Ok(found);
        }
        let error = match &built.dns {
            Some(dns) => match dns.lookup_ip(host).await {
                Ok(found) => {
                    let now = std::time::Instant::now();
                    return Ok(Found {
                        addresses: found.iter().collect(),
                        ttl: found.valid_until().saturating_duration_since(now),
                    });
                }
                Err(error) => AskError::from(error),
            },
            None => AskError::Away("no name server is configured".into()),
        };
        if !self.servers.is_empty() {
            return Err(error);
        }
        match tokio::net::lookup_host((host, 0)).await {
            Ok(found) => Ok(Found {
                addresses: found.map(|address| address.ip()).collect(),
                ttl: SYSTEM_TTL,
            }),
            Err(_) => Err(error),
        }
    }

    /// The resolver for the files as they are now.
    fn current(&self) -> Built {
        let stamps =
            [RESOLV_CONF, HOSTS].map(|file| fs::metadata(file).and_then(|m| m.modified()).ok());
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(built) = built.as_ref().filter(|built| built.stamps == stamps) {
            return built.clone();
        }
        let new = Built {
            stamps,
            hosts: Arc::new(Hosts::from_system().unwrap_or_default()),
            dns: self.dns(),
        };
        built.insert(new).clone()
    }

    fn dns(&self) -> Option<TokioResolver> {
        let built = if self.servers.is_empty() {
            TokioResolver::builder_tokio()
        } else {
            let servers = self.servers.iter().copied().map(server).collect();
            Ok(TokioResolver::builder_with_config(
                ResolverConfig::from_name_servers(servers),
                TokioRuntimeProvider::default(),
            ))
        };
        let built = built.and_then(|mut builder| {
            set(builder.options_mut());
            builder.build()
        });
        built
            .inspect_err(|error| tracing::warn!(%error, "no DNS: the system is asked for names"))
            .ok()
    }
}

fn server(address: SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        let ConnectionConfig { port, .. } = connection;
        *port = address.port();
    }
    server
}

/// What differs from `/etc/resolv.conf`.
fn set(options: &mut ResolverOpts) {
    // Answers are kept by whoever asks, who asks again before they expire.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.try_tcp_on_error = true;
    options.timeout = options.timeout.min(SERVER_TIMEOUT);
}

fn in_hosts(hosts: &Hosts, host: &str) -> Option<Found> {
    let name = Name::from_utf8(host).ok()?;
    let kinds = [RecordType::A, RecordType::AAAA];
    let addresses: Vec<_> = kinds
        .into_iter()
        .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
        .flat_map(|found| {
            let answers = found.answers().iter();
            answers
                .filter_map(|record| record.data.ip_addr())
                .collect::<Vec<_>>()
        })
        .collect();
    (!addresses.is_empty()).then_some(Found {
        addresses,
        ttl: SYSTEM_TTL,
    })
}

impl From<NetError> for AskError {
    fn from(error: NetError) -> Self {
        if error.is_nx_domain() || error.is_no_records_found() {
            Self::NoSuchName
        } else {
            Self::Away(error.to_string())
        }
    }
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> Self {
        Self::Away(error.to_string())
    }
}

const RESOLV_CONF: &str = "/etc/resolv.conf";

const HOSTS: &str = "/etc/hosts";

/// How long an answer without a time to live is used.
const SYSTEM_TTL: Duration = Duration::from_secs(5);

/// Longest wait for one server.
const SERVER_TIMEOUT: Duration = Duration::from_secs(3);
