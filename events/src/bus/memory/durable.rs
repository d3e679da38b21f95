//! A durable consumer: what is delivered next, what waits for its
//! acknowledgement, what comes again and when.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_nats::jetstream::AckKind;
use tokio::time::Instant;

use super::stream::Message;
use crate::{
    bus::{ConsumerState, Durable},
    stream::takes,
};

#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) name: Arc<str>,
    pub(super) filter: String,
    pub(super) ack_wait: Duration,
    deliveries_max: u64,
    ack_pending_max: usize,
    /// Messages of the filter never delivered.
    pub(super) unseen: u64,
    /// Subscriptions that asked, in the order of their turns.
    pub(super) waiting: Vec<u64>,
    /// The sequence to look at next for a new message.
    next: u64,
    delivered: u64,
    /// Delivered and not acknowledged.
    pending: BTreeMap<u64, Pending>,
    /// The same, those that are with somebody, by the time they come again.
    due: BTreeSet<(Instant, u64)>,
    /// To be delivered again now.
    again: VecDeque<u64>,
}

#[derive(Debug)]
struct Pending {
    deliveries: u64,
    /// None: to be delivered again now.
    due: Option<Instant>,
}

/// A delivery.
pub(super) struct Next {
    pub(super) message: async_nats::Message,
    pub(super) sequence: u64,
    pub(super) deliveries: u64,
    pub(super) published: SystemTime,
}

impl Consumer {
    pub(super) fn new(durable: &Durable, from: u64, unseen: u64) -> Self {
        Self {
            name: durable.name.as_str().into(),
            filter: durable.filter.clone(),
            ack_wait: durable.ack_wait,
            deliveries_max: durable.deliveries_max.unwrap_or(u64::MAX),
            ack_pending_max: usize::try_from(durable.ack_pending_max).unwrap_or(usize::MAX),
            unseen,
            waiting: Vec::new(),
            next: from,
            delivered: from - 1,
            pending: BTreeMap::new(),
            due: BTreeSet::new(),
            again: VecDeque::new(),
        }
    }

    pub(super) fn state(&self) -> ConsumerState {
        let floor = self.pending.first_key_value();
        ConsumerState {
            pending: self.unseen,
            ack_pending: self.pending.len() as u64,
            ack_floor: floor.map_or(self.delivered, |(first, _)| first - 1),
            delivered: self.delivered,
        }
    }

    /// The next of those who asked and may be sent something.
    pub(super) fn turn(&mut self, may: impl Fn(u64) -> bool) -> Option<u64> {
        let found = self.waiting.iter().position(|id| may(*id))?;
        let id = self.waiting.remove(found);
        self.waiting.push(id);
        Some(id)
    }

    /// What was not acknowledged in time comes again.
    pub(super) fn time_passes(&mut self, now: Instant) {
        while let Some((at, sequence)) = self.due.first().copied()
            && at <= now
        {
            self.due.pop_first();
            self.come_again(sequence);
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// What is delivered next: what comes again first, then new ones, unless too
    /// many wait for their acknowledgement. What was delivered too often is given
    /// up and named in `advisories`.
    pub(super) fn deliver(
        &mut self,
        messages: &BTreeMap<u64, Message>,
        now: Instant,
        advisories: &mut Vec<(u64, u64)>,
    ) -> Option<Next> {
        let due = now + self.ack_wait;
        while let Some(sequence) = self.again.pop_front() {
            // Acknowledged after all.
            let Some(pending) = self.pending.get_mut(&sequence) else {
                continue;
            };
            if pending.deliveries >= self.deliveries_max {
                advisories.push((sequence, pending.deliveries));
                self.pending.remove(&sequence);
                continue;
            }
            pending.deliveries += 1;
            pending.due = Some(due);
            let deliveries = pending.deliveries;
            if let Some(kept) = messages.get(&sequence) {
                self.due.insert((due, sequence));
                return Some(next(sequence, kept, deliveries));
            }
            self.pending.remove(&sequence);
        }
        if self.pending.len() >= self.ack_pending_max {
            return None;
        }
        let (sequence, kept) = messages
            .range(self.next..)
            .find(|(_, kept)| takes(&self.filter, &kept.message.subject))?;
        self.next = sequence + 1;
        self.delivered = *sequence;
        self.unseen = self.unseen.saturating_sub(1);
        let pending = Pending {
            deliveries: 1,
            due: Some(due),
        };
        self.pending.insert(*sequence, pending);
        self.due.insert((due, *sequence));
        Some(next(*sequence, kept, 1))
    }

    /// An acknowledgement arrived, perhaps a late one.
    pub(super) fn settle(&mut self, sequence: u64, kind: AckKind, now: Instant) {
        let Some(pending) = self.pending.get_mut(&sequence) else {
            return;
        };
        let later = match kind {
            AckKind::Ack | AckKind::Next | AckKind::Term => {
                if let Some(at) = pending.due {
                    self.due.remove(&(at, sequence));
                }
                self.pending.remove(&sequence);
                return;
            }
            AckKind::Nak(delay) => delay.unwrap_or_default(),
            AckKind::Progress => self.ack_wait,
        };
        // What is to be delivered again now has nobody to speak for it.
        let Some(at) = pending.due else { return };
        self.due.remove(&(at, sequence));
        if later.is_zero() {
            self.come_again(sequence);
        } else {
            pending.due = Some(now + later);
            self.due.insert((now + later, sequence));
        }
    }

    /// The stream keeps a message no longer.
    pub(super) fn gone(&mut self, sequence: u64, subject: &str) {
        if let Some(pending) = self.pending.remove(&sequence) {
            if let Some(at) = pending.due {
                self.due.remove(&(at, sequence));
            }
        } else if sequence >= self.next && takes(&self.filter, subject) {
            self.unseen = self.unseen.saturating_sub(1);
        }
    }

    fn come_again(&mut self, sequence: u64) {
        if let Some(pending) = self.pending.get_mut(&sequence) {
            pending.due = None;
            self.again.push_back(sequence);
        }
    }
}

fn next(sequence: u64, kept: &Message, deliveries: u64) -> Next {
    Next {
        message: kept.message.clone(),
        sequence,
        deliveries,
        published: kept.published,
    }
}
