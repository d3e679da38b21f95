//! What waits between a client and its containers, counted, and what follows from it.
//!
//! russh opens a channel's receive window when data arrives, not when somebody
//! takes it. So every channel's data goes into a queue of our own whose reader
//! never waits (see `uplink`); the bytes in it are counted here, for the whole
//! connection, and while one of its channels holds too much, it is granted
//! [`TRICKLE`] bytes at a time (see `window`) and the connection is read
//! slowly. Nothing here does I/O.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use futures_util::task::AtomicWaker;

use super::budget::Account;

/// Window granted to a channel while nothing is in the way, in bytes; OpenSSH's own is as large.
pub(crate) const WINDOW: u32 = 2 << 20;

/// Window of a channel that opens, in bytes. With a key exchange begun by us a client may have
/// twice this under way before its answer, over all channels, and russh ends it beyond.
pub(crate) const FIRST_WINDOW: u32 = WINDOW;

/// Window while something is: the least that still gets the next decision made.
/// Never 1: half of it is 0, and russh would never grant nor ask again.
pub(crate) const TRICKLE: u32 = 2;

/// All channels of a connection together; beyond it everything trickles.
pub(super) const TOTAL_MAX: i64 = 32 << 20;

/// Beyond [`TOTAL_MAX`] and the windows that are open then (none is larger than
/// [`FIRST_WINDOW`]) nothing comes from a client that keeps to them; this much is forgiven. russh
/// itself takes whatever is sent.
const FORGIVEN: i64 = 8 << 20;

/// What all channels that containers have opened towards one client may hold.
const HELD_MAX: usize = 64 << 20;

/// Counters of one client connection.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Channels that are over.
    pub(super) over: AtomicUsize,
    /// Bytes that wait, all channels.
    pub(super) total: AtomicI64,
    /// Channels whose bytes are counted.
    pub(super) live: AtomicI64,
    /// The channel that last got data has enough for a while.
    pub(super) enough: AtomicBool,
    /// The reader of the client's socket.
    reader: AtomicWaker,
    /// Bytes that wait for the client in channels of containers.
    held: AtomicUsize,
    /// Of the owner of the container, from the login on.
    pub(super) account: OnceLock<Arc<Account>>,
    pub(super) bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    channels: AtomicU64,
}

impl Flow {
    /// From now on what waits counts for this account.
    pub(crate) fn charge(&self, account: Arc<Account>) {
        let _ = self.account.set(account);
    }

    /// Whether some channel holds too much, or all together do.
    pub(crate) fn is_over(&self) -> bool {
        self.some_over() || self.is_full()
    }

    /// Whether some channel holds too much.
    pub(crate) fn some_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) > 0
    }

    /// Whether all together hold too much, or their owner does.
    pub(crate) fn is_full(&self) -> bool {
        let is_pressed = || {
            self.account
                .get()
                .is_some_and(|account| account.is_pressed())
        };
        self.total.load(Ordering::Relaxed) > TOTAL_MAX || is_pressed()
    }

    /// Whether the channel that last got data has enough of it for a while; the reader is woken
    /// when that changes.
    pub(crate) fn has_enough(&self, reader: &Waker) -> bool {
        // Before looking.
        self.reader.register(reader);
        self.enough.load(Ordering::Relaxed)
    }

    /// A channel wants data again.
    pub(super) fn wants_more(&self) {
        self.enough.store(false, Ordering::Relaxed);
        self.reader.wake();
    }

    /// What waits once every window that was open when everything began to trickle is used up.
    pub(super) fn total_max(&self) -> i64 {
        let windows = self.live.load(Ordering::Relaxed) * i64::from(FIRST_WINDOW);
        TOTAL_MAX + windows + FORGIVEN
    }

    /// Counts bytes that wait for the client; false if they are too many, and not counted.
    pub(crate) fn hold(&self, bytes: usize) -> bool {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= HELD_MAX;
        if !fits {
            self.release(bytes);
        }
        fits
    }

    /// Counts bytes that do not wait any more.
    pub(crate) fn release(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that wait for the client.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Counts a channel that was opened.
    pub(crate) fn opened(&self) {
        self.channels.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes that went to the client.
    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Channels opened, bytes from the client, bytes to the client.
    pub(crate) fn totals(&self) -> (u64, u64, u64) {
        (
            self.channels.load(Ordering::Relaxed),
            self.bytes_in.load(Ordering::Relaxed),
            self.bytes_out.load(Ordering::Relaxed),
        )
    }
}
