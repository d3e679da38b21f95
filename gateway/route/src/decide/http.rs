//! Where a request goes.

use std::net::IpAddr;
use std::sync::Arc;

use super::{ContainerMatch, ContainerRefusal, Door};
use crate::name::Host;
use crate::path::{self, PathError};
use crate::statics::StaticRoute;
use crate::table::RouteTable;

/// What a request says about where it wants to go.
#[derive(Clone, Copy, Debug)]
pub struct HttpQuestion<'r> {
    /// The listener it came in by.
    pub door: Door,
    /// Whether TLS was terminated here.
    pub secure: bool,
    /// Its host.
    pub host: &'r Host,
    /// Its raw path, without the query.
    pub path: &'r str,
    /// The client, for the routes' lists.
    pub client: IpAddr,
}

/// A static route that takes the request.
#[derive(Clone, Debug)]
pub struct StaticMatch {
    /// The route.
    pub route: Arc<StaticRoute>,
}

impl StaticMatch {
    /// The path towards the upstream.
    pub fn upstream_path<'p>(&self, path: &'p str) -> &'p str {
        if self.route.spec.strip_prefix {
            path::strip(path, &self.route.prefix)
        } else {
            path
        }
    }
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub enum HttpDecision {
    /// To a container.
    Container(ContainerMatch),
    /// To the same address by https: 308.
    RedirectToHttps,
    /// Nowhere.
    Refused(HttpRefusal),
    /// To a static route's target.
    Static(StaticMatch),
}

/// Why a request goes nowhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HttpRefusal {
    /// The container does not take it: 404.
    #[error(transparent)]
    Container(ContainerRefusal),
    /// The route's lists keep this client out: 403.
    #[error("the route does not admit this client")]
    Denied,
    /// No route and no container has the host: 404.
    #[error("no route for this host")]
    NoHost,
    /// The host has static routes, none for this path: 404.
    #[error("no route for this path")]
    NoPath,
    /// An ambiguous path: 400.
    #[error(transparent)]
    Path(PathError),
    /// TLS was terminated here, but the host's TLS is passed through: 421.
    #[error("TLS of this host is passed through to its container")]
    TlsPassthrough,
}

impl HttpRefusal {
    /// The status that answers it.
    pub fn status(self) -> u16 {
        match self {
            Self::Container(_) | Self::NoHost | Self::NoPath => 404,
            Self::Denied => 403,
            Self::Path(_) => 400,
            Self::TlsPassthrough => 421,
        }
    }
}

impl RouteTable {
    /// Decides where a request goes: static routes on the public ports, then containers.
    pub fn decide_http(&self, question: &HttpQuestion<'_>) -> HttpDecision {
        let HttpQuestion { door, path, .. } = *question;
        if let Err(error) = path::check(path) {
            return HttpDecision::Refused(HttpRefusal::Path(error));
        }
        let host = question.host.as_str();
        if !matches!(door, Door::Dynamic(_))
            && let Some(routes) = self.statics.host(host)
        {
            if door == Door::PublicHttp {
                return HttpDecision::RedirectToHttps;
            }
            return match routes.matching(path).next() {
                None => HttpDecision::Refused(HttpRefusal::NoPath),
                Some(route) if !route.admits(question.client) => {
                    HttpDecision::Refused(HttpRefusal::Denied)
                }
                Some(route) => HttpDecision::Static(StaticMatch {
                    route: Arc::clone(route),
                }),
            };
        }
        match self.container_label(host) {
            Some(id) => self.decide_container(id, door, question.secure),
            None => HttpDecision::Refused(HttpRefusal::NoHost),
        }
    }

    fn decide_container(&self, id: &str, door: Door, secure: bool) -> HttpDecision {
        match self.container_at(id, door) {
            Ok((_, _, rule)) if secure && self.settings.is_tls_port(rule.target_port) => {
                HttpDecision::Refused(HttpRefusal::TlsPassthrough)
            }
            Ok((container, run, rule)) => {
                HttpDecision::Container(ContainerMatch::new(container, run, rule, door))
            }
            // A container that answers by https only sends its clients there.
            Err(ContainerRefusal::NoRule)
                if door == Door::PublicHttp && self.container_at(id, Door::PublicHttps).is_ok() =>
            {
                HttpDecision::RedirectToHttps
            }
            Err(refusal) => HttpDecision::Refused(HttpRefusal::Container(refusal)),
        }
    }
}
