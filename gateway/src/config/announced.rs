//! Whose raw connections tell the container who the client is.

use std::collections::{BTreeSet, HashMap};

use edd_daemon::cli::Problems;
use edd_route::ContainerId;
use edd_route::decide::ContainerMatch;

use super::parse::parse_port;

/// The flag's name.
const FLAG: &str = "--send-proxy-protocol";

/// The rules whose raw connections (unknown protocols, TLS passed through) begin with a PROXY
/// header, version 2.
///
/// For the operator to choose: a container that does not expect the header takes it for the
/// client's first bytes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Announced {
    all: bool,
    containers: HashMap<ContainerId, Rules>,
}

/// Rules of one container.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Rules {
    All,
    Ports(BTreeSet<u16>),
}

impl Announced {
    /// Reads `*`, `CONTAINER` and `CONTAINER:PORT`; mistakes go to `problems`.
    pub(super) fn parse(problems: &mut Problems, text: &str) -> Self {
        let mut announced = Self::default();
        for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
            if entry == "*" {
                announced.all = true;
                continue;
            }
            let (id, port) = match entry.split_once(':') {
                Some((id, port)) => (id, Some(port)),
                None => (entry, None),
            };
            let id = ContainerId::new(id).map_err(|error| format!("{id:?} {error}"));
            let id = problems.check(FLAG, id);
            let port = port.map(|port| problems.check(FLAG, parse_port(port)));
            match (id, port) {
                (Some(id), None) => {
                    announced.containers.insert(id, Rules::All);
                }
                (Some(id), Some(Some(port))) => {
                    let none = || Rules::Ports(BTreeSet::new());
                    let rules = announced.containers.entry(id).or_insert_with(none);
                    if let Rules::Ports(ports) = rules {
                        ports.insert(port);
                    }
                }
                // Said already.
                (None, _) | (_, Some(None)) => {}
            }
        }
        announced
    }

    /// Whether a connection by this rule begins with a header.
    pub fn covers(&self, to: &ContainerMatch) -> bool {
        self.covers_rule(&to.id, to.port)
    }

    fn covers_rule(&self, id: &ContainerId, port: u16) -> bool {
        self.all
            || match self.containers.get(id) {
                None => false,
                Some(Rules::All) => true,
                Some(Rules::Ports(ports)) => ports.contains(&port),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Announced, String> {
        let mut problems = Problems::of::<crate::commands::Cli>();
        let announced = Announced::parse(&mut problems, text);
        match problems.finish() {
            Ok(()) => Ok(announced),
            Err(invalid) => Err(invalid.to_string()),
        }
    }

    #[test]
    fn containers_and_single_rules_are_named() {
        let announced = parse(" mail:8025, mail:8026,web:443, web ,db").unwrap();
        let covers = |id: &str, port| announced.covers_rule(&ContainerId::new(id).unwrap(), port);
        for (id, port, expected) in [
            ("mail", 8025, true),
            ("mail", 8026, true),
            ("mail", 8027, false),
            ("web", 8000, true),
            ("db", 8000, true),
            ("other", 8000, false),
        ] {
            assert_eq!(covers(id, port), expected, "{id}:{port}");
        }
        assert!(
            parse("*")
                .unwrap()
                .covers_rule(&ContainerId::new("any").unwrap(), 1)
        );
        assert_eq!(parse("").unwrap(), Announced::default());
    }

    #[test]
    fn every_mistake_is_said() {
        let why = parse("Mail,web:0,web:x").unwrap_err();
        for part in ["\"Mail\"", "\"0\"", "\"x\""] {
            assert!(why.contains(part), "{part}: {why}");
        }
    }
}
