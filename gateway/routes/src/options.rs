//! How a route's targets are treated: retries, health, certificates, PROXY protocol.

use std::time::Duration;

use edd_route::target::RETRIES_MAX;
use edd_route::{CaSpec, HealthSpec, ProxyHeader, Scheme, TargetSpec};

use crate::check::Check;
use crate::yaml::{At, Node, Value};

/// A target is asked no more often.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

const INTERVAL: Duration = Duration::from_secs(10);

const TIMEOUT: Duration = Duration::from_secs(2);

impl Check<'_> {
    pub(crate) fn retries(&mut self, node: &Node) -> Option<u8> {
        let retries = self.number("retries", node, 0, u64::from(RETRIES_MAX))?;
        u8::try_from(retries).ok()
    }

    pub(crate) fn fail_on(&mut self, node: Node) -> Vec<u16> {
        let mut statuses = Vec::new();
        for item in self.list("fail_on", "statuses", node) {
            let status = self.number("fail_on", &item, 500, 599);
            statuses.extend(status.and_then(|status| u16::try_from(status).ok()));
        }
        statuses.sort_unstable();
        statuses.dedup();
        statuses
    }

    pub(crate) fn health(&mut self, node: Node) -> Option<HealthSpec> {
        let at = node.at;
        let Value::Map(entries) = node.value else {
            let found = node.value.kind();
            self.mistake(at, format!("health: expected `path: …`, found {found}"));
            return None;
        };
        let (mut path, mut interval, mut timeout) = (None, Some(INTERVAL), Some(TIMEOUT));
        let mut named = false;
        for (key, node) in entries {
            let place = node.at;
            match key.name.as_str() {
                "path" => {
                    named = true;
                    path = self
                        .text("path", node)
                        .and_then(|(at, text)| self.health_path(at, text));
                }
                "interval" => {
                    interval = self.time("interval", node);
                    if interval.is_some_and(|interval| interval < INTERVAL_MIN) {
                        self.mistake(place, "interval: must be 100ms or longer");
                        interval = None;
                    }
                }
                "timeout" => timeout = self.time("timeout", node),
                _ => self.unknown(&key, "path, interval or timeout"),
            }
        }
        if !named {
            self.mistake(at, "health: `path` is missing");
        }
        Some(HealthSpec {
            path: path?,
            interval: interval?,
            timeout: timeout?,
        })
    }

    fn health_path(&mut self, at: At, text: String) -> Option<String> {
        let bad = |c: &char| *c == '#' || !c.is_ascii_graphic();
        if !text.starts_with('/') {
            self.mistake(
                at,
                format!("path: `{text}`: path does not start with a slash"),
            );
            return None;
        }
        if let Some(bad) = text.chars().find(bad) {
            self.mistake(at, format!("path: `{text}` has {bad:?}"));
            return None;
        }
        Some(text)
    }

    pub(crate) fn ca(&mut self, node: Node, targets: Option<&[TargetSpec]>) -> Option<CaSpec> {
        let (at, file) = self.text("ca", node)?;
        let plain = |targets: &[TargetSpec]| !targets.iter().any(|t| t.scheme == Scheme::Https);
        if targets.is_some_and(plain) {
            self.mistake(at, "ca: no target of the route is https://");
            return None;
        }
        let read = match self.cas.get(&file) {
            Some(read) => read.clone(),
            None => {
                let read = (self.context.read_ca)(&file);
                self.cas.insert(file.clone(), read.clone());
                read
            }
        };
        match read {
            Ok(pem) => Some(CaSpec { file, pem }),
            Err(error) => {
                self.mistake(at, format!("ca: `{file}`: {error}"));
                None
            }
        }
    }

    pub(crate) fn proxy_protocol(
        &mut self,
        node: Node,
        targets: Option<&[TargetSpec]>,
    ) -> Option<ProxyHeader> {
        let (at, text) = self.text("proxy_protocol", node)?;
        let shared = |targets: &[TargetSpec]| targets.iter().any(|t| t.scheme == Scheme::H2c);
        match text.as_str() {
            "v2" if targets.is_some_and(shared) => {
                self.mistake(
                    at,
                    "proxy_protocol: a connection to an h2c:// target serves many clients",
                );
                None
            }
            "v2" => Some(ProxyHeader::V2),
            _ => {
                self.mistake(at, format!("proxy_protocol: expected v2, found `{text}`"));
                None
            }
        }
    }
}
