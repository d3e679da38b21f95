//! Compute's whole state over requests, for a gateway that cannot hear it from
//! the streams any more: asking for it, and answering.
//!
//! A snapshot tells the state in the words of events, each with the version that
//! its fact has, so that it is decoded, checked and reduced as events are, and
//! what comes twice is stale. It holds at least all events of the stream up to
//! its sequence, which was read before the state; what it does not tell does not
//! exist.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use edd_proto::compute::{SnapshotFact, SnapshotPage, SnapshotRequest, SnapshotResponse};
use prost::Message as _;
use uuid::Uuid;

use crate::{
    bus::Bus,
    event::{Decoded, Delivery, Position, decode},
    outbox::OutboxEntry,
    request::RequestError,
    signature::{SignatureError, Signer, Verifier},
    stream::{AUTH, COMPUTE},
    words::Words,
};

/// Where compute answers.
pub const SNAPSHOT_REQUEST: &str = "compute.snapshot.request";

/// The first page takes as long as reading the whole state.
const FIRST_TIMEOUT: Duration = Duration::from_secs(30);
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// A page that does not come is asked for again so often.
const PAGE_TRIES: usize = 3;
/// A page is closed beyond this, in bytes; one fact may exceed it.
const PAGE_BYTES: usize = 256 * 1024;
/// More pages are no state of ours.
const PAGES_MAX: i32 = 20_000;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Something in it nobody can use.
    #[error("the snapshot is not consistent: {0}")]
    Inconsistent(String),
    /// Nobody answers, or not in time.
    #[error("compute does not send a snapshot: {0}")]
    Request(#[from] RequestError),
    /// Compute signs its events, and this is not signed so.
    #[error("the snapshot is not compute's: {0}")]
    Signature(#[from] SignatureError),
}

/// The state of compute.
#[derive(Debug)]
pub struct Snapshot {
    /// Of COMPUTE: everything up to here is part of it.
    pub sequence: u64,
    /// Its facts, as if they had been delivered just now.
    pub facts: Vec<Delivery>,
}

/// Asks for the whole state. With a verifier that knows compute's keys every
/// page has to be signed by one of them.
///
/// # Errors
/// No answer in time (30 s for the first page, 5 s for others, thrice), or none
/// that can be used. Nothing is retried beyond that.
pub async fn fetch(bus: &impl Bus, verifier: Option<&Verifier>) -> Result<Snapshot, SnapshotError> {
    let first = page(bus, verifier, "", 0, FIRST_TIMEOUT).await?;
    let (id, pages, sequence) = (first.snapshot_id.clone(), first.pages, first.sequence);
    if !(1..=PAGES_MAX).contains(&pages) {
        return Err(inconsistent(format!("{pages} pages")));
    }
    let mut facts = Vec::new();
    read_facts(&first, &mut facts)?;
    for number in 1..pages {
        let mut tries = 0;
        let next = loop {
            tries += 1;
            match page(bus, verifier, &id, number, PAGE_TIMEOUT).await {
                Err(SnapshotError::Request(_)) if tries < PAGE_TRIES => {}
                other => break other?,
            }
        };
        let same = (
            next.snapshot_id.as_str(),
            next.page,
            next.pages,
            next.sequence,
        ) == (id.as_str(), number, pages, sequence);
        if !same {
            return Err(inconsistent(format!("page {number} is of another one")));
        }
        read_facts(&next, &mut facts)?;
    }
    Ok(Snapshot { sequence, facts })
}

async fn page(
    bus: &impl Bus,
    verifier: Option<&Verifier>,
    snapshot_id: &str,
    page: i32,
    within: Duration,
) -> Result<SnapshotPage, SnapshotError> {
    let nonce = Uuid::now_v7().to_string();
    let request = SnapshotRequest {
        snapshot_id: snapshot_id.to_owned(),
        page,
        nonce: nonce.clone(),
    };
    let payload = Bytes::from(request.encode_to_vec());
    let reply = bus.request(SNAPSHOT_REQUEST, payload, within).await?;
    let bad = |error: prost::DecodeError| inconsistent(error.to_string());
    let answer = SnapshotResponse::decode(reply).map_err(bad)?;
    if let Some(verifier) = verifier {
        let headers = Words {
            signature: answer.signature,
            key: answer.signature_key,
        }
        .headers();
        verifier.check(SNAPSHOT_REQUEST, &nonce, &answer.page, Some(&headers))?;
    }
    let found = SnapshotPage::decode(answer.page.as_slice()).map_err(bad)?;
    if found.nonce != nonce {
        return Err(inconsistent("an answer to another request".to_owned()));
    }
    Ok(found)
}

/// Users' facts have no place in COMPUTE's order: they are ordered by their
/// versions alone.
fn read_facts(page: &SnapshotPage, facts: &mut Vec<Delivery>) -> Result<(), SnapshotError> {
    let published_at = SystemTime::now();
    for fact in &page.facts {
        let of_compute = fact.subject.starts_with("compute.");
        if !of_compute && !fact.subject.starts_with("auth.user.") {
            return Err(inconsistent(format!("a fact of {:?}", fact.subject)));
        }
        let (stream, sequence) = if of_compute {
            (COMPUTE.name, page.sequence)
        } else {
            (AUTH.name, 0)
        };
        let position = Position {
            stream: stream.to_owned(),
            sequence,
            published_at,
        };
        match decode(&fact.subject, &fact.payload, None, &position) {
            Decoded::Event(event) => facts.push(Delivery {
                event: *event,
                position,
                deliveries: 1,
            }),
            // A newer compute knows more than we do.
            Decoded::Unknown => {}
            Decoded::Bad(_, bad) => {
                return Err(inconsistent(format!("{:?}: {bad}", fact.subject)));
            }
            Decoded::DeadLetter => return Err(inconsistent("a dead letter".to_owned())),
        }
    }
    Ok(())
}

fn inconsistent(what: String) -> SnapshotError {
    SnapshotError::Inconsistent(what)
}

/// A snapshot cut into pages, for whoever answers.
#[derive(Debug)]
pub struct Pages {
    id: String,
    sequence: u64,
    pages: Vec<Vec<SnapshotFact>>,
}

impl Pages {
    /// Cuts the facts; `sequence` was read before they were.
    #[must_use]
    pub fn new(sequence: u64, facts: Vec<OutboxEntry>) -> Self {
        let mut pages = vec![Vec::new()];
        let mut bytes = 0;
        for fact in facts {
            let len = fact.subject.len() + fact.payload.len();
            if bytes > 0 && bytes + len > PAGE_BYTES {
                pages.push(Vec::new());
                bytes = 0;
            }
            bytes += len;
            if let Some(page) = pages.last_mut() {
                page.push(SnapshotFact {
                    subject: fact.subject,
                    payload: fact.payload,
                });
            }
        }
        Self {
            id: Uuid::now_v7().to_string(),
            sequence,
            pages,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The encoded answer to a request for one of its pages.
    #[must_use]
    pub fn answer(&self, request: &SnapshotRequest, signer: Option<&Signer>) -> Vec<u8> {
        let number = usize::try_from(request.page).ok();
        let facts = number.and_then(|number| self.pages.get(number));
        seal_page(
            SnapshotPage {
                snapshot_id: self.id.clone(),
                page: request.page,
                pages: i32::try_from(self.pages.len()).unwrap_or(i32::MAX),
                sequence: self.sequence,
                nonce: request.nonce.clone(),
                facts: facts.cloned().unwrap_or_default(),
            },
            signer,
        )
    }
}

/// The encoded answer when there is no such snapshot any more.
#[must_use]
pub fn no_such_snapshot(request: &SnapshotRequest, signer: Option<&Signer>) -> Vec<u8> {
    let page = SnapshotPage {
        page: request.page,
        nonce: request.nonce.clone(),
        ..SnapshotPage::default()
    };
    seal_page(page, signer)
}

fn seal_page(page: SnapshotPage, signer: Option<&Signer>) -> Vec<u8> {
    let nonce = page.nonce.clone();
    let page = page.encode_to_vec();
    let words = Words::sign(signer, SNAPSHOT_REQUEST, &nonce, &page);
    SnapshotResponse {
        signature: words.signature,
        signature_key: words.key,
        page,
    }
    .encode_to_vec()
}
