//! Finer waits than the runtime's timer, which counts in whole milliseconds.
//!
//! What is paced by it would be a millisecond late by its own clock, and so would be what it
//! measures. Here a thread of its own ticks.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::sync::Notify;

/// Between two ticks.
const TICK: Duration = Duration::from_micros(250);

/// Ticks until it is dropped.
#[derive(Clone)]
pub(crate) struct Clock(Arc<Notify>);

impl Clock {
    /// Starts its thread.
    pub(crate) fn start() -> Result<Self> {
        let ticks = Arc::new(Notify::new());
        let told = Arc::downgrade(&ticks);
        let clock = thread::Builder::new().name("clock".into());
        clock
            .spawn(move || run(&told))
            .context("no thread for the clock")?;
        Ok(Self(ticks))
    }

    /// Returns at the first tick at or after `due`; at once if it is past.
    pub(crate) async fn until(&self, due: Instant) {
        while Instant::now() < due {
            self.0.notified().await;
        }
    }

    /// As [`Clock::until`].
    pub(crate) async fn pause(&self, time: Duration) {
        self.until(Instant::now() + time).await;
    }
}

fn run(told: &Weak<Notify>) {
    while let Some(ticks) = told.upgrade() {
        ticks.notify_waiters();
        drop(ticks);
        thread::sleep(TICK);
    }
}
