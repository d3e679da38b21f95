//! What survives a process: streams with durable consumers, the database, the file.
//!
//! And what happens to them. All that is of one gateway alone is its [`Seat`].

use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::counts::Counts;
use super::database::Rows;
use super::random::Random;
use super::seat::Seat;
use super::streams::{Logged, STREAMS, Stream};
use super::turns::Held;

/// What becomes of what is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Telling {
    Nothing,
    /// It is counted in, so that two runs can be compared.
    Counted,
    Printed,
}

pub(super) struct World {
    begun: Instant,
    telling: Telling,
    /// No crashes.
    calm: bool,
    /// Everything comes in its stream's order.
    pub(super) in_order: bool,
    inner: Mutex<Inner>,
    /// Something was published, or the file changed.
    pub(super) news: Notify,
    /// `gateway.router.refreshed`.
    pub(super) refreshed: Notify,
    /// A turn ended.
    pub(super) turn_over: Notify,
}

pub(super) struct Inner {
    pub(super) seats: Vec<Seat>,
    pub(super) streams: [Stream; 2],
    pub(super) all: Vec<Logged>,
    pub(super) rows: Rows,
    copy: Option<Rows>,
    /// Whether the copy has all that was ever published.
    pub(super) copy_is_whole: bool,
    /// Whose turn it is.
    pub(super) turn: Option<Held>,
    pub(super) turns: u64,
    /// How often all connections to the database broke off.
    pub(super) breaks: u64,
    /// Which of a few contents the file has.
    pub(super) routes: usize,
    /// Dead letters by message id.
    pub(super) dead_letters: BTreeSet<(usize, u32, u64)>,
    /// Events may have been announced to a database that is no more.
    pub(super) was_lost: bool,
    /// The state may be behind what serves: no comparison on the way.
    pub(super) was_behind: bool,
    pub(super) was_reset: bool,
    failures: VecDeque<Failure>,
    away_until: Option<Instant>,
    pub(super) random: Random,
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
    /// Every third seed has one gateway, the others two and three.
    pub(super) fn new(seed: u64, telling: Telling) -> Arc<Self> {
        let mut random = Random::new(seed ^ 0xabcd);
        let gateways = 1 + seed % 3;
        let calm = seed % 5 == 4;
        Arc::new(Self {
            begun: Instant::now(),
            telling,
            calm,
            in_order: gateways == 1,
            inner: Mutex::new(Inner {
                seats: (0..gateways).map(|_| Seat::default()).collect(),
                streams: Default::default(),
                all: Vec::new(),
                rows: Rows::new(random.next()),
                copy: None,
                copy_is_whole: false,
                turn: None,
                turns: 0,
                breaks: 0,
                routes: 0,
                dead_letters: BTreeSet::new(),
                was_lost: false,
                was_behind: false,
                was_reset: false,
                failures: VecDeque::new(),
                away_until: None,
                random,
                counts: Counts::default(),
            }),
            news: Notify::new(),
            refreshed: Notify::new(),
            turn_over: Notify::new(),
        })
    }

    /// Tells what happens, when one seed is looked at.
    pub(super) fn note(&self, inner: &mut Inner, what: impl FnOnce() -> String) {
        if self.telling == Telling::Nothing {
            return;
        }
        let now = Instant::now().duration_since(self.begun);
        let told = format!("{:>9.3} {}", now.as_secs_f64(), what());
        if self.telling == Telling::Printed {
            println!("{told}");
        }
        let mut hasher = DefaultHasher::new();
        (inner.counts.told, told).hash(&mut hasher);
        inner.counts.told = hasher.finish();
    }

    /// Never held across an await: everything runs in one thread.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn gateways(&self) -> usize {
        self.lock().seats.len()
    }

    pub(super) fn is_calm(&self) -> bool {
        self.calm
    }

    /// An event was left to the durable consumer, because too many processes ended
    /// when they read it.
    pub(super) fn left_out(&self) {
        let inner = &mut *self.lock();
        self.note(inner, || "left out".into());
        inner.counts.left_out += 1;
    }

    pub(super) fn percent(&self, chance: usize) -> bool {
        self.lock().random.percent(chance)
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// At most so many milliseconds of the simulated time.
    pub(super) async fn pause(&self, max_ms: u64) {
        let ms = self.lock().random.next() % (max_ms + 1);
        tokio::time::sleep(Duration::from_millis(ms)).await;
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

    /// How the next statement of this gateway fails, if it does.
    pub(super) fn failure(&self, seat: usize) -> Option<Failure> {
        let mut inner = self.lock();
        let is_away = inner.away_until.is_some_and(|until| Instant::now() < until);
        if is_away || !inner.seats[seat].has_database() {
            return Some(Failure::Before);
        }
        inner.failures.pop_front()
    }

    pub(super) fn database_away(&self, time: Duration) {
        let inner = &mut *self.lock();
        self.note(inner, || format!("the database is away for {time:?}"));
        inner.away_until = Some(Instant::now() + time);
    }

    /// No more faults from now on.
    pub(super) fn spare(&self) {
        let inner = &mut *self.lock();
        self.note(inner, || "no more faults".into());
        inner.seats.iter_mut().for_each(Seat::spare);
        inner.failures.clear();
        inner.away_until = None;
    }

    /// Whether `whole`: with everything that was ever published.
    pub(super) fn keep_a_copy(&self, whole: bool) {
        let inner = &mut *self.lock();
        self.note(inner, || "a copy is kept".into());
        inner.copy = Some(inner.rows.clone());
        inner.copy_is_whole = whole;
    }

    /// The database as it was when the copy was taken.
    pub(super) fn put_the_copy_back(&self) {
        let inner = &mut *self.lock();
        if let Some(mut copy) = inner.copy.take() {
            // Or a standby takes over, which is the same database as it was.
            let is_standby = inner.random.percent(50);
            if !is_standby {
                copy.identity = inner.random.next();
            }
            // What was begun breaks off.
            inner.turn = None;
            inner.breaks += 1;
            inner.seats.iter_mut().for_each(|seat| seat.opened = None);
            self.turn_over.notify_waiters();
            self.note(inner, || {
                format!("the copy is put back, standby {is_standby}")
            });
            // One of before the first commit stands for a lost one.
            inner.was_lost |= !copy.born;
            inner.rows = copy;
            inner.was_behind = true;
            inner.counts.put_back += 1;
        }
    }

    pub(super) fn lose_the_database(&self) {
        let inner = &mut *self.lock();
        // What a stream no longer has cannot be replayed.
        if inner.was_reset {
            return;
        }
        inner.rows = Rows::new(inner.random.next());
        inner.copy = None;
        self.note(inner, || "the database is lost".into());
        inner.was_lost = true;
        inner.was_behind = true;
        inner.counts.lost += 1;
    }

    /// The stream and its consumer are gone, and made again.
    pub(super) fn reset_stream(&self, stream: usize, crash: bool) {
        let inner = &mut *self.lock();
        self.note(inner, || format!("{} is made anew", STREAMS[stream]));
        inner.streams[stream] = inner.streams[stream].anew();
        inner.was_reset = true;
        // What is in neither the copy nor the stream, no gateway can know.
        if !inner.copy_is_whole {
            inner.copy = None;
        }
        inner.counts.resets += 1;
        // Noticed at a start, or when the consumer is bound again.
        if crash {
            for seat in 0..inner.seats.len() {
                self.crash(inner, seat);
            }
        }
        self.news.notify_waiters();
    }

    pub(super) fn edit_routes(&self, content: usize) {
        let inner = &mut *self.lock();
        self.note(inner, || format!("routes {content}"));
        inner.routes = content;
        inner.counts.edits += 1;
        self.news.notify_waiters();
    }

    /// Whether all is handled and in force, everywhere.
    pub(super) fn is_settled(&self) -> bool {
        let through = self.is_through();
        let inner = self.lock();
        let file = super::process::routes(inner.routes);
        let settled = inner.seats.iter().all(|seat| {
            let shared = seat.shared.as_ref();
            let in_force = shared.is_some_and(|s| s.table().static_specs().eq(file.iter()));
            let opened = seat.opened == Some(inner.rows.identity);
            let follows = shared.is_some_and(|s| s.table().revision >= inner.rows.revision);
            seat.whole && opened && in_force && (follows || inner.seats.len() == 1)
        });
        through && settled && inner.rows.statics == file
    }

    pub(super) fn describe(&self) -> String {
        let inner = self.lock();
        let seats = inner.seats.iter().map(|seat| {
            let revision = seat.shared.as_ref().map(|s| s.table().revision);
            let opened = seat.opened == Some(inner.rows.identity);
            format!(
                "(whole {}, opened {opened}, revision {revision:?})",
                seat.whole
            )
        });
        let streams: Vec<_> = inner.streams.iter().map(Stream::describe).collect();
        let file = super::process::routes(inner.routes);
        format!(
            "{}, revision {}, file stored {}, streams {streams:#?}",
            seats.collect::<Vec<_>>().join(", "),
            inner.rows.revision,
            inner.rows.statics == file,
        )
    }
}
