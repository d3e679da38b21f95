//! From the file's tree to checked routes.
//!
//! One value that collects mistakes as it goes: nothing ends at the first.

use std::collections::HashMap;

use edd_route::target::RETRIES_MAX;
use edd_route::{Origin, StaticRouteSpec};

use crate::yaml::{self, At, Key, Node, Value};
use crate::{Context, Mistake};

/// Mistakes reported at most; a file in a wrong format has one per line.
const MISTAKES_MAX: usize = 100;

/// Reads the whole file, or reports all its mistakes in the order of their lines.
pub fn parse(text: &str, context: &Context<'_>) -> Result<Vec<StaticRouteSpec>, Vec<Mistake>> {
    let root = yaml::parse(text).map_err(|mistake| vec![mistake])?;
    let mut check = Check {
        context,
        containers: format!("compute.{}", context.platform_domain),
        seen: HashMap::new(),
        cas: HashMap::new(),
        mistakes: Vec::new(),
    };
    let routes = check.file(root);
    if check.mistakes.is_empty() {
        return Ok(routes);
    }
    check
        .mistakes
        .sort_by_key(|mistake| (mistake.line, mistake.column));
    check.mistakes.truncate(MISTAKES_MAX);
    Err(check.mistakes)
}

pub(crate) struct Check<'c> {
    pub(crate) context: &'c Context<'c>,
    /// The domain under which only containers live.
    pub(crate) containers: String,
    /// Host and path of each route so far, and its line.
    seen: HashMap<(String, String), u32>,
    /// The files of `ca` so far: many routes may name one.
    pub(crate) cas: HashMap<String, Result<String, String>>,
    mistakes: Vec<Mistake>,
}

/// The keys of one route as found in the file.
#[derive(Default)]
struct Raw {
    host: Option<Node>,
    path: Option<Node>,
    target: Option<Node>,
    targets: Option<Node>,
    strip_prefix: Option<Node>,
    timeout: Option<Node>,
    connect_timeout: Option<Node>,
    idle_timeout: Option<Node>,
    retries: Option<Node>,
    fail_on: Option<Node>,
    health: Option<Node>,
    ca: Option<Node>,
    proxy_protocol: Option<Node>,
    allow: Option<Node>,
    deny: Option<Node>,
}

/// All of them, for messages.
const KEYS: &str = "host, path, target, targets, strip_prefix, timeout, connect_timeout, \
    idle_timeout, retries, fail_on, health, ca, proxy_protocol, allow or deny";

impl Raw {
    fn slot(&mut self, key: &str) -> Option<&mut Option<Node>> {
        Some(match key {
            "host" => &mut self.host,
            "path" => &mut self.path,
            "target" => &mut self.target,
            "targets" => &mut self.targets,
            "strip_prefix" => &mut self.strip_prefix,
            "timeout" => &mut self.timeout,
            "connect_timeout" => &mut self.connect_timeout,
            "idle_timeout" => &mut self.idle_timeout,
            "retries" => &mut self.retries,
            "fail_on" => &mut self.fail_on,
            "health" => &mut self.health,
            "ca" => &mut self.ca,
            "proxy_protocol" => &mut self.proxy_protocol,
            "allow" => &mut self.allow,
            "deny" => &mut self.deny,
            _ => return None,
        })
    }
}

impl Check<'_> {
    pub(crate) fn mistake(&mut self, at: At, message: impl Into<String>) {
        let At { line, column } = at;
        self.mistakes.push(Mistake {
            line,
            column,
            message: message.into(),
        });
    }

    pub(crate) fn unknown(&mut self, key: &Key, known: &str) {
        self.mistake(
            key.at,
            format!("unknown key `{}`, expected {known}", key.name),
        );
    }

    fn file(&mut self, root: Node) -> Vec<StaticRouteSpec> {
        let entries = match root.value {
            Value::Map(entries) => entries,
            Value::Null => {
                self.mistake(root.at, "the file is empty: expected `routes:`");
                return Vec::new();
            }
            other => {
                self.mistake(
                    root.at,
                    format!("expected `routes:`, found {}", other.kind()),
                );
                return Vec::new();
            }
        };
        let mut routes = None;
        for (key, node) in entries {
            match key.name.as_str() {
                "routes" => routes = Some(node),
                _ => self.unknown(&key, "routes"),
            }
        }
        match routes {
            None => {
                self.mistake(root.at, "`routes` is missing");
                Vec::new()
            }
            Some(Node {
                value: Value::Null, ..
            }) => Vec::new(),
            Some(Node {
                value: Value::Seq(items),
                ..
            }) => items
                .into_iter()
                .filter_map(|item| self.route(item))
                .collect(),
            Some(Node { at, value }) => {
                self.mistake(
                    at,
                    format!("routes: expected a list, found {}", value.kind()),
                );
                Vec::new()
            }
        }
    }

    fn route(&mut self, item: Node) -> Option<StaticRouteSpec> {
        let at = item.at;
        let Value::Map(entries) = item.value else {
            self.mistake(at, format!("expected a route, found {}", item.value.kind()));
            return None;
        };
        let mut raw = Raw::default();
        for (key, node) in entries {
            match raw.slot(&key.name) {
                Some(slot) => *slot = Some(node),
                None => self.unknown(&key, KEYS),
            }
        }
        let host = match raw.host {
            Some(node) => self
                .text("host", node)
                .and_then(|(at, text)| self.host(at, &text)),
            None => {
                self.mistake(at, "`host` is missing");
                None
            }
        };
        let path = match raw.path {
            Some(node) => self
                .text("path", node)
                .and_then(|(at, text)| self.path(at, text)),
            None => Some("/".to_owned()),
        };
        let targets = self.targets(at, raw.target, raw.targets);
        let ca = raw.ca.and_then(|node| self.ca(node, targets.as_deref()));
        let proxy_protocol = raw
            .proxy_protocol
            .and_then(|node| self.proxy_protocol(node, targets.as_deref()));
        let strip_prefix = raw
            .strip_prefix
            .is_some_and(|node| self.flag("strip_prefix", node));
        let mut time = |key, node: Option<Node>| node.and_then(|node| self.time(key, node));
        let timeout = time("timeout", raw.timeout);
        let connect_timeout = time("connect_timeout", raw.connect_timeout);
        let idle_timeout = time("idle_timeout", raw.idle_timeout);
        let retries = raw.retries.and_then(|node| self.retries(&node));
        let fail_on = raw.fail_on.map(|node| self.fail_on(node));
        let health = raw.health.and_then(|node| self.health(node));
        let allow = raw.allow.map(|node| self.nets("allow", node));
        let deny = raw.deny.map(|node| self.nets("deny", node));
        let (host, path) = (host?, path?);
        let key = (host.clone(), edd_route::path::prefix_key(&path).to_owned());
        if let Some(line) = self.seen.insert(key, at.line) {
            self.mistake(at, format!("{host}{path} is routed on line {line} already"));
            return None;
        }
        Some(StaticRouteSpec {
            host,
            path,
            targets: targets?,
            strip_prefix,
            timeout,
            connect_timeout,
            idle_timeout,
            retries: retries.unwrap_or(RETRIES_MAX),
            fail_on: fail_on.unwrap_or_default(),
            health,
            ca,
            proxy_protocol,
            allow: allow.unwrap_or_default(),
            deny: deny.unwrap_or_default(),
            origin: Origin::File {
                file: self.context.file.to_owned(),
                line: at.line,
            },
        })
    }
}
