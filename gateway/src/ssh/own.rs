//! What a container has sent on the channel that its connection was made for, and nobody has taken.
//!
//! While it is too much, the connection's socket is not read (see `wire`): exact
//! back-pressure, and russh's loop stays free to write. So it goes on telling the container's
//! sshd that we live (see `pulse`), whose own questions lie unread behind the
//! data. Nothing here does I/O.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use super::budget::Holding;

/// With more than this waiting the socket is not read… Little, so that what comes out of one cipher
/// is still in the processor's cache when it goes into the other.
const SOFT: i64 = 256 << 10;

/// …until it is less than this.
const LOW: i64 = 128 << 10;

/// Where memory is short: more than this, until it is less.
const PRESSED: i64 = 64 << 10;

/// A piece costs at least this, so that there are never more of them than russh's queue has room
/// for, where its loop would wait.
const PIECE: usize = 1 << 10;

/// Room for the pieces of [`SOFT`], and for those of one read (128 KiB) if it has nothing but
/// tiny ones.
pub(crate) const PIECES_MAX: usize = 4096;

/// Of one connection to a container.
#[derive(Debug, Default)]
pub(crate) struct Own {
    /// The channel's number, once the container has opened it.
    channel: OnceLock<u32>,
    /// Where it is counted, too. Weak, since the connection may outlive its channel.
    holding: OnceLock<Weak<Holding>>,
    /// May be negative for a moment: the taker can be faster than the counter.
    queued: AtomicI64,
    /// The channel has ended: what comes now is dropped at once.
    ended: AtomicBool,
    /// Whether the socket is not read.
    stands: AtomicBool,
    /// Told when it is read no more.
    stopped: Notify,
    reader: AtomicWaker,
}

impl Own {
    /// The container has opened a channel for us; the first one counts.
    pub(crate) fn opened(&self, channel: u32) {
        let _ = self.channel.set(channel);
    }

    /// Counts for this channel's holding, too.
    pub(crate) fn charge(&self, holding: &Arc<Holding>) {
        let _ = self.holding.set(Arc::downgrade(holding));
    }

    /// Counts data that has come on a channel.
    pub(crate) fn arrived(&self, channel: u32, bytes: usize) {
        if self.channel.get() != Some(&channel) {
            return;
        }
        let bytes = bytes.max(PIECE);
        self.queued.fetch_add(signed(bytes), Ordering::Relaxed);
        if let Some(holding) = self.holding.get().and_then(Weak::upgrade) {
            holding.add(bytes);
        }
    }

    /// Counts data that the client's connection has taken.
    pub(crate) fn taken(&self, bytes: usize) {
        let bytes = bytes.max(PIECE);
        let len = signed(bytes);
        let before = self.queued.fetch_sub(len, Ordering::Relaxed);
        if let Some(holding) = self.holding.get().and_then(Weak::upgrade) {
            holding.sub(bytes);
        }
        let passed = |mark| before >= mark && before - len < mark;
        if passed(LOW) || passed(PRESSED) {
            self.reader.wake();
        }
    }

    /// Nobody holds the socket back any more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.reader.wake();
    }

    /// Whether the socket may be read; its reader is woken when that changes.
    pub(crate) fn may_read(&self, reader: &Waker) -> bool {
        // Before looking.
        self.reader.register(reader);
        let stood = self.stands.load(Ordering::Relaxed);
        let holding = self.holding.get().and_then(Weak::upgrade);
        let mark = match stood {
            _ if holding.is_some_and(|holding| holding.is_pressed()) => PRESSED,
            true => LOW,
            false => SOFT,
        };
        let stands =
            !self.ended.load(Ordering::Relaxed) && self.queued.load(Ordering::Relaxed) >= mark;
        if stands != stood {
            self.stands.store(stands, Ordering::Relaxed);
            if stands {
                self.stopped.notify_one();
            }
        }
        !stands
    }

    /// Whether the socket is not read.
    pub(crate) fn stands(&self) -> bool {
        self.stands.load(Ordering::Relaxed)
    }

    /// Waits until the socket is not read. Cancellation safe; one waiter only.
    pub(crate) async fn stopped(&self) {
        while !self.stands() {
            self.stopped.notified().await;
        }
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::task::{ArcWake, waker};

    use super::*;

    #[derive(Default)]
    struct Reader(AtomicUsize);

    impl ArcWake for Reader {
        fn wake_by_ref(reader: &Arc<Self>) {
            reader.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn own() -> (Own, Arc<Reader>, Waker) {
        let (own, reader) = (Own::default(), Arc::<Reader>::default());
        own.opened(3);
        (own, Arc::clone(&reader), waker(reader))
    }

    #[tokio::test]
    async fn the_socket_stands_from_soft_until_low() {
        let (own, reader, waker) = own();
        own.arrived(3, SOFT as usize - 1);
        assert!(own.may_read(&waker) && !own.stands());
        own.arrived(3, PIECE);
        assert!(!own.may_read(&waker));
        own.stopped().await;
        own.taken((SOFT - LOW) as usize);
        assert!(!own.may_read(&waker));
        assert_eq!(reader.0.load(Ordering::Relaxed), 0);
        own.taken(2 * PIECE);
        assert_eq!(reader.0.load(Ordering::Relaxed), 1, "woken");
        assert!(own.may_read(&waker) && !own.stands());
    }

    #[test]
    fn only_its_own_channel_counts_and_only_while_it_lives() {
        let (own, reader, waker) = own();
        own.opened(4);
        own.arrived(4, 2 * SOFT as usize);
        assert!(own.may_read(&waker));
        own.arrived(3, 2 * SOFT as usize);
        assert!(!own.may_read(&waker));
        own.end();
        assert_eq!(reader.0.load(Ordering::Relaxed), 1, "woken");
        assert!(own.may_read(&waker));
    }

    #[test]
    fn tiny_pieces_never_fill_the_queue() {
        let (own, _reader, waker) = own();
        let mut pieces = 0;
        while own.may_read(&waker) {
            own.arrived(3, 1);
            pieces += 1;
        }
        // The smallest packet takes 32 bytes and more on the wire.
        let one_read = (128 << 10) / 44;
        assert!(pieces + one_read < PIECES_MAX, "{pieces}");
    }
}
