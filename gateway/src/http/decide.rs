//! From a destination to what happens: forwarded, or answered here.
//!
//! The table decides; this adds what only the connection knows (its
//! certificate) and names what the engine needs to reach the upstream.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use edd_route::decide::{HttpDecision, HttpQuestion, StaticMatch};
use edd_route::{Admission, Door, RouteTable};

use super::answer::Answer;
use super::head::Destination;
use crate::telemetry::access::TO_CONTAINER;
use crate::upstream::{Destination as To, UpstreamKey};

/// What the decision needs from the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ground {
    /// The listener.
    pub(crate) door: Door,
    /// Whether TLS was terminated here.
    pub(crate) secure: bool,
    /// Whether the connection's certificate has the host among its names; true without TLS.
    pub(crate) covered: bool,
    /// Whether it has proved of its client what the host demands; see
    /// [`CertStore::proves`](crate::tls::CertStore::proves).
    pub(crate) proven: bool,
    /// Port that redirects to https name.
    pub(crate) public_https_port: u16,
}

/// What happens to a request.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The gateway answers. The label names the route in metrics.
    Answer(Answer, Arc<str>),
    /// An upstream answers; the label likewise.
    Forward(Upstream, Arc<str>),
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    /// The container, or the route with its targets.
    pub(crate) to: To,
    /// What the request depends on.
    pub(crate) admission: Admission,
    /// Until the response head; none: the gateway's default.
    pub(crate) timeout: Option<Duration>,
    /// Until there is a connection; none: the gateway's default.
    pub(crate) connect_timeout: Option<Duration>,
    /// Silence on an answer that has begun; none: the gateway's default.
    pub(crate) idle_timeout: Option<Duration>,
    /// Path and query, if they differ from the client's.
    pub(crate) path: Option<String>,
}

/// Metric labels of everything that is not a static route: containers come and go by the thousand.
#[derive(Clone, Debug)]
pub(crate) struct Labels {
    container: Arc<str>,
    none: Arc<str>,
}

impl Default for Labels {
    fn default() -> Self {
        Self {
            container: TO_CONTAINER.into(),
            none: "none".into(),
        }
    }
}

impl Labels {
    /// The label before a decision, and of requests that have no route.
    pub(crate) fn none(&self) -> Arc<str> {
        Arc::clone(&self.none)
    }
}

/// Decides one request. `path` is raw, `query` without its question mark.
pub(crate) fn decide(
    table: &RouteTable,
    labels: &Labels,
    ground: &Ground,
    to: &Destination<'_>,
    path: &str,
    query: Option<&str>,
    client: IpAddr,
) -> Verdict {
    let none = || Arc::clone(&labels.none);
    if !ground.covered || (ground.secure && !ground.proven) {
        return Verdict::Answer(Answer::misdirected(), none());
    }
    let question = HttpQuestion {
        door: ground.door,
        secure: ground.secure,
        host: &to.host,
        path,
        client,
    };
    match table.decide_http(&question) {
        // Without TLS nothing can be proved; being sent to where it can is no harm.
        HttpDecision::Container(_) | HttpDecision::Static(_) if !ground.proven => {
            Verdict::Answer(Answer::misdirected(), none())
        }
        HttpDecision::Container(found) => {
            let upstream = Upstream {
                to: To::Container {
                    key: UpstreamKey::Container {
                        id: found.id,
                        start: found.start,
                        port: found.port,
                        target_port: found.upstream.port(),
                    },
                    address: found.upstream,
                    owner: found.owner,
                },
                admission: found.admission,
                timeout: None,
                connect_timeout: None,
                idle_timeout: None,
                path: None,
            };
            Verdict::Forward(upstream, Arc::clone(&labels.container))
        }
        HttpDecision::RedirectToHttps => {
            let target = join(path, query);
            let answer =
                Answer::redirect_to_https(to.host.as_str(), ground.public_https_port, &target);
            Verdict::Answer(answer, none())
        }
        HttpDecision::Refused(refusal) => Verdict::Answer(Answer::refusal(refusal), none()),
        HttpDecision::Static(found) => {
            let upstream = static_upstream(&found, path, query);
            Verdict::Forward(upstream, Arc::clone(&found.route.label))
        }
    }
}

fn static_upstream(found: &StaticMatch, path: &str, query: Option<&str>) -> Upstream {
    let spec = &found.route.spec;
    Upstream {
        to: To::Static(Arc::clone(&found.route)),
        admission: Admission::default(),
        timeout: spec.timeout,
        connect_timeout: spec.connect_timeout,
        idle_timeout: spec.idle_timeout,
        path: spec
            .strip_prefix
            .then(|| join(found.upstream_path(path), query)),
    }
}

fn join(path: &str, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use edd_route::name::UserId;
    use edd_route::{
        ContainerId, ContainerSpec, Host, Origin, RuleSpec, RunSpec, Settings, StaticRouteSpec,
        TableWriter, TargetSpec,
    };

    use super::*;

    fn table() -> Arc<RouteTable> {
        let origin = Origin::File {
            file: "routes.yaml".into(),
            line: 1,
        };
        let route = |path: &str, strip_prefix| StaticRouteSpec {
            strip_prefix,
            deny: vec!["192.0.2.66/32".parse().unwrap()],
            ..StaticRouteSpec::new(
                "a.example",
                path,
                vec![TargetSpec::http("10.0.0.9:80")],
                origin.clone(),
            )
        };
        let rule = |port, target_port| RuleSpec {
            port,
            target_port,
            origin: origin.clone(),
        };
        let settings = Settings::new("example", vec![443]);
        let mut writer = TableWriter::new(RouteTable::empty(settings));
        writer.set_statics(vec![route("/", false), route("/strip", true)]);
        writer.put_container(ContainerSpec {
            id: ContainerId::new("c1").unwrap(),
            owner: UserId(1),
            name: "c1".into(),
            running: Some(RunSpec {
                address: "10.0.0.5".parse().unwrap(),
                ssh_host_key: None,
                start: 7,
                origin: origin.clone(),
            }),
            ssh_enabled: false,
            https_enabled: true,
            rules: vec![rule(443, 8080), rule(8000, 9000)],
            origin: origin.clone(),
        });
        writer.publish(1).unwrap().table
    }

    fn ask(door: Door, host: &str, path: &str, query: Option<&str>, client: &str) -> Verdict {
        let ground = Ground {
            door,
            secure: door == Door::PublicHttps,
            covered: host != "other.example",
            proven: !path.starts_with("/unproven"),
            public_https_port: 8443,
        };
        let to = Destination {
            host: Host::parse(host).unwrap(),
            authority: host,
        };
        let client = client.parse().unwrap();
        decide(
            &table(),
            &Labels::default(),
            &ground,
            &to,
            path,
            query,
            client,
        )
    }

    fn status(verdict: Verdict) -> u16 {
        match verdict {
            Verdict::Answer(answer, label) => {
                assert_eq!(&*label, "none");
                answer.status
            }
            Verdict::Forward(up, _) => panic!("forwarded to {:?}", up.to),
        }
    }

    fn upstream(verdict: Verdict) -> Upstream {
        match verdict {
            Verdict::Forward(up, _) => up,
            Verdict::Answer(answer, _) => panic!("answered {answer:?}"),
        }
    }

    #[test]
    fn refusals_become_statuses() {
        let https = Door::PublicHttps;
        for (door, host, path, client, expected) in [
            (https, "other.example", "/", "192.0.2.1", 421),
            (https, "a.example", "/unproven", "192.0.2.1", 421),
            (Door::PublicHttp, "a.example", "/unproven", "192.0.2.1", 308),
            (
                Door::Dynamic(8000),
                "c1.compute.example",
                "/unproven",
                "192.0.2.1",
                421,
            ),
            (https, "none.example", "/", "192.0.2.1", 404),
            (https, "a.example", "/", "192.0.2.66", 403),
            (https, "a.example", "/../x", "192.0.2.1", 400),
            (https, "c2.compute.example", "/", "192.0.2.1", 404),
            (Door::PublicHttp, "a.example", "/", "192.0.2.1", 308),
            (
                Door::PublicHttp,
                "c1.compute.example",
                "/",
                "192.0.2.1",
                308,
            ),
            (Door::Dynamic(8000), "a.example", "/", "192.0.2.1", 404),
            (
                Door::Dynamic(8001),
                "c1.compute.example",
                "/",
                "192.0.2.1",
                404,
            ),
        ] {
            assert_eq!(
                status(ask(door, host, path, None, client)),
                expected,
                "{host}{path}"
            );
        }
    }

    #[test]
    fn a_stripped_prefix_keeps_the_query() {
        let found = |path, query| {
            upstream(ask(
                Door::PublicHttps,
                "a.example",
                path,
                query,
                "192.0.2.1",
            ))
            .path
        };
        assert_eq!(found("/strip/x", Some("q=1")).as_deref(), Some("/x?q=1"));
        assert_eq!(found("/strip", None).as_deref(), Some("/"));
        assert_eq!(found("/stripped", Some("q")), None);
    }

    #[test]
    fn containers_are_reached_by_the_rule_of_the_door() {
        let host = "c1.compute.example";
        let to = |up: &Upstream| match &up.to {
            To::Container { key, address, .. } => (key.clone(), *address),
            To::Static(route) => panic!("to {route:?}"),
        };
        let asked = ask(Door::Dynamic(8000), host, "/", None, "192.0.2.1");
        assert!(matches!(&asked, Verdict::Forward(_, label) if &**label == "container"));
        let (key, address) = to(&upstream(asked));
        assert_eq!(address, "10.0.0.5:9000".parse().unwrap());
        let other = upstream(ask(Door::PublicHttps, host, "/", None, "192.0.2.1"));
        let (other_key, address) = to(&other);
        assert_eq!(address, "10.0.0.5:8080".parse().unwrap());
        assert_ne!(key, other_key);
    }
}
