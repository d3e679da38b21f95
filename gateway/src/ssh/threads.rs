//! The threads that SSH connections live on, each with a runtime of its own.
//!
//! A connection and everything that belongs to it (russh's loops, the channels, the connections to
//! its container) stay on one thread. Data passes between these tasks with every packet, and a task
//! of another thread is woken through the kernel, which costs a large transfer a fifth of its time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;

use tokio::runtime::{self, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

/// Dropped, the threads end, and what lives on them.
pub(super) struct Threads {
    threads: Vec<Thread>,
    /// Where to look first.
    turn: AtomicUsize,
    _end: DropGuard,
}

struct Thread {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
}

/// A connection on a thread.
struct Seat(Arc<AtomicUsize>);

impl Threads {
    /// Starts `count` threads, at least one.
    ///
    /// # Errors
    /// A thread or its runtime cannot be made.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let end = CancellationToken::new();
        let threads = (0..count.max(1)).map(|index| {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let handle = runtime.handle().clone();
            let ended = end.clone().cancelled_owned();
            Builder::new()
                .name(format!("ssh-{index}"))
                .spawn(move || runtime.block_on(ended))?;
            io::Result::Ok(Thread {
                runtime: handle,
                connections: Arc::default(),
            })
        });
        Ok(Self {
            threads: threads.collect::<io::Result<_>>()?,
            turn: AtomicUsize::new(0),
            _end: end.drop_guard(),
        })
    }

    /// Runs a connection on the thread that has the fewest.
    pub(super) fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        let (later, sooner) = self.threads.split_at(turn);
        let in_turn = sooner.iter().chain(later);
        let emptiest = in_turn.min_by_key(|thread| thread.connections.load(Ordering::Relaxed));
        let Some(thread) = emptiest else {
            return debug!("no thread for an SSH connection");
        };
        let seat = Seat::take(&thread.connections);
        thread.runtime.spawn(async move {
            connection.await;
            drop(seat);
        });
    }
}

impl Seat {
    fn take(connections: &Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connections))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// Tells where it runs, and stays until it is cancelled.
    async fn guest(told: Sender<String>, leave: CancellationToken) {
        let here = || std::thread::current().name().unwrap().to_owned();
        told.send(here()).unwrap();
        // What it spawns is with it.
        tokio::spawn(async move { told.send(here()).unwrap() })
            .await
            .unwrap();
        leave.cancelled().await;
    }

    #[test]
    fn a_connection_goes_where_the_fewest_are_and_stays_there() {
        let threads = Threads::start(3).unwrap();
        let (told, hear) = channel();
        let leave: Vec<_> = (0..3).map(|_| CancellationToken::new()).collect();
        let mut places = Vec::new();
        for leave in &leave {
            threads.spawn(guest(told.clone(), leave.clone()));
            let [first, second] = [(); 2].map(|()| hear.recv_timeout(DEADLINE).unwrap());
            assert_eq!(first, second, "the tasks of one connection");
            places.push(first);
        }
        places.sort();
        assert_eq!(places, ["ssh-0", "ssh-1", "ssh-2"]);
    }

    #[test]
    fn a_place_is_free_again_after_a_panic_too() {
        let threads = Threads::start(2).unwrap();
        let taken = || -> usize {
            let counts = threads.threads.iter().map(|thread| &thread.connections);
            counts.map(|count| count.load(Ordering::Relaxed)).sum()
        };
        let (told, hear) = channel::<()>();
        threads.spawn(async move {
            let _told = told;
            panic!("a bug, as this test wants it");
        });
        assert!(hear.recv_timeout(DEADLINE).is_err());
        let began = std::time::Instant::now();
        while taken() > 0 {
            assert!(began.elapsed() < DEADLINE);
            std::thread::yield_now();
        }
    }

    #[test]
    fn dropped_they_end_with_what_lives_on_them() {
        let threads = Threads::start(1).unwrap();
        let (told, hear) = channel::<()>();
        threads.spawn(async move {
            let _told = told;
            std::future::pending().await
        });
        drop(threads);
        let ended = hear.recv_timeout(DEADLINE);
        assert_eq!(ended, Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
    }
}
