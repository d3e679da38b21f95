//! AUTH and COMPUTE with the durable consumers that all gateways share.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use edd_events::bus::{ConsumerState, StreamState};
use tokio::time::Instant;

use super::random::Random;
use super::world::World;
use crate::control::reconcile::What;
use crate::control::sources::again::Found;

/// AUTH and COMPUTE.
pub(super) const STREAMS: [&str; 2] = ["AUTH", "COMPUTE"];

/// What is delivered and not acknowledged comes again after this.
const ACK_WAIT: Duration = Duration::from_secs(30);

/// Deliveries without acknowledgement at once; small, so that the bound is met.
const ACK_PENDING_MAX: usize = 40;

/// A message as it was published.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) event_id: String,
    pub(super) version: i64,
    /// None: poison.
    pub(super) what: Option<What>,
}

/// A message in the log of everything that was ever published.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    pub(super) stream: usize,
    /// Which making of the stream, and where in it.
    pub(super) position: (u32, u64),
    pub(super) message: Message,
}

#[derive(Debug, Default)]
pub(super) struct Stream {
    log: Vec<Message>,
    /// How often it was made anew.
    making: u32,
    consumer: Option<Durable>,
}

/// A durable consumer, as the server keeps it.
#[derive(Debug)]
struct Durable {
    next: u64,
    floor: u64,
    /// Above the floor.
    acknowledged: BTreeSet<u64>,
    /// When what was delivered comes again.
    pending: BTreeMap<u64, Instant>,
}

impl Stream {
    /// The next making of it, which is empty.
    pub(super) fn anew(&self) -> Self {
        Self {
            making: self.making + 1,
            ..Self::default()
        }
    }

    /// For a run that does not end.
    pub(super) fn describe(&self) -> String {
        format!("{} messages, {:?}", self.log.len(), self.consumer)
    }

    /// Its consumer, if it is the stream of this making.
    fn consumer_of(&mut self, making: u32) -> Option<&mut Durable> {
        let is_same = self.making == making;
        self.consumer.as_mut().filter(|_| is_same)
    }

    /// Whether everything in it is acknowledged.
    fn is_through(&self) -> bool {
        let floor = self.consumer.as_ref().map(|consumer| consumer.floor);
        floor == Some(self.log.len() as u64)
    }
}

impl World {
    pub(super) fn publish(&self, stream: usize, message: Message) {
        let mut inner = self.lock();
        inner.streams[stream].log.push(message.clone());
        let of = &inner.streams[stream];
        let position = (of.making, of.log.len() as u64);
        inner.copy_is_whole = false;
        self.note(&mut inner, || format!("published {position:?} {message:?}"));
        inner.all.push(Logged {
            stream,
            position,
            message,
        });
        inner.counts.messages += 1;
        self.news.notify_waiters();
    }

    /// An event that was published before, as a message of its own.
    pub(super) fn say_again(&self, random: &mut Random) {
        let inner = self.lock();
        if inner.all.is_empty() {
            return;
        }
        let at = random.below(inner.all.len());
        let Logged {
            stream, message, ..
        } = inner.all[at].clone();
        drop(inner);
        // Unversioned facts said twice are as new as what is handled first: with several
        // gateways that may be the second.
        if message.version > 0 || self.in_order {
            self.publish(stream, message);
        }
    }

    /// The stream and its durable consumer.
    pub(super) fn found(&self, stream: usize) -> Found {
        let inner = self.lock();
        let stream = &inner.streams[stream];
        let consumer = stream.consumer.as_ref();
        Found {
            created: i64::from(stream.making),
            first: 1,
            last: stream.log.len() as u64,
            acknowledged: consumer.map_or(0, |consumer| consumer.floor),
            delivered: consumer.map_or(0, |consumer| consumer.next - 1),
        }
    }

    /// Messages of this making from one sequence to another; none: it is gone.
    pub(super) fn read(
        &self,
        stream: usize,
        making: u32,
        sequences: RangeInclusive<u64>,
    ) -> Option<Vec<(u64, Message)>> {
        let inner = self.lock();
        let of = &inner.streams[stream];
        let found = |sequence: u64| {
            let index = usize::try_from(sequence).ok()?.checked_sub(1)?;
            Some((sequence, of.log.get(index)?.clone()))
        };
        (of.making == making).then(|| sequences.filter_map(found).collect())
    }

    /// What the server says of both.
    pub(super) fn states(&self, stream: usize) -> (ConsumerState, StreamState) {
        let found = self.found(stream);
        let inner = self.lock();
        let consumer = inner.streams[stream].consumer.as_ref();
        let of_consumer = ConsumerState {
            pending: found.last - found.delivered,
            ack_pending: consumer.map_or(0, |consumer| consumer.pending.len() as u64),
            ack_floor: found.acknowledged,
            delivered: found.delivered,
        };
        let of_stream = StreamState {
            created: found.created,
            first_sequence: 1,
            last_sequence: found.last,
        };
        (of_consumer, of_stream)
    }

    pub(super) fn making(&self, stream: usize) -> u32 {
        self.lock().streams[stream].making
    }

    /// Makes it if it is missing.
    pub(super) fn bind(&self, stream: usize) {
        let consumer = &mut self.lock().streams[stream].consumer;
        consumer.get_or_insert_with(|| Durable {
            next: 1,
            floor: 0,
            acknowledged: BTreeSet::new(),
            pending: BTreeMap::new(),
        });
    }

    /// Up to `max` messages: what comes again, then what is new; none: the stream
    /// of this making is gone, or out of reach.
    pub(super) fn fetch(
        &self,
        seat: usize,
        (stream, making): (usize, u32),
        max: usize,
    ) -> Option<Vec<(u64, Message)>> {
        let now = Instant::now();
        let inner = &mut *self.lock();
        let of = &mut inner.streams[stream];
        if !inner.seats[seat].has_nats() || of.making != making {
            return None;
        }
        let Stream { log, consumer, .. } = of;
        let consumer = consumer.as_mut()?;
        let due = consumer.pending.iter().filter(|(_, at)| **at <= now);
        let mut sequences: Vec<u64> = due.map(|(sequence, _)| *sequence).take(max).collect();
        inner.counts.redelivered += sequences.len() as u64;
        while sequences.len() < max
            && consumer.next <= log.len() as u64
            && consumer.pending.len() < ACK_PENDING_MAX
        {
            sequences.push(consumer.next);
            consumer.pending.insert(consumer.next, now);
            consumer.next += 1;
        }
        for sequence in &sequences {
            consumer.pending.insert(*sequence, now + ACK_WAIT);
        }
        let found = |sequence: u64| log.get(usize::try_from(sequence).ok()? - 1).cloned();
        let batch: Vec<_> = sequences
            .into_iter()
            .filter_map(|s| Some((s, found(s)?)))
            .collect();
        if !batch.is_empty() {
            self.note(inner, || {
                let sequences = batch.iter().map(|(sequence, _)| *sequence);
                let sequences: Vec<u64> = sequences.collect();
                format!("{seat}: {} delivered {sequences:?}", STREAMS[stream])
            });
        }
        Some(batch)
    }

    /// Still in work.
    pub(super) fn progress(&self, seat: usize, of: (usize, u32), sequences: &[u64]) {
        self.put_off(seat, of, sequences, ACK_WAIT);
    }

    /// For others to handle, now.
    pub(super) fn hand_back(&self, seat: usize, of: (usize, u32), sequences: &[u64]) {
        if !sequences.is_empty() && self.put_off(seat, of, sequences, Duration::ZERO) {
            let inner = &mut *self.lock();
            inner.counts.handed_back += sequences.len() as u64;
            self.note(inner, || {
                format!("{seat}: {} handed back {sequences:?}", STREAMS[of.0])
            });
            self.news.notify_waiters();
        }
    }

    /// They come again after `time`; false: the server does not hear of it.
    fn put_off(&self, seat: usize, of: (usize, u32), sequences: &[u64], time: Duration) -> bool {
        let (stream, making) = of;
        let deadline = Instant::now() + time;
        let inner = &mut *self.lock();
        if !inner.seats[seat].has_nats() {
            return false;
        }
        if let Some(consumer) = inner.streams[stream].consumer_of(making) {
            for sequence in sequences {
                if let Some(at) = consumer.pending.get_mut(sequence) {
                    *at = deadline;
                }
            }
        }
        true
    }

    pub(super) fn acknowledge(&self, seat: usize, of: (usize, u32), sequence: u64) {
        let (stream, making) = of;
        let inner = &mut *self.lock();
        if !inner.seats[seat].has_nats() {
            return;
        }
        self.note(inner, || {
            format!("{seat}: {} {sequence} acknowledged", STREAMS[stream])
        });
        if let Some(consumer) = inner.streams[stream].consumer_of(making) {
            if consumer.pending.remove(&sequence).is_some() && sequence > consumer.floor {
                consumer.acknowledged.insert(sequence);
            }
            while consumer.acknowledged.remove(&(consumer.floor + 1)) {
                consumer.floor += 1;
            }
        }
    }

    /// Whether everything in the streams is acknowledged.
    pub(super) fn is_through(&self) -> bool {
        self.lock().streams.iter().all(Stream::is_through)
    }
}
