//! Single values: text, flags, durations, numbers, lists.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::check::Check;
use crate::duration;
use crate::yaml::{At, Node, Value};

impl Check<'_> {
    pub(crate) fn text(&mut self, key: &str, node: Node) -> Option<(At, String)> {
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

    pub(crate) fn flag(&mut self, key: &str, node: Node) -> bool {
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

    pub(crate) fn time(&mut self, key: &str, node: Node) -> Option<Duration> {
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

    /// A whole number from `min` to `max`.
    pub(crate) fn number(&mut self, key: &str, node: &Node, min: u64, max: u64) -> Option<u64> {
        match node.value {
            Value::Number(Some(number)) if (min..=max).contains(&number) => Some(number),
            Value::Number(_) => {
                self.mistake(
                    node.at,
                    format!("{key}: expected a whole number from {min} to {max}"),
                );
                None
            }
            ref other => {
                let found = other.kind();
                self.mistake(
                    node.at,
                    format!("{key}: expected a whole number from {min} to {max}, found {found}"),
                );
                None
            }
        }
    }

    /// The items of a list that has some; `what` they are.
    pub(crate) fn list(&mut self, key: &str, what: &str, node: Node) -> Vec<Node> {
        match node.value {
            Value::Seq(items) if items.is_empty() => {
                self.mistake(node.at, format!("{key}: the list is empty"));
                items
            }
            Value::Seq(items) => items,
            other => {
                let found = other.kind();
                self.mistake(
                    node.at,
                    format!("{key}: expected a list of {what}, found {found}"),
                );
                Vec::new()
            }
        }
    }

    pub(crate) fn nets(&mut self, key: &str, node: Node) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for item in self.list(key, "networks", node) {
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
        nets
    }
}
