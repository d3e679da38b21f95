//! What should be in force: plain data, from the file, the events or the snapshot.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::{ContainerId, UserId};
use crate::origin::Origin;
use crate::target::{CaSpec, HealthSpec, ProxyHeader, RETRIES_MAX, TargetSpec};

/// A static route of routes.yaml, checked.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct StaticRouteSpec {
    /// Exact host or `*.parent`, lower case, without a trailing dot.
    pub host: String,
    /// Path prefix as written; `/` for all.
    pub path: String,
    /// Where it leads; at least one.
    pub targets: Vec<TargetSpec>,
    /// Whether the prefix is taken off towards the upstream.
    pub strip_prefix: bool,
    /// Until the upstream's response header; none: the gateway's default.
    pub timeout: Option<Duration>,
    /// Until a connection to a target is there; none: the gateway's default.
    pub connect_timeout: Option<Duration>,
    /// Silence on an answer or stream that has begun; none: the gateway's default.
    pub idle_timeout: Option<Duration>,
    /// How often a request is sent again at most; up to [`RETRIES_MAX`].
    pub retries: u8,
    /// Statuses (5xx) that speak against the target that gave them.
    pub fail_on: Vec<u16>,
    /// Whether and how the targets are looked at.
    pub health: Option<HealthSpec>,
    /// Whose certificates `https://` targets have; none: the system's roots.
    pub ca: Option<CaSpec>,
    /// What connections to the targets begin with.
    pub proxy_protocol: Option<ProxyHeader>,
    /// Clients that may use it; empty: all.
    pub allow: Vec<IpNet>,
    /// Clients that may not; wins over `allow`.
    pub deny: Vec<IpNet>,
    /// Where it is written.
    pub origin: Origin,
}

impl StaticRouteSpec {
    /// A route with nothing but what each has.
    pub fn new(host: &str, path: &str, targets: Vec<TargetSpec>, origin: Origin) -> Self {
        Self {
            host: host.into(),
            path: path.into(),
            targets,
            strip_prefix: false,
            timeout: None,
            connect_timeout: None,
            idle_timeout: None,
            retries: RETRIES_MAX,
            fail_on: Vec::new(),
            health: None,
            ca: None,
            proxy_protocol: None,
            allow: Vec::new(),
            deny: Vec::new(),
            origin,
        }
    }

    /// Its targets, for people: `a:80, b:80`.
    pub fn targets_text(&self) -> String {
        let mut text = String::new();
        for target in &self.targets {
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{comma}{target}");
        }
        text
    }
}

/// A container with everything that makes it reachable.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its id.
    pub id: ContainerId,
    /// The user whose SSH keys open it.
    pub owner: UserId,
    /// Its name, for people.
    pub name: String,
    /// Set while it runs.
    pub running: Option<RunSpec>,
    /// SSH switched on; off until switched.
    pub ssh_enabled: bool,
    /// Public HTTPS port switched on; on until switched.
    pub https_enabled: bool,
    /// Its ingress rules; one per port.
    pub rules: Vec<RuleSpec>,
    /// The event that created it.
    pub origin: Origin,
}

/// One run of a container.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Where it answers.
    pub address: IpAddr,
    /// Its SSH host key, an OpenSSH public key line.
    pub ssh_host_key: Option<String>,
    /// Which start this is: the stream sequence of the event. An address changes hands, this does not.
    pub start: u64,
    /// The event that started it.
    pub origin: Origin,
}

/// An ingress rule.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct RuleSpec {
    /// Public port: 80 and 443 name the HTTP and HTTPS listeners by role.
    pub port: u16,
    /// The container's port.
    pub target_port: u16,
    /// The event that asked for it.
    pub origin: Origin,
}

/// A user's SSH key.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct KeySpec {
    /// Its id in the compute service.
    pub id: i64,
    /// OpenSSH's `SHA256:…` of the public key.
    pub fingerprint: String,
    /// The event that added it.
    pub origin: Origin,
}
