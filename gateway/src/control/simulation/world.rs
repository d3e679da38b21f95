//! What survives a process: streams with durable consumers, the database, the file.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use edd_route::snapshot::Snapshot;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::database::Rows;
use super::random::Random;
use crate::control::reconcile::What;
use crate::shared::Shared;

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
struct Stream {
    log: Vec<Message>,
    /// How often it was made anew.
    making: u32,
    consumer: Option<Durable>,
}

/// A durable consumer, as the server keeps it.
#[derive(Debug, Default)]
struct Durable {
    next: u64,
    floor: u64,
    /// Above the floor.
    acknowledged: BTreeSet<u64>,
    /// When what was delivered comes again.
    pending: BTreeMap<u64, Instant>,
}

impl Durable {
    fn starting_at(sequence: u64) -> Self {
        Self {
            next: sequence,
            floor: sequence - 1,
            ..Self::default()
        }
    }
}

/// How often what happened, to see that a run tries everything.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counts {
    pub(super) messages: u64,
    pub(super) crashes: u64,
    pub(super) commits: u64,
    pub(super) failed_before: u64,
    pub(super) failed_after: u64,
    pub(super) redelivered: u64,
    pub(super) lost: u64,
    pub(super) put_back: u64,
    pub(super) resets: u64,
    pub(super) edits: u64,
    pub(super) announcements: u64,
    pub(super) checks: u64,
}

impl Counts {
    fn all(&self) -> [u64; 12] {
        let first = [
            self.messages,
            self.crashes,
            self.commits,
            self.failed_before,
        ];
        let second = [
            self.failed_after,
            self.redelivered,
            self.lost,
            self.put_back,
        ];
        let third = [self.resets, self.edits, self.announcements, self.checks];
        let all = [first, second, third];
        std::array::from_fn(|n| all[n / 4][n % 4])
    }

    pub(super) fn add(&mut self, other: Self) {
        let sums: [u64; 12] = std::array::from_fn(|n| self.all()[n] + other.all()[n]);
        [
            self.messages,
            self.crashes,
            self.commits,
            self.failed_before,
            self.failed_after,
            self.redelivered,
            self.lost,
            self.put_back,
            self.resets,
            self.edits,
            self.announcements,
            self.checks,
        ] = sums;
    }

    pub(super) fn is_everything_seen(&self) -> bool {
        self.all().iter().all(|count| *count > 0)
    }
}

pub(super) struct World {
    begun: Instant,
    told: bool,
    /// No crashes: everything comes in its stream's order.
    calm: bool,
    inner: Mutex<Inner>,
    crash: Notify,
    /// Something was published, or the file changed.
    pub(super) news: Notify,
}

pub(super) struct Inner {
    streams: [Stream; 2],
    pub(super) all: Vec<Logged>,
    pub(super) rows: Rows,
    copy: Option<Rows>,
    /// Shows that there was a database once.
    pub(super) marker: bool,
    pub(super) last_good: Option<Snapshot>,
    /// Which of a few contents the file has.
    pub(super) routes: usize,
    /// Dead letters by message id.
    pub(super) dead_letters: BTreeSet<(usize, u32, u64)>,
    /// What the process that runs shows.
    pub(super) shared: Option<Arc<Shared>>,
    pub(super) whole: bool,
    /// Which database it has open, or had last.
    pub(super) opened: Option<u64>,
    /// Events may have been announced to a database that is no more.
    pub(super) was_lost: bool,
    /// The state may be behind what serves: no comparison on the way.
    pub(super) was_behind: bool,
    pub(super) was_reset: bool,
    failures: VecDeque<Failure>,
    away_until: Option<Instant>,
    points: usize,
    crash_at: Option<usize>,
    random: Random,
    pub(super) counts: Counts,
}

/// How a statement fails.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// It has done nothing.
    Before,
    /// It has done everything.
    After,
    /// It succeeds, slowly.
    Slow,
}

impl World {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let mut random = Random::new(seed ^ 0xabcd);
        Arc::new(Self {
            begun: Instant::now(),
            told: std::env::var_os("EDD_SIMULATION_TOLD").is_some(),
            calm: seed % 5 == 4,
            inner: Mutex::new(Inner {
                streams: Default::default(),
                all: Vec::new(),
                rows: Rows::new(random.next()),
                copy: None,
                marker: false,
                last_good: None,
                routes: 0,
                dead_letters: BTreeSet::new(),
                shared: None,
                whole: false,
                opened: None,
                was_lost: false,
                was_behind: false,
                was_reset: false,
                failures: VecDeque::new(),
                away_until: None,
                points: 0,
                crash_at: None,
                random,
                counts: Counts::default(),
            }),
            crash: Notify::new(),
            news: Notify::new(),
        })
    }

    /// Tells what happens, when one seed is looked at.
    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        if self.told {
            let now = Instant::now().duration_since(self.begun);
            println!("{:>9.3} {}", now.as_secs_f64(), what());
        }
    }

    /// Never held across an await: everything runs in one thread.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// A place where the process may crash, or another task go first.
    pub(super) async fn point(&self) {
        let rest = {
            let mut inner = self.lock();
            inner.points += 1;
            if inner.crash_at == Some(inner.points) {
                self.crash_now(&mut inner);
                None
            } else {
                Some(inner.random.below(8))
            }
        };
        match rest {
            None => std::future::pending().await,
            Some(0) => self.pause(20).await,
            Some(1..3) => tokio::task::yield_now().await,
            Some(_) => {}
        }
    }

    pub(super) async fn crashed(&self) {
        self.crash.notified().await;
    }

    /// At most so many milliseconds of the simulated time.
    pub(super) async fn pause(&self, max_ms: u64) {
        let ms = self.lock().random.next() % (max_ms + 1);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    pub(super) fn crash_in(&self, points: usize) {
        if self.calm {
            return;
        }
        let mut inner = self.lock();
        inner.crash_at = Some(inner.points + 1 + points);
    }

    pub(super) fn fail_for(&self, statements: usize) {
        let mut inner = self.lock();
        for _ in 0..statements {
            let failure = *inner
                .random
                .pick(&[Failure::Before, Failure::After, Failure::Slow]);
            inner.failures.push_back(failure);
        }
    }

    /// How the next statement fails, if it does.
    pub(super) fn failure(&self) -> Option<Failure> {
        let mut inner = self.lock();
        if inner.away_until.is_some_and(|until| Instant::now() < until) {
            return Some(Failure::Before);
        }
        inner.failures.pop_front()
    }

    pub(super) fn database_away(&self, time: Duration) {
        self.note(|| format!("the database is away for {time:?}"));
        self.lock().away_until = Some(Instant::now() + time);
    }

    /// No more faults from now on.
    pub(super) fn spare(&self) {
        self.note(|| "no more faults".into());
        let mut inner = self.lock();
        inner.crash_at = None;
        inner.failures.clear();
        inner.away_until = None;
    }

    pub(super) fn keep_a_copy(&self) {
        let mut inner = self.lock();
        inner.copy = Some(inner.rows.clone());
    }

    /// The database as it was when the copy was taken.
    pub(super) fn put_the_copy_back(&self) {
        let mut inner = self.lock();
        // A copy of before a stream was made anew knows another stream's sequences.
        if inner.was_reset {
            return;
        }
        if let Some(mut copy) = inner.copy.take() {
            copy.identity = inner.random.next();
            self.note(|| "the copy is put back".into());
            inner.rows = copy;
            inner.was_behind = true;
            inner.counts.put_back += 1;
        }
    }

    pub(super) fn lose_the_database(&self) {
        let mut inner = self.lock();
        // What a stream no longer has cannot be replayed.
        if inner.was_reset {
            return;
        }
        inner.rows = Rows::new(inner.random.next());
        inner.copy = None;
        self.note(|| "the database is lost".into());
        inner.was_lost = true;
        inner.was_behind = true;
        inner.counts.lost += 1;
    }

    /// The stream and its consumer are gone, and made again.
    pub(super) fn reset_stream(&self, stream: usize) {
        self.note(|| format!("{} is made anew", STREAMS[stream]));
        let mut inner = self.lock();
        let making = inner.streams[stream].making + 1;
        inner.streams[stream] = Stream {
            making,
            ..Stream::default()
        };
        inner.was_reset = true;
        inner.copy = None;
        inner.counts.resets += 1;
        // A process looks at its position only when it starts.
        self.crash_now(&mut inner);
    }

    fn crash_now(&self, inner: &mut Inner) {
        self.note(|| "crash".into());
        inner.crash_at = None;
        inner.counts.crashes += 1;
        inner.shared = None;
        inner.whole = false;
        inner.opened = None;
        self.crash.notify_one();
    }

    pub(super) fn edit_routes(&self, content: usize) {
        let mut inner = self.lock();
        inner.routes = content;
        inner.counts.edits += 1;
        self.news.notify_waiters();
    }

    pub(super) fn publish(&self, stream: usize, message: Message) {
        let mut inner = self.lock();
        inner.streams[stream].log.push(message.clone());
        let of = &inner.streams[stream];
        let position = (of.making, of.log.len() as u64);
        self.note(|| format!("published {position:?} {message:?}"));
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
        // Unversioned facts said twice are as new as what is handled first: after a crash
        // that may be the second.
        if message.version > 0 || self.calm {
            self.publish(stream, message);
        }
    }

    /// The stream's last sequence and the durable consumer's floor.
    pub(super) fn stream_info(&self, stream: usize) -> (u64, Option<u64>) {
        let inner = self.lock();
        let stream = &inner.streams[stream];
        let floor = stream.consumer.as_ref().map(|consumer| consumer.floor);
        (stream.log.len() as u64, floor)
    }

    pub(super) fn making(&self, stream: usize) -> u32 {
        self.lock().streams[stream].making
    }

    /// Removes the durable consumer, and makes it again from `start` on.
    pub(super) fn make_consumer(&self, stream: usize, start: Option<u64>) {
        self.note(|| format!("{} consumed from {start:?}", STREAMS[stream]));
        let consumer = start.map(Durable::starting_at);
        self.lock().streams[stream].consumer = consumer;
    }

    /// Makes it if it is missing.
    pub(super) fn bind(&self, stream: usize) {
        let consumer = &mut self.lock().streams[stream].consumer;
        consumer.get_or_insert_with(|| Durable::starting_at(1));
    }

    /// Up to `max` messages: what comes again, then what is new.
    pub(super) fn fetch(&self, stream: usize, max: usize) -> Vec<(u64, Message)> {
        let now = Instant::now();
        let mut inner = self.lock();
        let inner = &mut *inner;
        let Stream { log, consumer, .. } = &mut inner.streams[stream];
        let Some(consumer) = consumer else {
            return Vec::new();
        };
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
        sequences
            .into_iter()
            .filter_map(|s| Some((s, found(s)?)))
            .collect()
    }

    /// Still in work.
    pub(super) fn progress(&self, stream: usize, sequences: &[u64]) {
        let deadline = Instant::now() + ACK_WAIT;
        if let Some(consumer) = &mut self.lock().streams[stream].consumer {
            for sequence in sequences {
                if let Some(at) = consumer.pending.get_mut(sequence) {
                    *at = deadline;
                }
            }
        }
    }

    pub(super) fn acknowledge(&self, stream: usize, sequence: u64) {
        self.note(|| format!("{} {sequence} acknowledged", STREAMS[stream]));
        if let Some(consumer) = &mut self.lock().streams[stream].consumer {
            consumer.pending.remove(&sequence);
            if sequence > consumer.floor {
                consumer.acknowledged.insert(sequence);
            }
            while consumer.acknowledged.remove(&(consumer.floor + 1)) {
                consumer.floor += 1;
            }
        }
    }

    /// Whether everything in the stream is acknowledged.
    pub(super) fn is_through(&self, stream: usize) -> bool {
        let inner = self.lock();
        let stream = &inner.streams[stream];
        let floor = stream.consumer.as_ref().map(|consumer| consumer.floor);
        floor == Some(stream.log.len() as u64)
    }

    pub(super) fn is_settled(&self) -> bool {
        let through = (0..STREAMS.len()).all(|stream| self.is_through(stream));
        let inner = self.lock();
        let file = super::process::routes(inner.routes);
        let shared = inner.shared.as_ref();
        let in_force = shared.is_some_and(|s| s.table().static_specs().eq(file.iter()));
        let opened = inner.opened == Some(inner.rows.identity);
        through && inner.whole && opened && in_force && inner.rows.statics == file
    }

    pub(super) fn describe(&self) -> String {
        let inner = self.lock();
        let streams: Vec<_> = inner
            .streams
            .iter()
            .map(|s| (s.log.len(), &s.consumer))
            .collect();
        let file = super::process::routes(inner.routes);
        let stored = inner.rows.statics == file;
        format!(
            "whole {}, file stored {stored}, streams {streams:?}",
            inner.whole
        )
    }
}
