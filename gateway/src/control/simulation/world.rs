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
use crate::control::sources::again::Found;
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
#[derive(Debug)]
struct Durable {
    next: u64,
    floor: u64,
    /// Above the floor.
    acknowledged: BTreeSet<u64>,
    /// When what was delivered comes again.
    pending: BTreeMap<u64, Instant>,
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
    /// Readings of what was delivered before.
    pub(super) read: u64,
    /// Rare: not counted among what must have been seen.
    pub(super) left_out: u64,
}

impl Counts {
    fn all(&self) -> [u64; 13] {
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
            self.read,
        ]
    }

    pub(super) fn add(&mut self, other: Self) {
        let sums: [u64; 13] = std::array::from_fn(|n| self.all()[n] + other.all()[n]);
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
            self.read,
        ] = sums;
        self.left_out += other.left_out;
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
    /// Whether the copy has all that was ever published.
    copy_is_whole: bool,
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
                copy_is_whole: false,
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

    /// Whether `whole`: with everything that was ever published.
    pub(super) fn keep_a_copy(&self, whole: bool) {
        let mut inner = self.lock();
        // Put back, one without its first commit is a database that was lost.
        if !inner.rows.born {
            return;
        }
        self.note(|| "a copy is taken".into());
        inner.copy = Some(inner.rows.clone());
        inner.copy_is_whole = whole;
    }

    /// The database as it was when the copy was taken.
    pub(super) fn put_the_copy_back(&self) {
        let mut inner = self.lock();
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
    pub(super) fn reset_stream(&self, stream: usize, crash: bool) {
        self.note(|| format!("{} is made anew", STREAMS[stream]));
        let mut inner = self.lock();
        let making = inner.streams[stream].making + 1;
        inner.streams[stream] = Stream {
            making,
            ..Stream::default()
        };
        inner.was_reset = true;
        // What is in neither the copy nor the stream, no gateway can know.
        if !inner.copy_is_whole {
            inner.copy = None;
        }
        inner.counts.resets += 1;
        // Noticed at a start, or when the consumer is bound again.
        if crash {
            self.crash_now(&mut inner);
        }
        self.news.notify_waiters();
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
        inner.copy_is_whole = false;
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
        self.publish(stream, message);
    }

    /// The stream and its durable consumer.
    pub(super) fn found(&self, stream: usize) -> Found {
        let inner = self.lock();
        let stream = &inner.streams[stream];
        let consumer = stream.consumer.as_ref();
        Found {
            created: i64::from(stream.making),
            last: stream.log.len() as u64,
            acknowledged: consumer.map_or(0, |consumer| consumer.floor),
            delivered: consumer.map_or(0, |consumer| consumer.next - 1),
        }
    }

    pub(super) fn making(&self, stream: usize) -> u32 {
        self.lock().streams[stream].making
    }

    /// Messages of this making from one sequence to another; none: it is gone.
    pub(super) fn read(
        &self,
        stream: usize,
        making: u32,
        sequences: std::ops::RangeInclusive<u64>,
    ) -> Option<Vec<(u64, Message)>> {
        let inner = self.lock();
        let of = &inner.streams[stream];
        let found = |sequence: u64| {
            let index = usize::try_from(sequence).ok()?.checked_sub(1)?;
            Some((sequence, of.log.get(index)?.clone()))
        };
        (of.making == making).then(|| sequences.filter_map(found).collect())
    }

    /// An event was left to the durable consumer, because too many processes ended
    /// when they read it.
    pub(super) fn left_out(&self) {
        self.note(|| "left out".into());
        self.lock().counts.left_out += 1;
    }

    pub(super) fn percent(&self, chance: usize) -> bool {
        self.lock().random.percent(chance)
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
    /// of this making is gone.
    pub(super) fn fetch(
        &self,
        stream: usize,
        making: u32,
        max: usize,
    ) -> Option<Vec<(u64, Message)>> {
        let now = Instant::now();
        let mut inner = self.lock();
        let inner = &mut *inner;
        let of = &mut inner.streams[stream];
        if of.making != making {
            return None;
        }
        let log = &of.log;
        let consumer = of.consumer.as_mut()?;
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
        let messages = sequences.into_iter().filter_map(|s| Some((s, found(s)?)));
        Some(messages.collect())
    }

    /// Still in work.
    pub(super) fn progress(&self, stream: usize, making: u32, sequences: &[u64]) {
        let deadline = Instant::now() + ACK_WAIT;
        let of = &mut self.lock().streams[stream];
        if let Some(consumer) = of.consumer.as_mut().filter(|_| of.making == making) {
            for sequence in sequences {
                if let Some(at) = consumer.pending.get_mut(sequence) {
                    *at = deadline;
                }
            }
        }
    }

    pub(super) fn acknowledge(&self, stream: usize, making: u32, sequence: u64) {
        self.note(|| format!("{} {sequence} acknowledged", STREAMS[stream]));
        let of = &mut self.lock().streams[stream];
        if let Some(consumer) = of.consumer.as_mut().filter(|_| of.making == making) {
            consumer.pending.remove(&sequence);
            if sequence > consumer.floor {
                consumer.acknowledged.insert(sequence);
            }
            while consumer.acknowledged.remove(&(consumer.floor + 1)) {
                consumer.floor += 1;
            }
        }
    }

    /// Whether everything in the stream was delivered.
    pub(super) fn is_delivered(&self, stream: usize) -> bool {
        let Found {
            last, delivered, ..
        } = self.found(stream);
        delivered == last
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
