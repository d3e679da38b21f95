//! Small tables, written briefly.

use std::net::{IpAddr, Ipv4Addr};

use edd_route::decide::{HttpDecision, HttpQuestion};
use edd_route::{
    ContainerId, ContainerSpec, Door, Host, KeySpec, Origin, RouteTable, RuleSpec, RunSpec,
    Settings, StaticRouteSpec, TableWriter, TargetSpec, UserId,
};

pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

pub(crate) fn event(sequence: u64) -> Origin {
    let subject = "compute.container.c.started".to_owned();
    Origin::Event {
        subject,
        sequence,
        event_id: format!("e{sequence}"),
        at_ms: 1,
    }
}

pub(crate) fn route(host: &str, path: &str, target: &str) -> StaticRouteSpec {
    let origin = Origin::File {
        file: "routes.yaml".into(),
        line: 1,
    };
    StaticRouteSpec::new(host, path, vec![TargetSpec::http(target)], origin)
}

/// A running container at 10.0.0.1 with these rules, owned by user 1.
pub(crate) fn container(id: &str, rules: &[(u16, u16)]) -> ContainerSpec {
    ContainerSpec {
        id: ContainerId::new(id).expect("a good id"),
        owner: UserId(1),
        name: id.into(),
        running: Some(RunSpec {
            address: Ipv4Addr::new(10, 0, 0, 1).into(),
            ssh_host_key: None,
            start: 1,
            origin: event(1),
        }),
        ssh_enabled: false,
        https_enabled: true,
        rules: rules
            .iter()
            .map(|&(port, target_port)| RuleSpec {
                port,
                target_port,
                origin: event(2),
            })
            .collect(),
        origin: event(0),
    }
}

pub(crate) fn key(id: i64, fingerprint: &str) -> KeySpec {
    KeySpec {
        id,
        fingerprint: fingerprint.into(),
        origin: event(3),
    }
}

pub(crate) fn writer(statics: Vec<StaticRouteSpec>, containers: Vec<ContainerSpec>) -> TableWriter {
    let settings = Settings::new("cloud.example.com", vec![443, 8443]);
    let mut writer = TableWriter::new(RouteTable::empty(settings));
    writer.set_statics(statics);
    for container in containers {
        writer.put_container(container);
    }
    writer
}

pub(crate) fn ask(table: &RouteTable, door: Door, host: &str, path: &str) -> HttpDecision {
    let host = Host::parse(host).expect("a good host");
    let secure = door == Door::PublicHttps;
    table.decide_http(&HttpQuestion {
        door,
        secure,
        host: &host,
        path,
        client: CLIENT,
    })
}

/// The decision in a few letters, for tables of expectations.
pub(crate) fn brief(decision: &HttpDecision) -> String {
    match decision {
        HttpDecision::Container(to) => format!("{} {}", to.id, to.upstream),
        HttpDecision::RedirectToHttps => "308".into(),
        HttpDecision::Refused(refusal) => refusal.status().to_string(),
        HttpDecision::Static(found) => found.route.spec.targets_text(),
    }
}
