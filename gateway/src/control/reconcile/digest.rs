//! What the state comes to, for comparison with compute's; and doubting part of it.

use edd_events::digest::{Digest, Fact, bucket_of_container, bucket_of_key};
use edd_route::{ContainerId, UserId};

use super::entity::Stamp;
use super::state::State;

impl State {
    /// The digest of what compute is asked about.
    pub fn digest(&self) -> Digest {
        let mut digest = Digest::default();
        for (id, container) in self.containers() {
            let Some(created) = &container.created else {
                continue;
            };
            let id = id.as_str();
            digest.add(&Fact::Container(id, created.owner.0));
            if let Some(running) = &container.run.running {
                let host_key = running.ssh_host_key.as_deref().unwrap_or_default();
                digest.add(&Fact::Running(id, running.address, host_key));
            }
            if container.ssh.on {
                digest.add(&Fact::SshOn(id));
            }
            if !container.https.on {
                digest.add(&Fact::HttpsOff(id));
            }
            for (port, rule) in &container.rules {
                if let Some(target) = rule.target {
                    digest.add(&Fact::Rule(id, *port, target));
                }
            }
        }
        for (id, key) in self.keys() {
            let UserId(owner) = key.user;
            digest.add(&Fact::Key(id, owner, &key.fingerprint));
        }
        digest
    }

    /// Makes everything in these buckets that is not newer than the stream's `sequence` older than
    /// any event, so that what compute says as of then is believed also where it has the same
    /// version. Until then its containers are not created. What is newer compute does not tell:
    /// it stays, and so does what it is about.
    pub fn doubt(&mut self, buckets: &[u8], sequence: u64) {
        let is_doubted = |bucket: u8| buckets.contains(&bucket);
        let doubted = |stamp: &mut Stamp| {
            if stamp.sequence <= sequence {
                *stamp = Stamp::default();
            }
        };
        let containers: Vec<ContainerId> = self
            .containers()
            .map(|(id, _)| id.clone())
            .filter(|id| is_doubted(bucket_of_container(id.as_str())))
            .collect();
        let keys: Vec<i64> = self
            .keys()
            .map(|(id, _)| id)
            .filter(|id| is_doubted(bucket_of_key(*id)))
            .collect();
        for id in containers {
            let Some(container) = self.container(&id) else {
                continue;
            };
            let mut container = container.clone();
            doubted(&mut container.run.stamp);
            doubted(&mut container.ssh.stamp);
            doubted(&mut container.https.stamp);
            for rule in container.rules.values_mut() {
                doubted(&mut rule.stamp);
            }
            // Of two that differ the earlier would count.
            container.created = container
                .created
                .filter(|created| created.sequence > sequence);
            self.forget_container(&id);
            self.restore_container(id, container);
        }
        for id in keys {
            let Some(key) = self.key(id) else { continue };
            let mut key = key.clone();
            doubted(&mut key.stamp);
            self.forget_key(id);
            self.restore_key(id, key);
        }
    }
}
