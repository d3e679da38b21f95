//! Decisions in words, for the operator who asks why.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::decide::split_ssh_name;
use crate::decide::{ContainerMatch, Door, HttpDecision, HttpQuestion, SshRefusal, TlsDecision};
use crate::name::{Host, NameError};
use crate::table::RouteTable;
use crate::target::TargetSpec;

/// A decision, the rule that made it, where that came from and what it shadows.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Explanation {
    /// What was asked.
    pub question: String,
    /// What would happen.
    pub outcome: String,
    /// The rule that decides.
    pub rule: Option<String>,
    /// Where the rule comes from: file and line, or subject, stream sequence and event.
    pub origin: Option<String>,
    /// The upstream.
    pub upstream: Option<String>,
    /// The route's targets with their weights, and their state where it is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetState>,
    /// Rules that would match but do not decide.
    pub shadows: Vec<String>,
    /// The table that answered.
    pub revision: u64,
}

/// One target of a route, for people.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TargetState {
    /// As routes.yaml writes it.
    pub target: String,
    /// Its share.
    pub weight: u16,
    /// How it is, where that is known: the running gateway fills it in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

impl TargetState {
    /// A target of which nothing is known.
    pub fn new(spec: &TargetSpec) -> Self {
        Self {
            target: spec.to_string(),
            weight: spec.weight,
            state: None,
        }
    }
}

/// Why a URL cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// Its host is no host.
    #[error("host {0}")]
    Host(#[from] NameError),
    /// Not `http://` or `https://`.
    #[error("not an http or https URL")]
    Scheme,
}

impl RouteTable {
    /// Explains where a request for `url` goes. A port in the dynamic range (`is_dynamic`) is taken as such.
    pub fn explain_url(
        &self,
        url: &str,
        client: IpAddr,
        is_dynamic: impl Fn(u16) -> bool,
    ) -> Result<Explanation, UrlError> {
        let (secure, rest) = match url.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err(UrlError::Scheme),
        };
        let split = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at_checked(split).unwrap_or((rest, ""));
        let path = target
            .split(['?', '#'])
            .next()
            .filter(|path| !path.is_empty())
            .unwrap_or("/");
        let host = Host::parse(authority)?;
        let port = authority
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        let door = match port {
            Some(port) if is_dynamic(port) => Door::Dynamic(port),
            _ if secure => Door::PublicHttps,
            _ => Door::PublicHttp,
        };
        if secure && let TlsDecision::Passthrough(to) = self.decide_tls(door, Some(&host)) {
            let mut answer = self.answer(url, "TLS is passed through to the container".into());
            self.describe_container(&mut answer, &to);
            return Ok(answer);
        }
        let question = HttpQuestion {
            door,
            secure,
            host: &host,
            path,
            client,
        };
        Ok(self.explain_http(url, &question))
    }

    fn explain_http(&self, url: &str, question: &HttpQuestion<'_>) -> Explanation {
        let host = question.host.as_str();
        let mut answer = self.answer(url, String::new());
        let statics = self
            .statics
            .host(host)
            .filter(|_| !matches!(question.door, Door::Dynamic(_)));
        match self.decide_http(question) {
            HttpDecision::Static(found) => {
                let spec = &found.route.spec;
                let path = found.upstream_path(question.path);
                let targets = spec.targets_text();
                answer.outcome = match spec.targets.len() {
                    1 => format!("proxied to {targets} as {path}"),
                    n => format!("proxied to one of {n} targets as {path}"),
                };
                answer.rule = Some(format!("static route {}", found.route.label));
                answer.origin = Some(spec.origin.to_string());
                answer.upstream = Some(targets);
                answer.targets = spec.targets.iter().map(TargetState::new).collect();
                let others = statics
                    .into_iter()
                    .flat_map(|routes| routes.matching(question.path));
                answer.shadows = others
                    .skip(1)
                    .map(|route| format!("static route {} ({})", route.label, route.spec.origin))
                    .collect();
                if let Some(id) = self.container_label(host)
                    && self.container(id).is_some()
                {
                    answer.shadows.push(format!("container {id}"));
                }
            }
            HttpDecision::Container(to) => {
                answer.outcome = "proxied to the container".into();
                self.describe_container(&mut answer, &to);
            }
            HttpDecision::RedirectToHttps => {
                answer.outcome = "308 to https".into();
                answer.rule = Some(match statics {
                    Some(_) => "static hosts are served by https only".into(),
                    None => "the container has an ingress rule for 443 and none for 80".into(),
                });
            }
            HttpDecision::Refused(refusal) => {
                answer.outcome = format!("{}: {refusal}", refusal.status());
                if let Some(container) =
                    self.container_label(host).and_then(|id| self.container(id))
                {
                    answer.rule = Some(format!("container {}", container.id));
                    answer.origin = Some(container.origin.to_string());
                }
            }
        }
        answer
    }

    /// Explains which container an SSH user name leads to, and whether it takes logins now.
    pub fn explain_ssh(&self, name: &str) -> Explanation {
        let mut answer = self.answer(&format!("ssh {name}"), String::new());
        let Some((unix_user, id)) = split_ssh_name(name) else {
            answer.outcome = format!("refused: {}", SshRefusal::BadName);
            return answer;
        };
        let Some(container) = self.container(id) else {
            answer.outcome = format!("refused: {}", SshRefusal::Unknown);
            return answer;
        };
        answer.rule = Some(format!("container {id}, owner {}", container.owner));
        answer.origin = Some(container.origin.to_string());
        match &container.running {
            None => answer.outcome = format!("refused: {}", SshRefusal::NotRunning),
            Some(_) if container.ssh.is_none() => {
                answer.outcome = format!("refused: {}", SshRefusal::Off);
            }
            Some(run) => {
                let keys = self.keys(container.owner);
                let prints: Vec<_> = keys
                    .iter()
                    .map(|key| key.spec.fingerprint.as_str())
                    .collect();
                answer.outcome = match prints.as_slice() {
                    [] => "refused: its owner has no key".into(),
                    prints => format!("logs in as {unix_user} with one of: {}", prints.join(" ")),
                };
                answer.upstream = Some(run.address.to_string());
                answer.origin = Some(run.origin.to_string());
            }
        }
        answer
    }

    /// Explains where raw bytes on a dynamic port go.
    pub fn explain_tcp(&self, port: u16) -> Explanation {
        let mut answer = self.answer(&format!("tcp {port}"), String::new());
        match self.decide_raw(port) {
            Ok(to) => {
                answer.outcome = "passed through to the container".into();
                self.describe_container(&mut answer, &to);
            }
            Err(refusal) => {
                answer.outcome = format!("closed: {refusal}");
                let owners = self.ports.get(&port);
                let owners = owners.into_iter().flat_map(|owners| owners.all.iter());
                answer.shadows = owners
                    .take(20)
                    .map(|id| format!("container {id}"))
                    .collect();
            }
        }
        answer
    }

    fn answer(&self, question: &str, outcome: String) -> Explanation {
        Explanation {
            question: question.into(),
            outcome,
            rule: None,
            origin: None,
            upstream: None,
            targets: Vec::new(),
            shadows: Vec::new(),
            revision: self.revision,
        }
    }

    fn describe_container(&self, answer: &mut Explanation, to: &ContainerMatch) {
        let target = to.upstream.port();
        answer.rule = Some(format!(
            "container {}, ingress rule {} -> {target}",
            to.id, to.port
        ));
        if let Some(container) = self.container(to.id.as_str())
            && let (Some(rule), Some(run)) = (container.rule(to.port), &container.running)
        {
            answer.origin = Some(format!("rule: {}; address: {}", rule.origin, run.origin));
        }
        answer.upstream = Some(to.upstream.to_string());
    }
}
