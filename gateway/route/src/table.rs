//! The immutable table: everything that a decision needs.
//!
//! The containers, keys and ports live in persistent maps, so a new table
//! costs what changed and shares the rest with the old one.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdSet;
use smallvec::SmallVec;

use crate::fact::Fact;
use crate::name::{ContainerId, UserId};
use crate::origin::Origin;
use crate::spec::{ContainerSpec, KeySpec, RuleSpec, RunSpec, StaticRouteSpec};
use crate::statics::StaticRoutes;

/// A persistent map with a fast hash: requests look things up, only events put them in.
pub(crate) type Map<K, V> =
    imbl::GenericHashMap<K, V, foldhash::fast::RandomState, imbl::shared_ptr::DefaultSharedPtr>;

/// What decisions need beside the routes; fixed while the process runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Containers are `<id>` + this: `.compute.<platform-domain>`, lower case.
    pub container_suffix: String,
    /// Target ports that get the client's TLS untouched.
    pub container_tls_ports: Vec<u16>,
}

impl Settings {
    /// Settings for containers under `compute.<platform_domain>`.
    pub fn new(platform_domain: &str, container_tls_ports: Vec<u16>) -> Self {
        let domain = platform_domain.trim_end_matches('.').to_ascii_lowercase();
        Self {
            container_suffix: format!(".compute.{domain}"),
            container_tls_ports,
        }
    }

    /// Whether `target_port` speaks TLS by itself.
    pub fn is_tls_port(&self, target_port: u16) -> bool {
        self.container_tls_ports.contains(&target_port)
    }
}

/// A container in force, with the facts that live connections hold on to.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// The user whose keys open it.
    pub owner: UserId,
    /// Its name, for people.
    pub name: Arc<str>,
    /// Set while it runs.
    pub running: Option<Running>,
    /// Set while SSH is on.
    pub ssh: Option<Fact>,
    /// Set while the public HTTPS port is on.
    pub https: Option<Fact>,
    /// Its rules, sorted by port.
    pub rules: SmallVec<[Rule; 2]>,
    /// The event that created it.
    pub origin: Arc<Origin>,
}

/// One run of a container.
#[derive(Clone, Debug)]
pub struct Running {
    /// Where it answers.
    pub address: IpAddr,
    /// Its SSH host key, an OpenSSH public key line.
    pub ssh_host_key: Option<Arc<str>>,
    /// Which start this is; with the id, the key of pooled upstream connections.
    pub start: u64,
    /// Holds until it stops or moves to another address.
    pub fact: Fact,
    /// The event that started it.
    pub origin: Arc<Origin>,
}

/// An ingress rule in force.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Public port (80 and 443 by role).
    pub port: u16,
    /// The container's port.
    pub target_port: u16,
    /// Holds until the rule is deleted; another target keeps it.
    pub fact: Fact,
    /// The event that asked for it.
    pub origin: Arc<Origin>,
}

impl Container {
    /// The rule for a public port.
    pub fn rule(&self, port: u16) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.port == port)
    }

    /// The plain data that this container was made from.
    pub fn to_spec(&self) -> ContainerSpec {
        ContainerSpec {
            id: self.id.clone(),
            owner: self.owner,
            name: self.name.to_string(),
            running: self.running.as_ref().map(|run| RunSpec {
                address: run.address,
                ssh_host_key: run.ssh_host_key.as_deref().map(str::to_owned),
                start: run.start,
                origin: Origin::clone(&run.origin),
            }),
            ssh_enabled: self.ssh.is_some(),
            https_enabled: self.https.is_some(),
            rules: self
                .rules
                .iter()
                .map(|rule| RuleSpec {
                    port: rule.port,
                    target_port: rule.target_port,
                    origin: Origin::clone(&rule.origin),
                })
                .collect(),
            origin: Origin::clone(&self.origin),
        }
    }
}

/// An SSH key in force.
#[derive(Clone, Debug)]
pub struct Key {
    /// What the events say.
    pub spec: KeySpec,
    /// Holds until the key or its user is deleted.
    pub fact: Fact,
}

/// Who has a rule for a port.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortOwners {
    /// Every container with a rule for it.
    pub(crate) all: OrdSet<ContainerId>,
    /// Those that run.
    pub(crate) running: OrdSet<ContainerId>,
}

/// One consistent view of all routes. Cheap to clone, never changed.
#[derive(Clone, Debug)]
pub struct RouteTable {
    /// Counts the published tables; the higher is the newer.
    pub revision: u64,
    /// What decisions need beside the routes.
    pub settings: Arc<Settings>,
    pub(crate) statics: Arc<StaticRoutes>,
    pub(crate) containers: Map<ContainerId, Arc<Container>>,
    pub(crate) keys: Map<UserId, Arc<[Key]>>,
    pub(crate) ports: Map<u16, PortOwners>,
}

impl RouteTable {
    /// A table without routes, revision 0.
    pub fn empty(settings: Settings) -> Self {
        Self {
            revision: 0,
            settings: Arc::new(settings),
            statics: Arc::default(),
            containers: Map::default(),
            keys: Map::default(),
            ports: Map::default(),
        }
    }

    /// The static routes.
    pub fn statics(&self) -> &Arc<StaticRoutes> {
        &self.statics
    }

    /// A container by its id.
    pub fn container(&self, id: &str) -> Option<&Arc<Container>> {
        self.containers.get(id)
    }

    /// All containers, in no order.
    pub fn containers(&self) -> impl ExactSizeIterator<Item = &Arc<Container>> {
        self.containers.values()
    }

    /// A user's SSH keys.
    pub fn keys(&self, user: UserId) -> &[Key] {
        self.keys.get(&user).map_or(&[], |keys| keys)
    }

    /// All users with SSH keys, in no order.
    pub fn key_owners(&self) -> impl ExactSizeIterator<Item = (UserId, &[Key])> {
        self.keys.iter().map(|(user, keys)| (*user, &**keys))
    }

    /// Whether any container has a rule for this dynamic port; without one it closes at once.
    pub fn port_has_rules(&self, port: u16) -> bool {
        self.ports
            .get(&port)
            .is_some_and(|owners| !owners.all.is_empty())
    }

    /// The container that a host name (lower case) belongs to by its form, if any: the id in it.
    pub fn container_label<'h>(&self, host: &'h str) -> Option<&'h str> {
        let id = host.strip_suffix(self.settings.container_suffix.as_str())?;
        (!id.is_empty() && !id.contains('.')).then_some(id)
    }

    /// The plain data of all static routes.
    pub fn static_specs(&self) -> impl Iterator<Item = &StaticRouteSpec> {
        self.statics.iter().map(|route| &route.spec)
    }
}
