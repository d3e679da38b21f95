//! The decision functions: pure, one for each kind of question.
//!
//! Requests, logins, `explain` and the tests all ask these.

use std::net::SocketAddr;

use crate::fact::Admission;
use crate::name::{ContainerId, UserId};
use crate::table::{Container, RouteTable, Rule, Running};

mod http;
mod raw;
mod ssh;
mod tls;

pub use http::{HttpDecision, HttpQuestion, HttpRefusal, StaticMatch};
pub use raw::RawRefusal;
pub(crate) use ssh::split_name as split_ssh_name;
pub use ssh::{SshMatch, SshRefusal};
pub use tls::{TlsDecision, TlsRefusal};

/// Which listener a connection came in by, as the rules name it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Door {
    /// A port of the dynamic range.
    Dynamic(u16),
    /// Public port 80, whatever it binds to.
    PublicHttp,
    /// Public port 443, whatever it binds to.
    PublicHttps,
}

impl Door {
    /// The port that an ingress rule names this door by.
    pub fn rule_port(self) -> u16 {
        match self {
            Self::Dynamic(port) => port,
            Self::PublicHttp => 80,
            Self::PublicHttps => 443,
        }
    }
}

/// A container that takes the connection.
#[derive(Clone, Debug)]
pub struct ContainerMatch {
    /// Which one.
    pub id: ContainerId,
    /// Whose it is.
    pub owner: UserId,
    /// Its address and the rule's target port.
    pub upstream: SocketAddr,
    /// Which start of it; with the id, the key of pooled connections.
    pub start: u64,
    /// The rule's public port.
    pub port: u16,
    /// What the connection depends on.
    pub admission: Admission,
}

impl ContainerMatch {
    fn new(container: &Container, run: &Running, rule: &Rule, door: Door) -> Self {
        let https = container.https.iter().filter(|_| door == Door::PublicHttps);
        let facts = [&run.fact, &rule.fact].into_iter().chain(https).cloned();
        Self {
            id: container.id.clone(),
            owner: container.owner,
            upstream: SocketAddr::new(run.address, rule.target_port),
            start: run.start,
            port: rule.port,
            admission: Admission::new(facts),
        }
    }
}

/// Why a container does not take a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ContainerRefusal {
    /// Public HTTPS is switched off for it.
    #[error("https is switched off for the container")]
    HttpsOff,
    /// It has no ingress rule for the port.
    #[error("the container has no ingress rule for the port")]
    NoRule,
    /// It does not run.
    #[error("the container is not running")]
    NotRunning,
    /// No such container.
    #[error("no such container")]
    Unknown,
}

impl RouteTable {
    /// The container `id` at `door`, if it is there, runs, has a rule and is not switched off.
    fn container_at(
        &self,
        id: &str,
        door: Door,
    ) -> Result<(&Container, &Running, &Rule), ContainerRefusal> {
        let container = self.containers.get(id).ok_or(ContainerRefusal::Unknown)?;
        let rule = container
            .rule(door.rule_port())
            .ok_or(ContainerRefusal::NoRule)?;
        let run = container
            .running
            .as_ref()
            .ok_or(ContainerRefusal::NotRunning)?;
        if door == Door::PublicHttps && container.https.is_none() {
            return Err(ContainerRefusal::HttpsOff);
        }
        Ok((container, run, rule))
    }
}
