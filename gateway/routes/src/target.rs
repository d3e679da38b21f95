//! Where a route leads: `target`, or `targets` with their weights.

use edd_route::target::{TARGETS_MAX, WEIGHT_MAX};
use edd_route::{Host, Scheme, TargetSpec};

use crate::check::Check;
use crate::yaml::{At, Node, Value};

impl Check<'_> {
    /// The targets of a route that begins at `at`; none after a mistake.
    pub(crate) fn targets(
        &mut self,
        at: At,
        one: Option<Node>,
        several: Option<Node>,
    ) -> Option<Vec<TargetSpec>> {
        match (one, several) {
            (Some(node), None) => {
                let (at, text) = self.text("target", node)?;
                Some(vec![self.target(at, &text, 1)?])
            }
            (None, Some(node)) => self.several(node),
            (Some(_), Some(node)) => {
                self.mistake(node.at, "`target` and `targets` exclude each other");
                None
            }
            (None, None) => {
                self.mistake(at, "`target` is missing");
                None
            }
        }
    }

    fn several(&mut self, node: Node) -> Option<Vec<TargetSpec>> {
        let at = node.at;
        let items = self.list("targets", "targets", node);
        let count = items.len();
        if count > TARGETS_MAX {
            self.mistake(
                at,
                format!("targets: {count} targets, at most {TARGETS_MAX} are possible"),
            );
            return None;
        }
        let mut targets: Vec<TargetSpec> = Vec::new();
        for item in items {
            let at = item.at;
            let Some(target) = self.one_of_several(item) else {
                continue;
            };
            let same = |known: &TargetSpec| {
                (known.scheme, &known.authority) == (target.scheme, &target.authority)
            };
            if targets.iter().any(same) {
                self.mistake(at, format!("targets: `{target}` is there twice"));
            } else {
                targets.push(target);
            }
        }
        (targets.len() == count && count > 0).then_some(targets)
    }

    fn one_of_several(&mut self, item: Node) -> Option<TargetSpec> {
        let at = item.at;
        let Value::Map(entries) = item.value else {
            let found = item.value.kind();
            self.mistake(at, format!("targets: expected `target: …`, found {found}"));
            return None;
        };
        let (mut text, mut weight) = (None, Some(1));
        let mut named = false;
        for (key, node) in entries {
            match key.name.as_str() {
                "target" => {
                    named = true;
                    text = self.text("target", node);
                }
                "weight" => weight = self.number("weight", &node, 1, u64::from(WEIGHT_MAX)),
                _ => self.unknown(&key, "target or weight"),
            }
        }
        if !named {
            self.mistake(at, "`target` is missing");
        }
        let (at, text) = text?;
        let weight = weight.and_then(|weight| u16::try_from(weight).ok());
        // The text is looked at whatever the weight: every mistake at once.
        let target = self.target(at, &text, weight.unwrap_or(1));
        weight.and(target)
    }

    fn target(&mut self, at: At, text: &str, weight: u16) -> Option<TargetSpec> {
        let (scheme, authority, port_default) = match text.split_once("://") {
            None => (Scheme::Http, text, None),
            Some(("http", rest)) => (Scheme::Http, rest, Some("80")),
            Some(("h2c", rest)) => (Scheme::H2c, rest, Some("80")),
            Some(("https", rest)) => (Scheme::Https, rest, Some("443")),
            Some((scheme, _)) => {
                self.mistake(
                    at,
                    format!("target: unknown scheme {scheme}://, expected http, h2c or https"),
                );
                return None;
            }
        };
        if authority.contains(['/', '?', '#']) {
            self.mistake(
                at,
                format!("target: `{text}` has a path; a target is host:port"),
            );
            return None;
        }
        // The colons of an IPv6 address are inside its brackets.
        let port_at = authority
            .rfind(':')
            .filter(|colon| authority.rfind(']').is_none_or(|bracket| bracket < *colon));
        let (name, port) = match port_at.and_then(|at| authority.split_at_checked(at)) {
            Some((name, port)) => (name, port.strip_prefix(':')),
            None => (authority, port_default),
        };
        let Some(port) = port.filter(|_| !name.is_empty()) else {
            self.mistake(at, format!("target: `{text}` is not host:port"));
            return None;
        };
        if !name.starts_with('[') && name.contains(':') {
            self.mistake(
                at,
                format!("target: `{text}`: an IPv6 address stands in brackets"),
            );
            return None;
        }
        if let Err(error) = Host::parse(name) {
            self.mistake(at, format!("target: `{text}`: host {error}"));
            return None;
        }
        let number = port.parse::<u16>().ok().filter(|number| *number > 0);
        let Some(number) = number.filter(|_| port.bytes().all(|b| b.is_ascii_digit())) else {
            self.mistake(at, format!("target: `{text}`: bad port `{port}`"));
            return None;
        };
        Some(TargetSpec {
            scheme,
            authority: format!("{}:{number}", name.to_ascii_lowercase()),
            weight,
        })
    }
}
