//! What should be in force: plain data, from the file, the events or the snapshot.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::{ContainerId, UserId};
use crate::origin::Origin;

/// A static route of routes.yaml, checked.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct StaticRouteSpec {
    /// Exact host or `*.parent`, lower case, without a trailing dot.
    pub host: String,
    /// Path prefix as written; `/` for all.
    pub path: String,
    /// Upstream as `host:port`.
    pub target: String,
    /// Whether the prefix is taken off towards the upstream.
    pub strip_prefix: bool,
    /// Until the upstream's response header; none: the gateway's default.
    pub timeout: Option<Duration>,
    /// Clients that may use it; empty: all.
    pub allow: Vec<IpNet>,
    /// Clients that may not; wins over `allow`.
    pub deny: Vec<IpNet>,
    /// Where it is written.
    pub origin: Origin,
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
