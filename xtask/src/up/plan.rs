//! What `up` is going to run: folders, ports, and the copy of routes.yaml.
//!
//! `up` prefers the ports of the documentation and says so when one is taken. The tour takes ports
//! that nobody knows, so that it runs beside a running `up`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// Dynamic ports of one gateway.
const RANGE_LENGTH: u16 = 101;

/// Where ports that nobody knows are looked for: below those that the kernel gives to clients.
const QUIET_PORTS: RangeInclusive<u16> = 20_000..=31_900;

/// Folders and ports of one run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Everything that is written lies in here.
    pub(crate) data: PathBuf,
    /// The ports.
    pub(crate) ports: Ports,
}

/// Ports on 127.0.0.1.
#[derive(Clone, Debug)]
pub(crate) struct Ports {
    pub(crate) http: u16,
    pub(crate) https: u16,
    pub(crate) ssh: u16,
    pub(crate) admin: u16,
    pub(crate) range: RangeInclusive<u16>,
    pub(crate) auth: u16,
    pub(crate) auth_admin: u16,
    pub(crate) compute: u16,
    pub(crate) compute_admin: u16,
    pub(crate) nats: u16,
    pub(crate) site: u16,
}

impl Plan {
    /// The ports of the documentation, each replaced by the next free one when it is taken.
    pub(crate) fn preferred(data: PathBuf) -> Result<Self> {
        let mut taken = Vec::new();
        let mut prefer = |port: u16, what: &str| -> Result<u16> {
            let free = (port..=port.saturating_add(50))
                .find(|port| is_free(*port) && !taken.contains(port))
                .with_context(|| {
                    format!(
                        "port {port} ({what}) and the 50 after it are in use: stop what holds them"
                    )
                })?;
            if free != port {
                println!(
                    "port {port} is in use: {what} is on {free} this time \
                     (`ss -ltnp sport = :{port}` shows by whom)"
                );
            }
            taken.push(free);
            Ok(free)
        };
        let https = prefer(8443, "HTTPS")?;
        let http = prefer(18080, "HTTP")?;
        let ssh = prefer(2222, "SSH")?;
        let admin = prefer(9090, "the gateway's admin endpoint")?;
        let auth = prefer(9101, "auth")?;
        let auth_admin = prefer(9191, "auth's admin endpoint")?;
        let compute = prefer(9102, "compute")?;
        let compute_admin = prefer(9192, "compute's admin endpoint")?;
        let site = prefer(9103, "the demo page")?;
        let nats = quiet_ports(1)?;
        let range = preferred_range()?;
        let ports = Ports {
            http,
            https,
            ssh,
            admin,
            range,
            auth,
            auth_admin,
            compute,
            compute_admin,
            nats,
            site,
        };
        Ok(Self { data, ports })
    }

    /// Ports that nobody knows.
    pub(crate) fn scratch(data: PathBuf) -> Result<Self> {
        const SINGLE: u16 = 10;
        let first = quiet_ports(SINGLE + RANGE_LENGTH)?;
        let range = first + SINGLE..=first + SINGLE + RANGE_LENGTH - 1;
        let ports = Ports {
            http: first,
            https: first + 1,
            ssh: first + 2,
            admin: first + 3,
            auth: first + 4,
            auth_admin: first + 5,
            compute: first + 6,
            compute_admin: first + 7,
            nats: first + 8,
            site: first + 9,
            range,
        };
        Ok(Self { data, ports })
    }

    /// Where the daemons log.
    pub(crate) fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// The gateway's state folder.
    pub(crate) fn gateway_state(&self) -> PathBuf {
        self.data.join("state")
    }

    /// The development CA that clients trust.
    pub(crate) fn ca(&self) -> PathBuf {
        self.gateway_state().join("dev-certs/dev-ca.crt")
    }

    /// The copy of routes.yaml.
    pub(crate) fn routes(&self) -> PathBuf {
        self.data.join("routes.yaml")
    }

    /// Where nats-server is.
    pub(crate) fn nats_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.ports.nats)
    }

    /// `sqlite://` of a service's database.
    pub(crate) fn database_url(&self, service: &str) -> String {
        format!(
            "sqlite://{}",
            self.data.join(format!("{service}.db")).display()
        )
    }

    /// Writes the copy of routes.yaml. One that was edited since is kept.
    pub(crate) fn write_routes(&self) -> Result<()> {
        let original = fs::read_to_string(workspace::root().join("routes.yaml"))
            .context("cannot read routes.yaml")?;
        let fresh = loopback_routes(&original, &self.ports);
        let (copy, unedited) = (self.routes(), self.data.join("routes.generated.yaml"));
        let there = fs::read_to_string(&copy).ok();
        let edited = there.is_some() && there != fs::read_to_string(&unedited).ok();
        if edited {
            println!(
                "{} was edited and is kept as it is (remove it for a fresh copy)",
                copy.display()
            );
            return Ok(());
        }
        write_whole(&unedited, fresh.as_bytes())?;
        write_whole(&copy, fresh.as_bytes())
    }
}

/// Writes a file beside its place and renames it: whole or not there.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".writing");
    let temporary = PathBuf::from(temporary);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// routes.yaml with every target on loopback, and routes to what runs here.
fn loopback_routes(original: &str, ports: &Ports) -> String {
    let mut copy = String::from(
        "# A copy of the repository's routes.yaml for this machine: every target is on loopback.\n\
         # Edit it while the gateway runs: a change is in force at once.\n",
    );
    for line in original.lines() {
        match line.split_once("target:") {
            Some((before, target)) if !before.trim_start().starts_with('#') => {
                let port = if target.contains("edd-compute") {
                    ports.compute
                } else {
                    ports.site
                };
                copy.push_str(&format!("{before}target: 127.0.0.1:{port}\n"));
            }
            _ => copy.push_str(&format!("{line}\n")),
        }
    }
    for (comment, host, path, port) in [
        ("The demo page", "localhost", "/", ports.site),
        ("The REST API of auth", "api.localhost", "/api", ports.auth),
        (
            "The REST API of compute",
            "api.localhost",
            "/compute",
            ports.compute,
        ),
    ] {
        copy.push_str(&format!(
            "\n  # {comment}\n  - host: {host}\n    path: {path}\n    target: 127.0.0.1:{port}\n"
        ));
    }
    copy
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok()
}

fn preferred_range() -> Result<RangeInclusive<u16>> {
    let ranges = (8000..=8000).chain((10_000..=19_800).step_by(200));
    let free = ranges
        .map(|first: u16| first..=first + RANGE_LENGTH - 1)
        .find(|range| range.clone().all(is_free));
    let Some(range) = free else {
        bail!(
            "no {RANGE_LENGTH} free ports in a row from 8000 or above 10000: stop what holds them"
        );
    };
    if *range.start() != 8000 {
        let held = (8000..8000 + RANGE_LENGTH)
            .find(|port| !is_free(*port))
            .unwrap_or(8000);
        println!(
            "port {held} is in use: dynamic ports are {}-{} this time instead of 8000-8100",
            range.start(),
            range.end()
        );
    }
    Ok(range)
}

/// The first of `count` free ports in a row. Where the search begins differs from process to
/// process, so that two that start together do not choose the same.
fn quiet_ports(count: u16) -> Result<u16> {
    let slots = (QUIET_PORTS.end() - QUIET_PORTS.start()) / count;
    let offset = u16::try_from(std::process::id() % u32::from(slots)).unwrap_or(0);
    (0..slots)
        .map(|slot| QUIET_PORTS.start() + (slot + offset) % slots * count)
        .find(|first| (*first..first + count).all(is_free))
        .with_context(|| format!("no {count} free ports in a row between 20000 and 32000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_of_the_copy_is_on_loopback() {
        let original = fs::read_to_string(workspace::root().join("routes.yaml")).expect("there");
        let plan = Plan::scratch(PathBuf::from("/nowhere")).expect("ports");
        let copy = loopback_routes(&original, &plan.ports);
        let targets: Vec<&str> = copy
            .lines()
            .filter_map(|line| line.trim().strip_prefix("target: "))
            .collect();
        assert_eq!(targets.len(), 6, "{copy}");
        assert!(
            targets
                .iter()
                .all(|target| target.starts_with("127.0.0.1:")),
            "{copy}"
        );
        assert_eq!(targets[0], format!("127.0.0.1:{}", plan.ports.compute));
        assert_eq!(copy.matches("- host:").count(), 6);
    }

    #[test]
    fn ports_of_a_scratch_run_do_not_overlap() {
        let ports = Plan::scratch(PathBuf::from("/nowhere"))
            .expect("ports")
            .ports;
        assert_eq!(ports.range.clone().count(), usize::from(RANGE_LENGTH));
        assert!(!ports.range.contains(&ports.site) && ports.site < *ports.range.start());
    }
}
