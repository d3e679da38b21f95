//! Takes the records of requests away from the threads that serve them.
//!
//! Each thread moves its records into a bounded ring of its own; one writer
//! thread empties the rings, formats and writes. A ring that is full costs the
//! record, which is counted, and never a request.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use edd_daemon::mask::mask;
use edd_daemon::telemetry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tracing::{Level, enabled};

use super::access::HttpRecord;
use super::access_line::Lines;

/// Records of a thread that wait for the writer.
const RING_MAX: usize = 4096;

/// Between two looks of the writer while there is traffic: rings fill much slower.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// After so many looks at nothing the writer waits to be woken.
const LOOKS_MAX: u32 = 40;

/// Written in one go.
const BATCH_BYTES: usize = 64 * 1024;

/// The access log of requests; clones share it.
///
/// Its thread ends, all lines written, with the last clone.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    /// None: the filter leaves nothing to write.
    state: Option<Arc<State>>,
}

struct State {
    /// Tells whose ring a thread holds, since a process may have several logs (tests do).
    id: u64,
    rings: Mutex<Vec<Arc<Ring>>>,
    dropped: Counter,
    /// The writer waits to be woken.
    asleep: AtomicBool,
    ended: AtomicBool,
    /// Whole looks at all rings so far.
    looks: Mutex<u64>,
    looked: Condvar,
    writer: Mutex<Option<Thread>>,
}

type Ring = ArrayQueue<HttpRecord>;

impl AccessLog {
    /// Starts the writer, if `--log` lets lines of the target `access` through.
    ///
    /// Lines go where the other lines of the process go, in their form.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn start(registry: &mut Registry) -> io::Result<Self> {
        let dropped = Counter::default();
        registry.register(
            "access_log_dropped",
            "Lines of the access log lost because it was written slower than they came",
            dropped.clone(),
        );
        if !enabled!(target: "access", Level::INFO) {
            return Ok(Self::off());
        }
        let sink = match telemetry::output() {
            Some(output) if !output.coloured => Sink::Stdout(Lines::new(output.format), Vec::new()),
            // For people at a terminal, and for the subscribers of tests.
            _ => Sink::Tracing,
        };
        Self::to(sink, dropped)
    }

    /// Writes nothing.
    pub fn off() -> Self {
        Self(Arc::new(Owner { state: None }))
    }

    fn to(sink: Sink, dropped: Counter) -> io::Result<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let state = Arc::new(State {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            rings: Mutex::default(),
            dropped,
            asleep: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            looks: Mutex::default(),
            looked: Condvar::new(),
            writer: Mutex::default(),
        });
        let of_writer = Arc::clone(&state);
        let thread = thread::Builder::new()
            .name("access-log".into())
            .spawn(move || of_writer.write(sink))?;
        *locked(&state.writer) = Some(thread.thread().clone());
        Ok(Self(Arc::new(Owner { state: Some(state) })))
    }

    /// Whether anybody wants records.
    pub fn is_on(&self) -> bool {
        self.0.state.is_some()
    }

    /// Hands a record over. Never waits; a full ring drops and counts it.
    pub fn log(&self, record: HttpRecord) {
        let Some(state) = &self.0.state else { return };
        // Fails only while the thread ends.
        let _ = RING.try_with(|own| {
            let mut own = own.borrow_mut();
            let ring = match &*own {
                Some((id, ring)) if *id == state.id => ring,
                _ => {
                    let ring = Arc::new(Ring::new(RING_MAX));
                    locked(&state.rings).push(Arc::clone(&ring));
                    &own.insert((state.id, ring)).1
                }
            };
            if ring.push(record).is_err() {
                state.dropped.inc();
            }
        });
        // Either the writer sees the record, or we see that it sleeps.
        fence(Ordering::SeqCst);
        if state.asleep.load(Ordering::Relaxed) && state.asleep.swap(false, Ordering::Relaxed) {
            state.wake();
        }
    }

    /// Waits until what was handed over before is written, or `limit`. Blocks the thread.
    pub fn flush(&self, limit: Duration) {
        let Some(state) = &self.0.state else { return };
        let until = Instant::now() + limit;
        let mut looks = locked(&state.looks);
        // The look under way may have passed a ring already.
        let enough = *looks + 2;
        while *looks < enough {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state.asleep.store(false, Ordering::Relaxed);
            state.wake();
            looks = state
                .looked
                .wait_timeout(looks, left.min(LOOK_INTERVAL))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

thread_local! {
    /// This thread's ring, and whose it is.
    static RING: RefCell<Option<(u64, Arc<Ring>)>> = const { RefCell::new(None) };
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            state.ended.store(true, Ordering::Release);
            state.wake();
        }
    }
}

impl State {
    fn wake(&self) {
        if let Some(writer) = &*locked(&self.writer) {
            writer.unpark();
        }
    }

    /// The life of the writer thread.
    fn write(&self, mut sink: Sink) {
        let mut idle = 0;
        loop {
            let ended = self.ended.load(Ordering::Acquire);
            sink.begin();
            let wrote = self.look(&mut sink);
            sink.end();
            *locked(&self.looks) += 1;
            self.looked.notify_all();
            if ended {
                return;
            }
            idle = if wrote { 0 } else { idle + 1 };
            if idle < LOOKS_MAX {
                // Not unparked by anybody who only hands records over.
                thread::park_timeout(LOOK_INTERVAL);
                continue;
            }
            self.asleep.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.is_empty() && !self.ended.load(Ordering::Acquire) {
                thread::park();
            }
            self.asleep.store(false, Ordering::Relaxed);
            idle = 0;
        }
    }

    /// Empties all rings once; whether there was anything.
    fn look(&self, sink: &mut Sink) -> bool {
        let mut rings = locked(&self.rings);
        // Of threads that have ended, once they are empty.
        rings.retain(|ring| Arc::strong_count(ring) > 1 || !ring.is_empty());
        let present = rings.clone();
        drop(rings);
        let mut wrote = false;
        for ring in present {
            // Bounded, so that a thread that never rests does not keep the others waiting.
            for _ in 0..RING_MAX {
                let Some(record) = ring.pop() else { break };
                sink.write(&record);
                wrote = true;
            }
        }
        wrote
    }

    fn is_empty(&self) -> bool {
        locked(&self.rings).iter().all(|ring| ring.is_empty())
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLog").finish_non_exhaustive()
    }
}

/// Where lines go.
#[derive(Debug)]
enum Sink {
    /// To stdout, by our own formatting, many lines at once.
    Stdout(Lines, Vec<u8>),
    /// To whoever takes the events of this process.
    Tracing,
    #[cfg(test)]
    Kept(Arc<Mutex<Vec<u16>>>, Arc<Mutex<()>>),
}

impl Sink {
    fn begin(&mut self) {
        if let Self::Stdout(lines, _) = self {
            lines.look_at_the_clock();
        }
    }

    fn write(&mut self, record: &HttpRecord) {
        match self {
            Self::Stdout(lines, batch) => {
                let before = batch.len();
                if lines.write(batch, record).is_err() {
                    batch.truncate(before);
                }
                if let Cow::Owned(masked) = mask(batch.get(before..).unwrap_or_default()) {
                    batch.truncate(before);
                    batch.extend_from_slice(&masked);
                }
                if batch.len() >= BATCH_BYTES {
                    write_out(batch);
                }
            }
            Self::Tracing => record.trace(),
            #[cfg(test)]
            Self::Kept(kept, gate) => {
                drop(gate.lock().unwrap());
                kept.lock().unwrap().push(record.status);
            }
        }
    }

    fn end(&mut self) {
        if let Self::Stdout(_, batch) = self {
            write_out(batch);
        }
    }
}

/// Whole lines under one lock of stdout, so that those of other threads stay whole too.
fn write_out(batch: &mut Vec<u8>) {
    if !batch.is_empty() {
        let mut stdout = io::stdout().lock();
        // When nobody can read the lines there is nothing left to do about it.
        let _ = stdout.write_all(batch).and_then(|()| stdout.flush());
        batch.clear();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(status: u16) -> HttpRecord {
        HttpRecord {
            request_id: "id".into(),
            revision: 0,
            peer: "192.0.2.1:1".parse().unwrap(),
            version: "1.1",
            method: "GET",
            host: "a".into(),
            path: "/".into(),
            route: "a/".into(),
            upstream: None,
            status,
            grpc_status: None,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::ZERO,
            ended: Instant::now(),
            note: None,
        }
    }

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn all_threads_records_are_written_in_the_order_of_each() {
        let kept = Arc::<Mutex<Vec<u16>>>::default();
        let sink = Sink::Kept(Arc::clone(&kept), Arc::default());
        let log = AccessLog::to(sink, Counter::default()).unwrap();
        thread::scope(|scope| {
            for thread in 0..3_u16 {
                let log = &log;
                scope.spawn(move || {
                    for n in 0..1000 {
                        log.log(record(thread * 1000 + n));
                    }
                });
            }
        });
        log.flush(LIMIT);
        let kept = kept.lock().unwrap();
        assert_eq!(kept.len(), 3000);
        for thread in 0..3 {
            let own = kept.iter().filter(|status| **status / 1000 == thread);
            assert!(own.is_sorted());
        }
    }

    #[test]
    fn a_slow_writer_costs_counted_records_and_no_time() {
        let (kept, gate) = (
            Arc::<Mutex<Vec<u16>>>::default(),
            Arc::<Mutex<()>>::default(),
        );
        let dropped = Counter::default();
        let sink = Sink::Kept(Arc::clone(&kept), Arc::clone(&gate));
        let log = AccessLog::to(sink, dropped.clone()).unwrap();
        let stuck = gate.lock().unwrap();
        let many = u64::try_from(RING_MAX).unwrap() + 100;
        for _ in 0..many {
            log.log(record(200));
        }
        // The writer may have taken one.
        assert!((99..=100).contains(&dropped.get()), "{}", dropped.get());
        drop(stuck);
        log.flush(LIMIT);
        let kept = u64::try_from(kept.lock().unwrap().len()).unwrap();
        assert_eq!(kept + dropped.get(), many);
    }

    #[test]
    fn a_writer_that_sleeps_is_woken_by_one_record() {
        let kept = Arc::<Mutex<Vec<u16>>>::default();
        let sink = Sink::Kept(Arc::clone(&kept), Arc::default());
        let log = AccessLog::to(sink, Counter::default()).unwrap();
        let state = log.0.state.clone().unwrap();
        for round in 0..3 {
            let begun = Instant::now();
            while !state.asleep.load(Ordering::SeqCst) {
                assert!(begun.elapsed() < LIMIT, "it never sleeps");
                thread::yield_now();
            }
            log.log(record(round));
            while kept.lock().unwrap().len() <= usize::from(round) {
                assert!(begun.elapsed() < LIMIT, "it was not woken");
                thread::yield_now();
            }
        }
    }

    #[test]
    fn what_was_handed_over_is_written_when_the_last_owner_goes() {
        let kept = Arc::<Mutex<Vec<u16>>>::default();
        let sink = Sink::Kept(Arc::clone(&kept), Arc::default());
        let log = AccessLog::to(sink, Counter::default()).unwrap();
        (0..100).for_each(|n| log.log(record(n)));
        let state = log.0.state.clone().unwrap();
        drop(log);
        let begun = Instant::now();
        // The thread's own hold ends with it.
        while Arc::strong_count(&state) > 1 {
            assert!(begun.elapsed() < LIMIT, "it never ends");
            thread::yield_now();
        }
        assert_eq!(kept.lock().unwrap().len(), 100);
    }
}
