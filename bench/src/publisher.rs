//! Publishes the events of containers straight to JetStream, as compute's relay would.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use async_nats::HeaderMap;
use async_nats::jetstream::{self, context::PublishAckFuture};
use edd_events::connect::{NatsOptions, connect};
use edd_events::envelope::{Cause, EventMessage, seal};
use edd_events::stream::{self, COMPUTE};
use edd_events::subject::EntityId;
use edd_proto::compute::{
    ContainerCreated, ContainerSshToggled, ContainerStarted, ContainerStopped,
    IngressRuleRequested, SshKeyCreated,
};

use crate::stats::Samples;

/// Publishes sealed events with the event id as message id.
pub(crate) struct Publisher {
    js: jetstream::Context,
    guest: SocketAddr,
    /// Put in front of the subjects; empty: the gateway hears of it.
    prefix: &'static str,
    /// Greater than every version before.
    version: AtomicI64,
}

impl Publisher {
    /// A publisher of containers whose web server is `guest`.
    pub(crate) async fn connect(nats_url: &str, guest: SocketAddr) -> Result<Self> {
        let nats = NatsOptions {
            url: nats_url.to_owned(),
            name: "edd-bench".to_owned(),
            ..NatsOptions::default()
        };
        let nats = connect(&nats).await.context("cannot reach nats-server")?;
        let js = jetstream::new(nats);
        stream::ensure(&js, &COMPUTE, 1)
            .await
            .context("no stream COMPUTE")?;
        Ok(Self {
            js,
            guest,
            prefix: "",
            version: AtomicI64::new(1),
        })
    }

    /// A publisher of the same events into a stream that no gateway reads.
    pub(crate) async fn elsewhere(&self) -> Result<Self> {
        let config = jetstream::stream::Config {
            name: "ELSEWHERE".to_owned(),
            subjects: vec!["elsewhere.>".to_owned()],
            ..Default::default()
        };
        let stream = self.js.get_or_create_stream(config).await;
        stream.context("no stream ELSEWHERE")?;
        Ok(Self {
            js: self.js.clone(),
            guest: self.guest,
            prefix: "elsewhere.",
            version: AtomicI64::new(1),
        })
    }

    /// A version for the next change.
    pub(crate) fn next_version(&self) -> i64 {
        self.version.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A container that runs, with a rule for each of `ports`.
    pub(crate) async fn create(
        &self,
        id: &str,
        ports: &[u16],
        version: i64,
    ) -> Result<Vec<PublishAckFuture>> {
        let created = ContainerCreated {
            container_id: id.to_owned(),
            user_id: 1,
            owner_username: "bench".to_owned(),
            name: id.to_owned(),
            ..ContainerCreated::default()
        };
        let mut acks = vec![self.publish(id, version, created).await?];
        for port in ports {
            let requested = IngressRuleRequested {
                container_id: id.to_owned(),
                port: i32::from(*port),
                target_port: i32::from(self.guest.port()),
                ..IngressRuleRequested::default()
            };
            acks.push(self.publish(id, version, requested).await?);
        }
        acks.push(self.start(id, version).await?);
        Ok(acks)
    }

    /// It runs.
    pub(crate) async fn start(&self, id: &str, version: i64) -> Result<PublishAckFuture> {
        let started = ContainerStarted {
            container_id: id.to_owned(),
            external_ip: self.guest.ip().to_string(),
            ..ContainerStarted::default()
        };
        self.publish(id, version, started).await
    }

    /// SSH is on, and this key is the owner's.
    pub(crate) async fn let_in(
        &self,
        id: &str,
        public_key: &str,
        fingerprint: &str,
    ) -> Result<Vec<PublishAckFuture>> {
        let toggled = ContainerSshToggled {
            container_id: id.to_owned(),
            ssh_enabled: true,
            ..ContainerSshToggled::default()
        };
        let key = SshKeyCreated {
            key_id: 1,
            user_id: 1,
            name: "bench".to_owned(),
            public_key: public_key.to_owned(),
            fingerprint: fingerprint.to_owned(),
            ..SshKeyCreated::default()
        };
        let version = self.next_version();
        Ok(vec![
            self.publish(id, version, toggled).await?,
            self.publish("1", version, key).await?,
        ])
    }

    /// It runs no more.
    pub(crate) async fn stop(&self, id: &str, version: i64) -> Result<PublishAckFuture> {
        let stopped = ContainerStopped {
            container_id: id.to_owned(),
            ..ContainerStopped::default()
        };
        self.publish(id, version, stopped).await
    }

    async fn publish<M: EventMessage>(
        &self,
        id: &str,
        version: i64,
        message: M,
    ) -> Result<PublishAckFuture> {
        let entity = EntityId::try_from(id).context("a container id")?;
        let entry = seal("edd-bench", &entity, version, message, &Cause::default());
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", entry.event_id.as_str());
        self.js
            .publish_with_headers(
                format!("{}{}", self.prefix, entry.subject),
                headers,
                entry.payload.into(),
            )
            .await
            .context("cannot publish")
    }

    /// What publishing alone costs, with an event that changes nothing.
    pub(crate) async fn ack_times(&self) -> Result<Samples> {
        let mut samples = Samples::default();
        for _ in 0..100 {
            let started = Instant::now();
            self.start("filled-0", 1)
                .await?
                .await
                .context("the stream did not take an event")?;
            samples.push(started.elapsed());
        }
        Ok(samples)
    }
}
