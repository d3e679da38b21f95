//! What a state comes to: 256 sums that do not depend on any order, for two
//! services to find out whether they believe the same.
//!
//! A fact is what decides about a connection: an owner, an address, a switch, a
//! rule, a key. Its SHA-256, cut to 128 bits, is added to the bucket of its
//! entity: what differs can be looked for among a 256th of all.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use edd_proto::compute::{DigestRequest, DigestResponse, StateDigest};
use prost::Message as _;
use uuid::Uuid;

use crate::{
    bus::Bus,
    event::Payload,
    request::RequestError,
    signature::{SignatureError, Signer, Verifier},
    words::Words,
};

/// Where compute answers.
pub const DIGEST_REQUEST: &str = "compute.digest.request";

/// Buckets of a digest.
pub const BUCKETS: usize = 256;

/// As long as reading the whole state.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One thing that is so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fact<'f> {
    /// A container exists and is this user's.
    Container(&'f str, i64),
    /// Its public HTTPS port is switched off.
    HttpsOff(&'f str),
    /// An SSH key with this fingerprint is this user's.
    Key(i64, i64, &'f str),
    /// A rule leads from a public port to a port of the container.
    Rule(&'f str, u16, u16),
    /// It runs at this address, with this SSH host key (empty: unknown).
    Running(&'f str, IpAddr, &'f str),
    /// SSH to it is switched on.
    SshOn(&'f str),
}

/// The sums.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Digest {
    facts: u64,
    sums: Vec<u128>,
}

/// Why there is nothing to compare with.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// No digest, or one of another request.
    #[error("the digest is not consistent: {0}")]
    Inconsistent(String),
    /// Nobody answers, or not in time.
    #[error("compute does not send a digest: {0}")]
    Request(#[from] RequestError),
    /// Compute signs its events, and this is not signed so.
    #[error("the digest is not compute's: {0}")]
    Signature(#[from] SignatureError),
}

impl<'f> Fact<'f> {
    /// What an event of a snapshot says; none: nothing that decides about a connection.
    #[must_use]
    pub fn of(payload: &'f Payload) -> Option<Self> {
        let port = |port: i32| u16::try_from(port).ok();
        Some(match payload {
            Payload::ContainerCreated(m) => Self::Container(&m.container_id, m.user_id),
            Payload::ContainerStarted(m) => Self::Running(
                &m.container_id,
                m.external_ip.parse().ok()?,
                &m.ssh_host_key,
            ),
            Payload::ContainerSshToggled(m) if m.ssh_enabled => Self::SshOn(&m.container_id),
            Payload::ContainerHttpsToggled(m) if !m.https_enabled => {
                Self::HttpsOff(&m.container_id)
            }
            Payload::IngressRuleRequested(m) => {
                Self::Rule(&m.container_id, port(m.port)?, port(m.target_port)?)
            }
            Payload::SshKeyCreated(m) => Self::Key(m.key_id, m.user_id, &m.fingerprint),
            _ => return None,
        })
    }

    /// The entity that it is about, and what it says, so that no two facts look the same.
    fn written(&self) -> (String, String) {
        match self {
            Self::Container(id, owner) => (container(id), format!("owner {owner}")),
            Self::HttpsOff(id) => (container(id), "https off".to_owned()),
            Self::Key(id, owner, fingerprint) => (key(*id), format!("key {owner} {fingerprint}")),
            Self::Rule(id, port, target) => (container(id), format!("rule {port} {target}")),
            Self::Running(id, address, host_key) => (
                container(id),
                format!("running {} {host_key}", address.to_canonical()),
            ),
            Self::SshOn(id) => (container(id), "ssh on".to_owned()),
        }
    }
}

/// Where the facts of a container fall.
#[must_use]
pub fn bucket_of_container(id: &str) -> u8 {
    bucket(&container(id))
}

/// Where the facts of a key fall.
#[must_use]
pub fn bucket_of_key(id: i64) -> u8 {
    bucket(&key(id))
}

fn container(id: &str) -> String {
    format!("container {id}")
}

fn key(id: i64) -> String {
    format!("key {id}")
}

fn bucket(entity: &str) -> u8 {
    u8::try_from(hash(entity) & 0xff).unwrap_or_default()
}

fn hash(text: &str) -> u128 {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let mut half = [0; 16];
    for (to, from) in half.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    u128::from_le_bytes(half)
}

impl Default for Digest {
    fn default() -> Self {
        Self {
            facts: 0,
            sums: vec![0; BUCKETS],
        }
    }
}

impl Digest {
    /// Adds a fact.
    pub fn add(&mut self, fact: &Fact<'_>) {
        let (entity, says) = fact.written();
        self.facts += 1;
        if let Some(sum) = self.sums.get_mut(usize::from(bucket(&entity))) {
            *sum = sum.wrapping_add(hash(&format!("{entity} {says}")));
        }
    }

    /// How many facts.
    #[must_use]
    pub fn facts(&self) -> u64 {
        self.facts
    }

    /// The buckets in which two digests differ.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<u8> {
        let both = self.sums.iter().zip(&other.sums);
        let differing = (0..=u8::MAX).zip(both).filter(|(_, (a, b))| a != b);
        differing.map(|(bucket, _)| bucket).collect()
    }

    /// The encoded answer to a request; `sequence` was read before the state was.
    #[must_use]
    pub fn answer(
        &self,
        request: &DigestRequest,
        sequence: u64,
        signer: Option<&Signer>,
    ) -> Vec<u8> {
        let digest = StateDigest {
            nonce: request.nonce.clone(),
            sequence,
            facts: self.facts,
            sums: self.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect(),
        };
        let digest = digest.encode_to_vec();
        let words = Words::sign(signer, DIGEST_REQUEST, &request.nonce, &digest);
        DigestResponse {
            digest,
            signature: words.signature,
            signature_key: words.key,
        }
        .encode_to_vec()
    }
}

/// Asks compute; the sequence of COMPUTE and the digest. With a verifier that knows compute's keys
/// it has to be signed by one of them.
///
/// # Errors
/// No answer within 30 s, or none that can be used.
pub async fn fetch(
    bus: &impl Bus,
    verifier: Option<&Verifier>,
) -> Result<(u64, Digest), DigestError> {
    let bad = |what: String| DigestError::Inconsistent(what);
    let nonce = Uuid::now_v7().to_string();
    let request = DigestRequest {
        nonce: nonce.clone(),
    };
    let payload = Bytes::from(request.encode_to_vec());
    let reply = bus.request(DIGEST_REQUEST, payload, TIMEOUT).await?;
    let answer = DigestResponse::decode(reply).map_err(|error| bad(error.to_string()))?;
    if let Some(verifier) = verifier {
        let headers = Words {
            signature: answer.signature,
            key: answer.signature_key,
        }
        .headers();
        verifier.check(DIGEST_REQUEST, &nonce, &answer.digest, Some(&headers))?;
    }
    let found = StateDigest::decode(answer.digest.as_slice()).map_err(|e| bad(e.to_string()))?;
    if found.nonce != nonce {
        return Err(bad("an answer to another request".to_owned()));
    }
    let sums: Vec<u128> = found
        .sums
        .chunks_exact(16)
        .filter_map(|sum| sum.try_into().ok().map(u128::from_le_bytes))
        .collect();
    if sums.len() != BUCKETS || found.sums.len() != BUCKETS * 16 {
        return Err(bad(format!("{} bytes of sums", found.sums.len())));
    }
    let facts = found.facts;
    Ok((found.sequence, Digest { facts, sums }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: [Fact<'_>; 6] = [
        Fact::Container("c1", 7),
        Fact::HttpsOff("c1"),
        Fact::Key(3, 7, "SHA256:x"),
        Fact::Rule("c1", 80, 8080),
        Fact::Running("c1", IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), ""),
        Fact::SshOn("c1"),
    ];

    fn of(facts: &[Fact<'_>]) -> Digest {
        let mut digest = Digest::default();
        for fact in facts {
            digest.add(fact);
        }
        digest
    }

    #[test]
    fn the_order_does_not_matter_and_every_fact_does() {
        let all = of(&FACTS);
        let mut turned = FACTS;
        turned.reverse();
        assert_eq!(of(&turned), all);
        for skipped in 0..FACTS.len() {
            let mut fewer = FACTS.to_vec();
            let fact = fewer.remove(skipped);
            let expected = match fact {
                Fact::Key(id, ..) => bucket_of_key(id),
                _ => bucket_of_container("c1"),
            };
            assert_eq!(of(&fewer).differing(&all), [expected], "{fact:?}");
        }
    }

    #[test]
    fn other_content_gives_other_sums() {
        let all = of(&FACTS);
        for (n, other) in [
            (0, Fact::Container("c1", 8)),
            (2, Fact::Key(3, 7, "SHA256:y")),
            (3, Fact::Rule("c1", 80, 8081)),
            (4, Fact::Running("c1", "127.0.0.2".parse().unwrap(), "")),
        ] {
            let mut facts = FACTS.to_vec();
            facts[n] = other;
            assert_eq!(of(&facts).differing(&all).len(), 1, "{other:?}");
        }
    }

    /// The two forms of an address are one address.
    #[test]
    fn a_mapped_address_is_the_one_it_maps() {
        let mapped = Fact::Running("c1", "::ffff:127.0.0.1".parse().unwrap(), "");
        assert_eq!(of(&[mapped]), of(&[FACTS[4]]));
    }
}
