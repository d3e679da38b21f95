//! Static routes: host first, then the longest path.

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashMap;

use crate::path;
use crate::spec::StaticRouteSpec;

/// A static route in force.
#[derive(Debug)]
pub struct StaticRoute {
    /// What the file says.
    pub spec: StaticRouteSpec,
    /// The path as it is compared: no trailing slash, `/` being empty.
    pub prefix: Box<str>,
    /// `host` + `path`, for logs and metric labels.
    pub label: Arc<str>,
}

impl StaticRoute {
    /// Whether the route's lists let this client in; `deny` wins.
    pub fn admits(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        let listed = |nets: &[ipnet::IpNet]| nets.iter().any(|net| net.contains(&client));
        !listed(&self.spec.deny) && (self.spec.allow.is_empty() || listed(&self.spec.allow))
    }
}

/// All routes of one host.
#[derive(Debug, Default)]
pub(crate) struct HostRoutes {
    by_prefix: HashMap<Box<str>, Arc<StaticRoute>>,
    depth_max: usize,
}

impl HostRoutes {
    /// Those that match `path`, the longest prefix (the one that serves) first.
    pub(crate) fn matching(&self, path: &str) -> impl Iterator<Item = &Arc<StaticRoute>> {
        path::prefixes(path, self.depth_max).filter_map(|prefix| self.by_prefix.get(prefix))
    }
}

/// The static part of the table. Replaced as a whole when the file changes.
#[derive(Debug, Default)]
pub struct StaticRoutes {
    exact: HashMap<Box<str>, HostRoutes>,
    /// By the part behind `*.`.
    wildcard: HashMap<Box<str>, HostRoutes>,
    all: Vec<Arc<StaticRoute>>,
}

impl StaticRoutes {
    /// Builds the lookup. Of two routes with the same host and path the first is kept; sources
    /// report such clashes before.
    pub fn new(specs: impl IntoIterator<Item = StaticRouteSpec>) -> Self {
        let mut routes = Self::default();
        for spec in specs {
            let prefix: Box<str> = path::prefix_key(&spec.path).into();
            let (hosts, name) = match spec.host.strip_prefix("*.") {
                Some(parent) => (&mut routes.wildcard, parent),
                None => (&mut routes.exact, spec.host.as_str()),
            };
            let host = hosts.entry(name.into()).or_default();
            if host.by_prefix.contains_key(&prefix) {
                continue;
            }
            let label = format!("{}{}", spec.host, spec.path).into();
            let route = Arc::new(StaticRoute {
                spec,
                prefix: prefix.clone(),
                label,
            });
            host.depth_max = host.depth_max.max(prefix.matches('/').count());
            host.by_prefix.insert(prefix, Arc::clone(&route));
            routes.all.push(route);
        }
        routes
    }

    /// The routes of `host` (lower case): exact, else wildcard of one label.
    pub(crate) fn host(&self, host: &str) -> Option<&HostRoutes> {
        self.exact.get(host).or_else(|| {
            let (_, parent) = host.split_once('.')?;
            self.wildcard.get(parent)
        })
    }

    /// Every route, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<StaticRoute>> {
        self.all.iter()
    }
}
