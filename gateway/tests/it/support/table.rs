//! Puts containers into a gateway's table directly, where a test is not about events.

use std::net::SocketAddr;
use std::sync::Arc;

use edd_route::name::UserId;
use edd_route::{ContainerId, ContainerSpec, Origin, RouteTable, RuleSpec, RunSpec, TableWriter};

use super::Gateway;

/// The writer of one gateway's table.
pub(crate) struct Table {
    writer: TableWriter,
    shared: Arc<edd_gateway::shared::Shared>,
    starts: u64,
}

impl Table {
    /// Goes on from what is in force.
    pub(crate) fn of(gateway: &Gateway) -> Self {
        Self {
            writer: TableWriter::new(RouteTable::clone(&gateway.table())),
            shared: Arc::clone(&gateway.shared),
            starts: 0,
        }
    }

    /// A container that runs at `upstream`, reached by `port` (80, 443 or dynamic).
    pub(crate) fn run(&mut self, id: &str, port: u16, upstream: SocketAddr) {
        self.starts += 1;
        let origin = Origin::Event {
            subject: "test".into(),
            sequence: self.starts,
            event_id: "test".into(),
            at_ms: 0,
        };
        self.writer.put_container(ContainerSpec {
            id: ContainerId::new(id).expect("a good id"),
            owner: UserId(1),
            name: id.into(),
            running: Some(RunSpec {
                address: upstream.ip(),
                ssh_host_key: None,
                start: self.starts,
                origin: origin.clone(),
            }),
            ssh_enabled: false,
            https_enabled: true,
            rules: vec![RuleSpec {
                port,
                target_port: upstream.port(),
                origin: origin.clone(),
            }],
            origin,
        });
        self.publish();
    }

    /// Takes a container out of force; its connections end.
    pub(crate) fn remove(&mut self, id: &str) {
        self.writer
            .remove_container(&ContainerId::new(id).expect("a good id"));
        self.publish();
    }

    fn publish(&mut self) {
        let published = self.writer.publish(0).expect("a change");
        self.shared.swap(published);
    }
}
