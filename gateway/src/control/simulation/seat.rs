//! One of the gateways: what outlives its processes, and what the one that runs shows.
//!
//! Its faults are its own. Each statement and each word to NATS is a point at which the
//! process may crash or stall; while it stalls nothing in it runs, and the world goes on.

use std::sync::Arc;
use std::time::Duration;

use edd_route::snapshot::Snapshot;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::world::{Inner, World};
use crate::shared::Shared;

/// What may happen to a process at a point.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    Crash,
    Stall(Duration),
}

/// What a gateway may have to do without.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cut {
    Database,
    Nats,
}

#[derive(Default)]
pub(super) struct Seat {
    /// Shows that there was a database once.
    pub(super) marker: bool,
    pub(super) last_good: Option<Snapshot>,
    /// What the process that runs shows.
    pub(super) shared: Option<Arc<Shared>>,
    pub(super) whole: bool,
    /// Which database it has open, or had last.
    pub(super) opened: Option<u64>,
    points: usize,
    fault_at: Option<(usize, Fault)>,
    stalled_until: Option<Instant>,
    no_database_until: Option<Instant>,
    no_nats_until: Option<Instant>,
    crash: Arc<Notify>,
    stall: Arc<Notify>,
}

fn is_ahead(until: Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() < until)
}

impl Seat {
    pub(super) fn has_database(&self) -> bool {
        !is_ahead(self.no_database_until)
    }

    pub(super) fn has_nats(&self) -> bool {
        !is_ahead(self.no_nats_until)
    }

    /// No more faults. A process that stalls wakes up.
    pub(super) fn spare(&mut self) {
        self.fault_at = None;
        self.no_database_until = None;
        self.no_nats_until = None;
        self.stalled_until = None;
        self.stall.notify_one();
    }
}

impl World {
    /// A place where the process may crash or stall, or another task go first.
    pub(super) async fn point(&self, seat: usize) {
        let rest = {
            let inner = &mut *self.lock();
            let this = &mut inner.seats[seat];
            this.points += 1;
            let fault = this.fault_at.filter(|(at, _)| *at == this.points);
            match fault {
                Some((_, Fault::Crash)) => {
                    self.crash(inner, seat);
                    None
                }
                Some((_, Fault::Stall(time))) => {
                    self.stall(inner, seat, time);
                    Some(1)
                }
                None => Some(inner.random.below(8)),
            }
        };
        match rest {
            None => std::future::pending().await,
            Some(0) => self.pause(20).await,
            Some(1..3) => tokio::task::yield_now().await,
            Some(_) => {}
        }
    }

    /// In so many points something happens to it.
    pub(super) fn fault_in(&self, seat: usize, points: usize, fault: Fault) {
        let this = &mut self.lock().seats[seat];
        this.fault_at = Some((this.points + 1 + points, fault));
    }

    /// This one alone has to do without, for so long.
    pub(super) fn cut_off(&self, seat: usize, from: Cut, time: Duration) {
        let inner = &mut *self.lock();
        self.note(inner, || format!("{seat}: no {from:?} for {time:?}"));
        inner.counts.cut_off += 1;
        let until = Some(Instant::now() + time);
        match from {
            Cut::Database => inner.seats[seat].no_database_until = until,
            Cut::Nats => inner.seats[seat].no_nats_until = until,
        }
    }

    /// Ends when NATS can be reached.
    pub(super) async fn nats(&self, seat: usize) {
        while !self.lock().seats[seat].has_nats() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    pub(super) fn crash(&self, inner: &mut Inner, seat: usize) {
        self.note(inner, || format!("{seat}: crash"));
        inner.counts.crashes += 1;
        let this = &mut inner.seats[seat];
        this.fault_at = None;
        this.stalled_until = None;
        this.shared = None;
        this.whole = false;
        this.opened = None;
        this.crash.notify_one();
    }

    fn stall(&self, inner: &mut Inner, seat: usize, time: Duration) {
        self.note(inner, || format!("{seat}: stalls for {time:?}"));
        inner.counts.stalls += 1;
        let this = &mut inner.seats[seat];
        this.fault_at = None;
        this.stalled_until = Some(Instant::now() + time);
        this.stall.notify_one();
    }

    fn stalled_until(&self, seat: usize) -> Option<Instant> {
        self.lock().seats[seat].stalled_until
    }

    /// Runs a process until it crashes; while it stalls nothing in it moves.
    pub(super) async fn until_crash(&self, seat: usize, process: impl Future<Output = ()>) {
        let (crash, stall) = {
            let inner = self.lock();
            let this = &inner.seats[seat];
            (Arc::clone(&this.crash), Arc::clone(&this.stall))
        };
        let mut process = std::pin::pin!(process);
        let living = async {
            loop {
                tokio::select! {
                    biased;
                    () = stall.notified() => {}
                    () = &mut process => unreachable!("a process ends by a crash only"),
                }
                while let Some(until) = self.stalled_until(seat) {
                    tokio::select! {
                        biased;
                        () = sleep_until(until) => self.lock().seats[seat].stalled_until = None,
                        () = stall.notified() => {}
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = crash.notified() => {}
            () = living => {}
        }
    }
}
