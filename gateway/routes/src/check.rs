//! From the file's tree to checked routes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use edd_route::{Host, Origin, StaticRouteSpec};
use ipnet::IpNet;

use crate::yaml::{self, At, Key, Node, Value};
use crate::{Mistake, duration};

/// Mistakes reported at most; a file in a wrong format has one per line.
const MISTAKES_MAX: usize = 100;

/// Reads the whole file, or reports all its mistakes in the order of their lines.
///
/// `file` is the name that entries remember as their origin; `platform_domain`
/// is in lower case.
pub fn parse(
    text: &str,
    file: &str,
    platform_domain: &str,
) -> Result<Vec<StaticRouteSpec>, Vec<Mistake>> {
    let root = yaml::parse(text).map_err(|mistake| vec![mistake])?;
    let mut check = Check {
        file,
        containers: format!("compute.{platform_domain}"),
        seen: HashMap::new(),
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

struct Check<'f> {
    file: &'f str,
    /// The domain under which only containers live.
    containers: String,
    /// Host and path of each route so far, and its line.
    seen: HashMap<(String, String), u32>,
    mistakes: Vec<Mistake>,
}

/// The keys of one route as found in the file.
#[derive(Default)]
struct Raw {
    host: Option<Node>,
    path: Option<Node>,
    target: Option<Node>,
    strip_prefix: Option<Node>,
    timeout: Option<Node>,
    allow: Option<Node>,
    deny: Option<Node>,
}

impl Check<'_> {
    fn mistake(&mut self, at: At, message: impl Into<String>) {
        let At { line, column } = at;
        self.mistakes.push(Mistake {
            line,
            column,
            message: message.into(),
        });
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

    fn unknown(&mut self, key: &Key, known: &str) {
        self.mistake(
            key.at,
            format!("unknown key `{}`, expected {known}", key.name),
        );
    }

    fn route(&mut self, item: Node) -> Option<StaticRouteSpec> {
        let at = item.at;
        let Value::Map(entries) = item.value else {
            self.mistake(at, format!("expected a route, found {}", item.value.kind()));
            return None;
        };
        let mut raw = Raw::default();
        for (key, node) in entries {
            let slot = match key.name.as_str() {
                "host" => &mut raw.host,
                "path" => &mut raw.path,
                "target" => &mut raw.target,
                "strip_prefix" => &mut raw.strip_prefix,
                "timeout" => &mut raw.timeout,
                "allow" => &mut raw.allow,
                "deny" => &mut raw.deny,
                "targets" | "retries" | "health" | "ca" => {
                    let message = format!("`{}` is not supported by this version", key.name);
                    self.mistake(key.at, message);
                    continue;
                }
                _ => {
                    self.unknown(
                        &key,
                        "host, path, target, strip_prefix, timeout, allow or deny",
                    );
                    continue;
                }
            };
            *slot = Some(node);
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
        let target = match raw.target {
            Some(node) => self
                .text("target", node)
                .and_then(|(at, text)| self.target(at, &text)),
            None => {
                self.mistake(at, "`target` is missing");
                None
            }
        };
        let strip_prefix = raw
            .strip_prefix
            .is_some_and(|node| self.flag("strip_prefix", node));
        let timeout = raw.timeout.and_then(|node| self.time("timeout", node));
        let allow = raw
            .allow
            .map(|node| self.nets("allow", node))
            .unwrap_or_default();
        let deny = raw
            .deny
            .map(|node| self.nets("deny", node))
            .unwrap_or_default();
        let (host, path) = (host?, path?);
        let key = (host.clone(), edd_route::path::prefix_key(&path).to_owned());
        if let Some(line) = self.seen.insert(key, at.line) {
            self.mistake(at, format!("{host}{path} is routed on line {line} already"));
            return None;
        }
        Some(StaticRouteSpec {
            host,
            path,
            target: target?,
            strip_prefix,
            timeout,
            allow,
            deny,
            origin: Origin::File {
                file: self.file.to_owned(),
                line: at.line,
            },
        })
    }

    fn text(&mut self, key: &str, node: Node) -> Option<(At, String)> {
        match node.value {
            Value::Text(text) => Some((node.at, text)),
            other => {
                self.mistake(
                    node.at,
                    format!("{key}: expected text, found {}", other.kind()),
                );
                None
            }
        }
    }

    fn flag(&mut self, key: &str, node: Node) -> bool {
        if let Value::Bool(flag) = node.value {
            return flag;
        }
        let found = node.value.kind();
        self.mistake(
            node.at,
            format!("{key}: expected true or false, found {found}"),
        );
        false
    }

    fn time(&mut self, key: &str, node: Node) -> Option<Duration> {
        let (at, text) = self.text(key, node)?;
        match duration::parse(&text) {
            Ok(time) if time.is_zero() => {
                self.mistake(at, format!("{key}: must be longer than 0"));
                None
            }
            Ok(time) => Some(time),
            Err(error) => {
                self.mistake(at, format!("{key}: {error}"));
                None
            }
        }
    }

    fn nets(&mut self, key: &str, node: Node) -> Vec<IpNet> {
        let Value::Seq(items) = node.value else {
            let found = node.value.kind();
            self.mistake(
                node.at,
                format!("{key}: expected a list of networks, found {found}"),
            );
            return Vec::new();
        };
        let mut nets = Vec::new();
        for item in items {
            let Some((at, text)) = self.text(key, item) else {
                continue;
            };
            let net = text
                .parse::<IpNet>()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            match net {
                Ok(net) => nets.push(net),
                Err(_) => self.mistake(at, format!("{key}: `{text}` is not a network")),
            }
        }
        if nets.is_empty() && self.mistakes.is_empty() {
            self.mistake(node.at, format!("{key}: the list is empty"));
        }
        nets
    }

    fn host(&mut self, at: At, text: &str) -> Option<String> {
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(name) => ("*.", name),
            None => ("", text),
        };
        let host = match Host::parse(name) {
            Ok(_) if text.contains([':', '[']) => {
                self.mistake(
                    at,
                    format!("host: `{text}` has a port; routes name hosts only"),
                );
                return None;
            }
            Ok(host) => host,
            Err(error) => {
                self.mistake(at, format!("host: `{text}` {error}"));
                return None;
            }
        };
        let name = host.as_str();
        let below = name
            .strip_suffix(self.containers.as_str())
            .is_some_and(|rest| rest.ends_with('.'));
        if below || (!wildcard.is_empty() && name == self.containers) {
            let message = format!(
                "host: `{text}` lies under {}, where containers are",
                self.containers
            );
            self.mistake(at, message);
            return None;
        }
        Some(format!("{wildcard}{name}"))
    }

    fn path(&mut self, at: At, text: String) -> Option<String> {
        if let Err(error) = edd_route::path::check(&text) {
            self.mistake(at, format!("path: `{text}`: {error}"));
            return None;
        }
        if let Some(bad) = text
            .chars()
            .find(|c| matches!(c, '?' | '#') || !c.is_ascii_graphic())
        {
            self.mistake(at, format!("path: `{text}` has {bad:?}"));
            return None;
        }
        Some(text)
    }

    fn target(&mut self, at: At, text: &str) -> Option<String> {
        let authority = match text.split_once("://") {
            None => text,
            Some(("http", authority)) => authority,
            Some((scheme @ ("h2c" | "https"), _)) => {
                self.mistake(
                    at,
                    format!("target: {scheme}:// is not supported by this version"),
                );
                return None;
            }
            Some((scheme, _)) => {
                self.mistake(at, format!("target: unknown scheme {scheme}://"));
                return None;
            }
        };
        let Some((name, port)) = authority
            .rsplit_once(':')
            .filter(|(name, _)| !name.is_empty())
        else {
            self.mistake(at, format!("target: `{text}` is not host:port"));
            return None;
        };
        if let Err(error) = Host::parse(name) {
            self.mistake(at, format!("target: `{text}`: host {error}"));
            return None;
        }
        match port.parse::<u16>() {
            Ok(1..) if port.bytes().all(|b| b.is_ascii_digit()) => Some(authority.to_owned()),
            _ => {
                self.mistake(at, format!("target: `{text}`: bad port `{port}`"));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<StaticRouteSpec>, Vec<String>> {
        parse(text, "routes.yaml", "cloud.example.com")
            .map_err(|mistakes| mistakes.iter().map(Mistake::to_string).collect())
    }

    #[test]
    fn the_shipped_file_is_valid() {
        let text = include_str!("../../../routes.yaml");
        let routes = parse(text, "routes.yaml", "cloud.eddisonso.com").expect("valid");
        let targets: Vec<_> = routes.iter().map(|route| route.target.as_str()).collect();
        assert_eq!(
            targets,
            [
                "edd-compute:80",
                "cluster-monitor:80",
                "simple-file-share-frontend:80"
            ]
        );
        assert!(
            matches!(&routes[0].origin, Origin::File { line: 8, .. }),
            "{:?}",
            routes[0]
        );
        assert!(routes[1].strip_prefix);
    }

    #[test]
    fn every_key_is_read() {
        let routes = read(
            "routes:\n- host: '*.Example.com.'\n  target: http://10.0.0.1:80\n  timeout: 5s\n  allow: [10.0.0.0/8, '::1']\n  deny: [10.1.2.3]\n",
        )
        .expect("valid");
        let route = &routes[0];
        assert_eq!(
            (route.host.as_str(), route.path.as_str()),
            ("*.example.com", "/")
        );
        assert_eq!(route.target, "10.0.0.1:80");
        assert_eq!(route.timeout, Some(Duration::from_secs(5)));
        assert_eq!((route.allow.len(), route.deny.len()), (2, 1));
    }

    #[test]
    fn no_routes_is_a_valid_file() {
        assert_eq!(read("routes: []\n"), Ok(Vec::new()));
        assert_eq!(read("routes:\n"), Ok(Vec::new()));
    }

    #[test]
    fn all_mistakes_are_reported_with_line_and_column() {
        let text = "\
routes:
  - host: bad host
    target: a:1
  - host: a.example.com
    path: relative
    target: a
    colour: red
  - host: b.example.com
    target: b:99999
    strip_prefix: perhaps
  - host: x.compute.cloud.example.com
    target: b:1
  - target: b:1
  - host: c.example.com
    path: /x/
    target: c:1
  - host: C.example.com
    path: /x
    target: c:2
  - 7
extra: 1
";
        let mistakes = read(text).expect_err("mistakes");
        let expected = [
            "2:11: host: `bad host` has a character that is not allowed",
            "5:11: path: `relative`: path does not start with a slash",
            "6:13: target: `a` is not host:port",
            "7:5: unknown key `colour`, expected host, path, target, strip_prefix, timeout, allow or deny",
            "9:13: target: `b:99999`: bad port `99999`",
            "10:19: strip_prefix: expected true or false, found text",
            "11:11: host: `x.compute.cloud.example.com` lies under compute.cloud.example.com, where containers are",
            "13:5: `host` is missing",
            "17:5: c.example.com/x is routed on line 14 already",
            "20:5: expected a route, found a number",
            "21:1: unknown key `extra`, expected routes",
        ];
        assert_eq!(mistakes, expected);
    }

    #[test]
    fn each_kind_of_bad_file_names_its_place() {
        for (text, place) in [
            ("routes: [", "1:"),
            ("routes:\n  - host: a\n   target: b\n", "3:"),
            ("routes:\n\t- host: a\n", "2:"),
            ("- a\n", "1:1: expected `routes:`, found a list"),
            ("", "1:1: the file is empty"),
            ("a: &x [*x]\n", "1:"),
            ("routes:\n- host: a\n  host: b\n  target: c:1\n", "3:"),
            (
                "routes:\n- {host: a, target: 'h2c://b:1'}\n",
                "2:21: target: h2c:// is not supported",
            ),
            (
                "routes:\n- {host: a, target: 'ftp://b:1'}\n",
                "2:21: target: unknown scheme",
            ),
            (
                "routes:\n- {host: 'a:80', target: 'b:1'}\n",
                "2:10: host: `a:80` has a port",
            ),
            (
                "routes:\n- {host: a, target: 'b:0'}\n",
                "2:21: target: `b:0`: bad port",
            ),
            (
                "routes:\n- {host: a, target: 'b:1', path: '/a/../b'}\n",
                "2:34: path:",
            ),
            (
                "routes:\n- {host: a, target: 'b:1', path: '/a?b'}\n",
                "2:34: path:",
            ),
            (
                "routes:\n- {host: a, target: 'b:1', timeout: 5}\n",
                "2:37: timeout: expected text",
            ),
            (
                "routes:\n- {host: a, target: 'b:1', deny: [x]}\n",
                "2:35: deny: `x` is not a network",
            ),
            (
                "routes:\n- {host: a, target: 'b:1', retries: 2}\n",
                "2:28: `retries` is not supported",
            ),
        ] {
            let mistakes = read(text).expect_err(text);
            let first = mistakes.first().map(String::as_str).unwrap_or_default();
            assert!(first.starts_with(place), "{text:?}: {mistakes:?}");
        }
    }
}
