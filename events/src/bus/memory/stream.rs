//! A stream: its messages by sequence, and which ids it has seen.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::SystemTime,
};

use async_nats::{HeaderMap, Subject, header::NATS_MESSAGE_ID};
use bytes::Bytes;
use tokio::time::Instant;

use super::durable::Consumer;
use crate::{
    bus::{Durable, Kept, Stored, StreamState},
    stream::{DUPLICATE_WINDOW, MAX_AGE, takes},
};

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) name: Arc<str>,
    /// Unix nanoseconds.
    created: i64,
    pub(super) subjects: Vec<String>,
    pub(super) messages: BTreeMap<u64, Message>,
    pub(super) durables: BTreeMap<String, Consumer>,
    last: u64,
    ids: HashMap<String, u64>,
    /// The same ids by age.
    seen: VecDeque<(Instant, String)>,
}

/// A message that is kept.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) message: async_nats::Message,
    pub(super) published: SystemTime,
    stored_at: Instant,
}

impl Stream {
    pub(super) fn new(name: &str, created: i64) -> Self {
        Self {
            name: name.into(),
            created,
            subjects: Vec::new(),
            messages: BTreeMap::new(),
            durables: BTreeMap::new(),
            last: 0,
            ids: HashMap::new(),
            seen: VecDeque::new(),
        }
    }

    /// The consumer of this durable, made if missing.
    pub(super) fn consumer(&mut self, durable: &Durable, from: u64) -> &Consumer {
        let (messages, last) = (&self.messages, self.last);
        let made = || {
            let unseen = messages
                .range(from..)
                .filter(|(_, kept)| takes(&durable.filter, &kept.message.subject))
                .count() as u64;
            // A consumer that begins behind the end begins with what comes.
            Consumer::new(durable, from.min(last + 1).max(1), unseen)
        };
        self.durables
            .entry(durable.name.clone())
            .or_insert_with(made)
    }

    pub(super) fn store(
        &mut self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        now: Instant,
        published: SystemTime,
    ) -> Stored {
        self.expire(now);
        let id = headers
            .get(NATS_MESSAGE_ID)
            .map(|id| id.as_str().to_owned());
        if let Some(id) = id {
            if let Some(sequence) = self.ids.get(&id) {
                return Stored {
                    sequence: *sequence,
                    duplicate: true,
                };
            }
            self.ids.insert(id.clone(), self.last + 1);
            self.seen.push_back((now, id));
        }
        self.last += 1;
        for durable in self.durables.values_mut() {
            durable.unseen += u64::from(takes(&durable.filter, subject));
        }
        let length = size(&headers, &payload);
        let message = async_nats::Message {
            subject: Subject::from(subject),
            reply: None,
            payload,
            headers: (!headers.is_empty()).then_some(headers),
            status: None,
            description: None,
            length,
        };
        let kept = Message {
            message,
            published,
            stored_at: now,
        };
        self.messages.insert(self.last, kept);
        Stored {
            sequence: self.last,
            duplicate: false,
        }
    }

    /// Forgets what is too old by now.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((at, _)) = self.seen.front()
            && now.duration_since(*at) >= DUPLICATE_WINDOW
            && let Some((_, id)) = self.seen.pop_front()
        {
            self.ids.remove(&id);
        }
        while let Some(oldest) = self.messages.first_entry()
            && now.duration_since(oldest.get().stored_at) >= MAX_AGE
        {
            let (sequence, kept) = oldest.remove_entry();
            for durable in self.durables.values_mut() {
                durable.gone(sequence, &kept.message.subject);
            }
        }
    }

    pub(super) fn sequences(&self) -> StreamState {
        let first = self.messages.first_key_value().map(|(first, _)| *first);
        StreamState {
            created: self.created,
            first_sequence: first.unwrap_or(self.last + 1),
            last_sequence: self.last,
        }
    }

    pub(super) fn count(&self, pattern: &str) -> u64 {
        let kept = self.messages.values();
        kept.filter(|kept| takes(pattern, &kept.message.subject))
            .count() as u64
    }

    pub(super) fn find(&self, pattern: &str, from: u64) -> Option<Kept> {
        let mut later = self.messages.range(from..);
        later
            .find(|(_, kept)| takes(pattern, &kept.message.subject))
            .map(|(sequence, kept)| kept.kept(*sequence))
    }

    pub(super) fn get(&self, sequence: u64) -> Option<Kept> {
        self.messages.get(&sequence).map(|kept| kept.kept(sequence))
    }

    pub(super) fn all(&self) -> Vec<Kept> {
        let all = self.messages.iter();
        all.map(|(sequence, kept)| kept.kept(*sequence)).collect()
    }

    pub(super) fn remove(&mut self, sequence: u64) {
        if let Some(kept) = self.messages.remove(&sequence) {
            for durable in self.durables.values_mut() {
                durable.gone(sequence, &kept.message.subject);
            }
        }
    }
}

impl Message {
    fn kept(&self, sequence: u64) -> Kept {
        Kept {
            sequence,
            subject: self.message.subject.clone(),
            headers: self.message.headers.clone().unwrap_or_default(),
            payload: self.message.payload.clone(),
            published: self.published,
        }
    }
}

/// About what the message takes on the wire, in bytes.
pub(super) fn size(headers: &HeaderMap, payload: &[u8]) -> usize {
    // `NATS/1.0`, `name: value` lines, and an empty one.
    let lines: usize = headers
        .iter()
        .flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values
                .iter()
                .map(move |value| name.len() + value.as_str().len() + 4)
        })
        .sum();
    let head = if headers.is_empty() { 0 } else { 12 };
    head + lines + payload.len()
}
