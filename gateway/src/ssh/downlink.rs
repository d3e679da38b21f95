//! What a container has sent on a channel that it opened and the client has not taken.
//!
//! Channels that a container opens share a connection, so the reader of each
//! takes everything at once: russh's loop waits for it. What piles up is
//! counted in a [`Backlog`] per connection, and while a channel holds too much
//! the connection is read no faster than the client takes data (see `wire`),
//! which holds the container back. That slows all its channels, so it has an
//! end: a channel that stands for [`PATIENCE`] is let run full, and one that
//! holds more than [`QUEUED_MAX`] is closed. Nothing here does I/O.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::budget::Holding;
use super::flow::Flow;
use super::own::Own;

/// A channel with more than this waiting is over…
const SOFT: usize = 1 << 20;

/// …until it has less than this.
const LOW: usize = 512 << 10;

/// A channel with more than this waiting is closed.
const QUEUED_MAX: usize = 32 << 20;

/// How long a client may take nothing of a channel that is over before nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a queued piece costs besides its bytes, so that a flood of tiny ones is bounded too.
const PIECE: usize = 64;

/// What the channels of one connection to a container hold.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// Channels that are over.
    over: AtomicUsize,
    /// Bytes that the client has taken, ever.
    taken: AtomicU64,
    /// When a channel that is over last moved. Short sections.
    moved: Mutex<Option<Instant>>,
    /// The reader of the connection's socket.
    reader: AtomicWaker,
    /// How often something came from the socket.
    reads: AtomicU64,
    /// What the channel holds that the connection was made for.
    pub(crate) own: Own,
}

impl Backlog {
    /// Whether the container is to be held back: some channel holds too much, and moves.
    pub(crate) fn holds_back(&self) -> bool {
        let moved = || *self.moved();
        self.over.load(Ordering::Relaxed) > 0
            && moved().is_some_and(|moved| moved.elapsed() < PATIENCE)
    }

    /// Something came from the socket.
    pub(crate) fn read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// How often something came from the socket.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    fn moved(&self) -> MutexGuard<'_, Option<Instant>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that clients have taken, ever.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Wakes the socket's reader at the next change. Register before looking.
    pub(crate) fn watch(&self, reader: &Waker) {
        self.reader.register(reader);
    }
}

/// What the client gets, in the container's order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Piece<End> {
    /// Data.
    Data(Bytes),
    /// The channel is over, for this reason; nothing follows.
    End(End),
    /// No more data.
    Eof,
}

/// The channel or its connection holds too much.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the client does not take what the container sends")]
pub(crate) struct Overflow;

/// The queue of one channel.
#[derive(Debug)]
pub(crate) struct Downlink<End> {
    backlog: Arc<Backlog>,
    flow: Arc<Flow>,
    holding: Option<Arc<Holding>>,
    /// Short sections, one task only; a mutex since the task may move between threads.
    queue: Mutex<Queue<End>>,
    ready: Notify,
}

#[derive(Debug)]
struct Queue<End> {
    pieces: VecDeque<Piece<End>>,
    /// What they cost, and the one that is being written.
    held: usize,
    over: bool,
}

impl<End> Downlink<End> {
    /// An empty one, counted in all of them.
    pub(crate) fn new(
        backlog: Arc<Backlog>,
        flow: Arc<Flow>,
        holding: Option<Arc<Holding>>,
    ) -> Self {
        Self {
            backlog,
            flow,
            holding,
            queue: Mutex::new(Queue {
                pieces: VecDeque::new(),
                held: 0,
                over: false,
            }),
            ready: Notify::new(),
        }
    }

    /// Appends. Never waits.
    pub(crate) fn push(&self, piece: Piece<End>) -> Result<(), Overflow> {
        let cost = cost(&piece);
        if !self.flow.hold(cost) {
            return Err(Overflow);
        }
        if let Some(holding) = &self.holding {
            holding.add(cost);
        }
        let mut queue = self.lock();
        queue.held += cost;
        queue.pieces.push_back(piece);
        if !queue.over && queue.held > SOFT {
            queue.over = true;
            self.backlog.over.fetch_add(1, Ordering::Relaxed);
            *self.backlog.moved() = Some(Instant::now());
        }
        self.ready.notify_one();
        if queue.held > QUEUED_MAX {
            return Err(Overflow);
        }
        Ok(())
    }

    /// The next piece; counted as held until [`Self::taken`]. Cancellation safe; one taker only.
    pub(crate) async fn next(&self) -> Piece<End> {
        loop {
            if let Some(piece) = self.lock().pieces.pop_front() {
                return piece;
            }
            self.ready.notified().await;
        }
    }

    /// Counts data that the client's connection has taken.
    pub(crate) fn taken(&self, bytes: usize) {
        let cost = bytes + PIECE;
        self.flow.release(cost);
        if let Some(holding) = &self.holding {
            holding.sub(cost);
        }
        let mut queue = self.lock();
        queue.held = queue.held.saturating_sub(cost);
        if queue.over {
            *self.backlog.moved() = Some(Instant::now());
        }
        if queue.over && queue.held < LOW {
            queue.over = false;
            self.backlog.over.fetch_sub(1, Ordering::Relaxed);
        }
        self.backlog
            .taken
            .fetch_add(bytes as u64, Ordering::Relaxed);
        self.backlog.reader.wake();
    }

    fn lock(&self) -> MutexGuard<'_, Queue<End>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<End> Drop for Downlink<End> {
    fn drop(&mut self) {
        let queue = self.lock();
        if queue.over {
            self.backlog.over.fetch_sub(1, Ordering::Relaxed);
        }
        self.flow.release(queue.held);
        if let Some(holding) = &self.holding {
            holding.sub(queue.held);
        }
        self.backlog.reader.wake();
    }
}

fn cost<End>(piece: &Piece<End>) -> usize {
    match piece {
        Piece::Data(data) => data.len() + PIECE,
        Piece::End(_) | Piece::Eof => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn downlink() -> (Arc<Backlog>, Arc<Flow>, Downlink<u8>) {
        let (backlog, flow) = (Arc::<Backlog>::default(), Arc::<Flow>::default());
        let down = Downlink::new(Arc::clone(&backlog), Arc::clone(&flow), None);
        (backlog, flow, down)
    }

    fn data(len: usize) -> Piece<u8> {
        Piece::Data(Bytes::from(vec![0; len]))
    }

    #[tokio::test]
    async fn the_order_is_kept_and_the_end_comes_last() {
        let (_backlog, _flow, down) = downlink();
        for piece in [data(3), Piece::Eof, Piece::End(7)] {
            down.push(piece).unwrap();
        }
        assert_eq!(down.next().await, data(3));
        assert_eq!(down.next().await, Piece::Eof);
        assert_eq!(down.next().await, Piece::End(7));
    }

    #[tokio::test]
    async fn a_channel_is_over_from_soft_until_low_and_leaves_nothing() {
        let (backlog, flow, down) = downlink();
        let len = SOFT / 2;
        for _ in 0..3 {
            down.push(data(len)).unwrap();
        }
        assert!(backlog.holds_back());
        for left in [true, true, false] {
            down.next().await;
            assert!(backlog.holds_back());
            down.taken(len);
            assert_eq!(backlog.holds_back(), left);
        }
        assert_eq!(backlog.taken(), 3 * len as u64);
        down.push(data(2 * SOFT)).unwrap();
        assert!(backlog.holds_back());
        drop(down);
        assert!(!backlog.holds_back());
        assert_eq!(flow.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_that_stands_is_waited_for_no_longer_than_patience() {
        let (backlog, _flow, down) = downlink();
        down.push(data(SOFT)).unwrap();
        down.push(data(SOFT)).unwrap();
        tokio::time::advance(PATIENCE / 2).await;
        assert!(backlog.holds_back());
        down.taken(SOFT / 2);
        tokio::time::advance(PATIENCE / 2).await;
        assert!(backlog.holds_back(), "it moves");
        tokio::time::advance(PATIENCE / 2).await;
        assert!(!backlog.holds_back());
        down.taken(SOFT / 2);
        assert!(backlog.holds_back(), "it moves again");
    }

    #[test]
    fn floods_of_much_and_of_little_end_the_channel() {
        for len in [1 << 20, 1] {
            let (_backlog, _flow, down) = downlink();
            let mut pushed = 0;
            while down.push(data(len)).is_ok() {
                pushed += len + PIECE;
                assert!(pushed <= QUEUED_MAX, "pieces of {len}");
            }
        }
    }

    #[test]
    fn all_channels_of_a_client_hold_no_more_than_two_full_ones() {
        let flow = Arc::<Flow>::default();
        let channels: Vec<Downlink<u8>> = (0..5)
            .map(|_| Downlink::new(Arc::default(), Arc::clone(&flow), None))
            .collect();
        let full = channels
            .iter()
            .filter(|channel| (0..20).all(|_| channel.push(data(1 << 20)).is_ok()));
        assert_eq!(full.count(), 3);
    }
}
