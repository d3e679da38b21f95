//! A real NATS, and the events of compute and auth published on it.

use std::time::Instant;

use async_nats::jetstream::{self, message::PublishMessage};
use bytes::Bytes;
use edd_events::envelope::{Cause, EventMessage, seal};
use edd_events::stream::{AUTH, COMPUTE, GATEWAY, ensure};
use edd_events::subject::EntityId;
use edd_events::testing::NatsServer;
use edd_proto::{auth, compute};

use super::DEADLINE;

/// NATS with the streams of the cloud.
pub(crate) struct Bus {
    pub(crate) server: NatsServer,
    pub(crate) js: jetstream::Context,
}

impl Bus {
    pub(crate) async fn start() -> Self {
        let server = NatsServer::start().await;
        let js = server.jetstream().await;
        for stream in [&AUTH, &COMPUTE, &GATEWAY] {
            ensure(&js, stream, 1).await.expect("a stream");
        }
        Self { server, js }
    }

    /// Publishes and waits for the stream's ack; its sequence. Sent again where no ack comes, as
    /// over a connection that has just broken: the stream knows its id.
    pub(crate) async fn publish<M: EventMessage>(&self, id: &str, version: i64, message: M) -> u64 {
        let entity = EntityId::try_from(id).expect("a good id");
        let sealed = seal("test", &entity, version, message, &Cause::default());
        let payload = Bytes::from(sealed.payload);
        let begun = Instant::now();
        loop {
            let publish = PublishMessage::build()
                .message_id(&sealed.event_id)
                .payload(payload.clone());
            let subject = sealed.subject.clone();
            let ack = self.js.send_publish(subject, publish).await.expect("sent");
            match ack.await {
                Ok(stored) => return stored.sequence,
                Err(error) => assert!(begun.elapsed() < DEADLINE, "not stored: {error}"),
            }
        }
    }

    /// A container of `owner` that runs at `address` with SSH on and these ingress rules.
    pub(crate) async fn container(
        &self,
        id: &str,
        owner: i64,
        address: &str,
        rules: &[(u16, u16)],
    ) {
        self.created(id, owner).await;
        self.started(id, address, None).await;
        self.ssh(id, true).await;
        for &(port, target) in rules {
            self.rule(id, port, target).await;
        }
    }

    pub(crate) async fn created(&self, id: &str, owner: i64) {
        let message = compute::ContainerCreated {
            container_id: id.into(),
            user_id: owner,
            name: id.into(),
            ..Default::default()
        };
        self.publish(id, 0, message).await;
    }

    pub(crate) async fn started(&self, id: &str, address: &str, host_key: Option<&str>) {
        let message = compute::ContainerStarted {
            container_id: id.into(),
            external_ip: address.into(),
            ssh_host_key: host_key.unwrap_or_default().into(),
            ..Default::default()
        };
        self.publish(id, 0, message).await;
    }

    pub(crate) async fn stopped(&self, id: &str) {
        let message = compute::ContainerStopped {
            container_id: id.into(),
            ..Default::default()
        };
        self.publish(id, 0, message).await;
    }

    pub(crate) async fn deleted(&self, id: &str, owner: i64) {
        let message = compute::ContainerDeleted {
            container_id: id.into(),
            user_id: owner,
            ..Default::default()
        };
        self.publish(id, 0, message).await;
    }

    pub(crate) async fn ssh(&self, id: &str, ssh_enabled: bool) {
        let message = compute::ContainerSshToggled {
            container_id: id.into(),
            ssh_enabled,
            ..Default::default()
        };
        self.publish(id, 0, message).await;
    }

    pub(crate) async fn https(&self, id: &str, https_enabled: bool) {
        let message = compute::ContainerHttpsToggled {
            container_id: id.into(),
            https_enabled,
            ..Default::default()
        };
        self.publish(id, 0, message).await;
    }

    pub(crate) async fn rule(&self, id: &str, port: u16, target_port: u16) {
        let message = compute::IngressRuleRequested {
            container_id: id.into(),
            port: port.into(),
            target_port: target_port.into(),
            ..Default::default()
        };
        self.publish(id, 0, message).await;
    }

    pub(crate) async fn rule_deleted(&self, id: &str, port: u16) {
        let message = compute::IngressRuleDeleteRequested {
            container_id: id.into(),
            port: port.into(),
            ..Default::default()
        };
        self.publish(id, 0, message).await;
    }

    pub(crate) async fn key(&self, key_id: i64, user_id: i64, fingerprint: &str) {
        let message = compute::SshKeyCreated {
            key_id,
            user_id,
            fingerprint: fingerprint.into(),
            ..Default::default()
        };
        self.publish(&key_id.to_string(), 0, message).await;
    }

    pub(crate) async fn key_deleted(&self, key_id: i64, user_id: i64) {
        let message = compute::SshKeyDeleted {
            key_id,
            user_id,
            ..Default::default()
        };
        self.publish(&key_id.to_string(), 0, message).await;
    }

    pub(crate) async fn user_deleted(&self, user_id: i64) {
        let message = auth::UserDeleted {
            user_id,
            ..Default::default()
        };
        self.publish(&user_id.to_string(), 0, message).await;
    }
}
