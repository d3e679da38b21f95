//! What waits between a client and its containers, counted, and what follows from it.
//!
//! russh opens a channel's receive window when data arrives, not when somebody
//! takes it. So every channel's data goes into an [`Uplink`], a queue of our
//! own whose reader never waits; the bytes in it are counted, and while one of
//! a connection's channels holds too much, it is granted [`TRICKLE`] bytes at
//! a time (see `window`) and the connection is read slowly. Nothing here does
//! I/O.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use russh::{Pty, Sig};
use tokio::sync::Notify;

use super::audit::ChannelAudit;

/// Window granted to a channel while nothing is in the way, in bytes.
pub(crate) const WINDOW: u32 = 1 << 20;

/// Window of a channel that opens, in bytes. Twice what is granted later: with a key exchange
/// begun by us a client may have twice this under way before its answer, over all channels, and
/// russh ends it beyond.
pub(crate) const FIRST_WINDOW: u32 = 2 * WINDOW;

/// Window while something is: the least that still gets the next decision made.
/// Never 1: half of it is 0, and russh would never grant nor ask again.
pub(crate) const TRICKLE: u32 = 2;

/// A channel with more than this waiting is over…
const SOFT: i64 = 1 << 20;

/// …until it has less than this.
const LOW: i64 = 512 << 10;

/// More than any client that keeps to its window can have waiting in one channel: what opened for
/// others and went to this one by mistake ends at [`TOTAL_MAX`].
const QUEUED_MAX: i64 = TOTAL_MAX + (8 << 20);

/// All channels of a connection together; beyond it everything trickles.
const TOTAL_MAX: i64 = 32 << 20;

/// Beyond [`TOTAL_MAX`] and the windows that are open then (none is larger than
/// [`FIRST_WINDOW`]) nothing comes from a client that keeps to them; this much is forgiven. russh
/// itself takes whatever is sent.
const FORGIVEN: i64 = 8 << 20;

/// What all channels that containers have opened towards one client may hold.
const HELD_MAX: usize = 64 << 20;

/// Pieces below this are joined, so that a trickle does not cost an entry for two bytes.
const SMALL: usize = 1 << 10;

/// Joined pieces grow to this.
const TAIL_MAX: usize = 32 << 10;

/// Requests that may wait in one channel; a client that sends more is up to no good.
const REQUESTS_MAX: usize = 256;

/// Bytes of the requests that may wait in one channel.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Counters of one client connection.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Channels that are over.
    over: AtomicUsize,
    /// Bytes that wait, all channels.
    total: AtomicI64,
    /// Channels whose bytes are counted.
    live: AtomicI64,
    /// Bytes that wait for the client in channels of containers.
    held: AtomicUsize,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    channels: AtomicU64,
}

impl Flow {
    /// Whether some channel holds too much, or all together do.
    pub(crate) fn is_over(&self) -> bool {
        self.some_over() || self.is_full()
    }

    /// Whether some channel holds too much.
    pub(crate) fn some_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) > 0
    }

    /// Whether all together hold too much.
    pub(crate) fn is_full(&self) -> bool {
        self.total.load(Ordering::Relaxed) > TOTAL_MAX
    }

    /// What waits once every window that was open when everything began to trickle is used up.
    fn total_max(&self) -> i64 {
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

/// A session request on its way to the container.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// Make the client's agent reachable.
    Agent,
    /// Set a variable.
    Env(String, String),
    /// Run a command.
    Exec(Vec<u8>),
    /// Allocate a terminal.
    Pty {
        /// Value of TERM.
        term: String,
        /// Columns, rows, width and height in pixels.
        size: [u32; 4],
        /// Terminal modes.
        modes: Vec<(Pty, u32)>,
    },
    /// Run the login shell.
    Shell,
    /// Signal the process.
    Signal(Sig),
    /// Run a subsystem.
    Subsystem(String),
    /// The terminal has another size.
    WindowChange([u32; 4]),
    /// Make the client's display reachable.
    X11 {
        /// For one connection only.
        single: bool,
        /// Name of the authentication protocol.
        protocol: String,
        /// Its cookie, in hexadecimal.
        cookie: String,
        /// The screen.
        screen: u32,
    },
}

impl Request {
    /// What it holds, in bytes.
    fn len(&self) -> usize {
        match self {
            Self::Env(name, value) => name.len() + value.len(),
            Self::Exec(command) => command.len(),
            Self::Pty { term, modes, .. } => term.len() + modes.len() * 8,
            Self::Agent | Self::Shell | Self::WindowChange(_) => 0,
            Self::Signal(Sig::Custom(name)) | Self::Subsystem(name) => name.len(),
            Self::Signal(_) => 0,
            Self::X11 {
                protocol, cookie, ..
            } => protocol.len() + cookie.len(),
        }
    }

    /// Whether it may overtake data that waits: what it concerns runs already, and a stalled
    /// upload must not keep Ctrl-C or a resize from arriving.
    fn overtakes_data(&self) -> bool {
        matches!(self, Self::Signal(_) | Self::WindowChange(_))
    }
}

/// Something that goes to the container, in the client's order.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// Data: a stream code (none: the standard input) and bytes.
    Data(Option<u32>, Bytes),
    /// No more data.
    Eof,
    /// A request.
    Request(Request),
}

/// A channel asked for more than it may.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the client does not keep to its window")]
pub(crate) struct Excess;

/// What one channel's client has sent and its container has not taken.
#[derive(Debug)]
pub(crate) struct Uplink {
    flow: Arc<Flow>,
    audit: OnceLock<ChannelAudit>,
    /// Short sections: counting by the connection's loop and the channel's task.
    count: Mutex<Count>,
    /// Short sections, one task only; a mutex since the task may move between threads.
    queue: Mutex<Queue>,
    ready: Notify,
    urgent_ready: Notify,
}

#[derive(Debug, Default)]
struct Count {
    /// May be negative for a moment: the taker can be faster than the counter.
    queued: i64,
    over: bool,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Small pieces, joined, behind all items.
    tail: BytesMut,
    tail_code: Option<u32>,
    /// What may overtake data.
    urgent: VecDeque<Request>,
    /// Requests in `items` or just taken out and not yet sent.
    requests: usize,
    /// Bytes of the requests that wait in either queue.
    request_bytes: usize,
    /// The client has sent its end of data.
    ended: bool,
}

impl Uplink {
    /// An empty one, counted in `flow`.
    pub(crate) fn new(flow: Arc<Flow>) -> Arc<Self> {
        flow.live.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            flow,
            audit: OnceLock::new(),
            count: Mutex::default(),
            queue: Mutex::default(),
            ready: Notify::new(),
            urgent_ready: Notify::new(),
        })
    }

    /// What passes is told to `audit`, which ends with this.
    pub(crate) fn watch(&self, audit: ChannelAudit) {
        let _ = self.audit.set(audit);
    }

    /// Who is told what passes.
    pub(crate) fn audit(&self) -> Option<&ChannelAudit> {
        self.audit.get()
    }

    /// Counts what goes to the client.
    pub(crate) fn sent(&self, data: &Bytes) {
        self.flow.sent(data.len());
        if let Some(audit) = self.audit() {
            audit.sent(data);
        }
    }

    /// Counts bytes that came in. Called by the connection's loop, so that the window's hook,
    /// which runs there too, sees exact numbers.
    pub(crate) fn arrived(&self, bytes: usize) -> Result<(), Excess> {
        self.flow
            .bytes_in
            .fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(audit) = self.audit() {
            audit.arrived(bytes);
        }
        let len = signed(bytes);
        let total = self.flow.total.fetch_add(len, Ordering::Relaxed) + len;
        let mut count = lock(&self.count);
        count.queued += len;
        if !count.over && count.queued > SOFT {
            count.over = true;
            self.flow.over.fetch_add(1, Ordering::Relaxed);
        }
        if count.queued > QUEUED_MAX || total > self.flow.total_max() {
            return Err(Excess);
        }
        Ok(())
    }

    /// Counts bytes that the container's connection has taken.
    pub(crate) fn delivered(&self, bytes: usize) {
        let len = signed(bytes);
        self.flow.total.fetch_sub(len, Ordering::Relaxed);
        let mut count = lock(&self.count);
        count.queued -= len;
        if count.over && count.queued < LOW {
            count.over = false;
            self.flow.over.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Appends data. Never waits.
    pub(crate) fn push_data(&self, code: Option<u32>, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let mut queue = lock(&self.queue);
        if data.len() >= SMALL {
            queue.settle();
            queue.items.push_back(Item::Data(code, data));
        } else {
            if queue.tail_code != code || queue.tail.len() + data.len() > TAIL_MAX {
                queue.settle();
            }
            queue.tail_code = code;
            queue.tail.extend_from_slice(&data);
        }
        self.ready.notify_one();
    }

    /// Appends the end of the data. Never waits.
    pub(crate) fn push_eof(&self) {
        let mut queue = lock(&self.queue);
        queue.settle();
        queue.items.push_back(Item::Eof);
        queue.ended = true;
        self.ready.notify_one();
    }

    /// Whether the container has more to take than it should.
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.count).over
    }

    /// Whether the end of the data was appended.
    pub(crate) fn is_ended(&self) -> bool {
        lock(&self.queue).ended
    }

    /// Appends a request, or puts it in front of the data if it may overtake. Never waits.
    pub(crate) fn push_request(&self, request: Request) -> Result<(), Excess> {
        let mut queue = lock(&self.queue);
        let bytes = queue.request_bytes + request.len();
        if queue.requests + queue.urgent.len() >= REQUESTS_MAX || bytes > REQUEST_BYTES_MAX {
            return Err(Excess);
        }
        queue.request_bytes = bytes;
        if let Some(audit) = self.audit() {
            audit.request(&request)?;
        }
        if request.overtakes_data() && queue.requests == 0 {
            if matches!(request, Request::WindowChange(_))
                && matches!(queue.urgent.back(), Some(Request::WindowChange(_)))
            {
                queue.urgent.pop_back();
            }
            queue.urgent.push_back(request);
            self.urgent_ready.notify_one();
        } else {
            queue.settle();
            queue.requests += 1;
            queue.items.push_back(Item::Request(request));
            self.ready.notify_one();
        }
        Ok(())
    }

    /// A request that [`Self::next`] gave out was sent: others may overtake again.
    pub(crate) fn request_sent(&self) {
        let mut queue = lock(&self.queue);
        queue.requests = queue.requests.saturating_sub(1);
    }

    /// The next item, as soon as there is one. Cancellation safe; one taker only.
    pub(crate) async fn next(&self) -> Item {
        loop {
            if let Some(item) = lock(&self.queue).pop() {
                return item;
            }
            self.ready.notified().await;
        }
    }

    /// The next request that overtakes data. Cancellation safe; one taker only.
    pub(crate) async fn next_urgent(&self) -> Request {
        loop {
            if let Some(request) = lock(&self.queue).pop_urgent() {
                return request;
            }
            self.urgent_ready.notified().await;
        }
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        let count = lock(&self.count);
        if count.over {
            self.flow.over.fetch_sub(1, Ordering::Relaxed);
        }
        self.flow.total.fetch_sub(count.queued, Ordering::Relaxed);
        self.flow.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Queue {
    fn settle(&mut self) {
        if !self.tail.is_empty() {
            let joined = self.tail.split().freeze();
            self.items.push_back(Item::Data(self.tail_code, joined));
        }
    }

    fn pop(&mut self) -> Option<Item> {
        if self.items.is_empty() {
            self.settle();
        }
        let item = self.items.pop_front();
        if let Some(Item::Request(request)) = &item {
            self.request_bytes = self.request_bytes.saturating_sub(request.len());
        }
        item
    }

    fn pop_urgent(&mut self) -> Option<Request> {
        let request = self.urgent.pop_front()?;
        self.request_bytes = self.request_bytes.saturating_sub(request.len());
        Some(request)
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(item: Item) -> Vec<u8> {
        match item {
            Item::Data(None, bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// russh's signals cannot be compared.
    fn text(value: impl std::fmt::Debug) -> String {
        format!("{value:?}")
    }

    #[tokio::test]
    async fn small_pieces_are_joined_and_order_is_kept() {
        let up = Uplink::new(Arc::default());
        up.push_request(Request::Shell).unwrap();
        for piece in ["a", "b", "c"] {
            up.push_data(None, Bytes::from(piece));
        }
        up.push_data(None, Bytes::from(vec![b'x'; SMALL]));
        up.push_data(None, Bytes::from_static(b"d"));
        up.push_data(Some(1), Bytes::from_static(b"e"));
        up.push_data(None, Bytes::new());
        up.push_eof();
        assert_eq!(text(up.next().await), "Request(Shell)");
        assert_eq!(data(up.next().await), b"abc");
        assert_eq!(data(up.next().await).len(), SMALL);
        assert_eq!(data(up.next().await), b"d");
        assert_eq!(text(up.next().await), "Data(Some(1), b\"e\")");
        assert_eq!(text(up.next().await), "Eof");
    }

    #[tokio::test]
    async fn signals_overtake_data_but_never_the_requests_before_them() {
        let up = Uplink::new(Arc::default());
        let resize = |cols| Request::WindowChange([cols, 24, 0, 0]);
        up.push_request(Request::Shell).unwrap();
        up.push_request(resize(80)).unwrap();
        assert_eq!(text(up.next().await), "Request(Shell)");
        up.request_sent();
        assert_eq!(text(up.next().await), format!("Request({:?})", resize(80)));
        up.request_sent();

        up.push_data(None, Bytes::from_static(b"stuck"));
        up.push_request(resize(81)).unwrap();
        up.push_request(resize(82)).unwrap();
        up.push_request(Request::Signal(Sig::INT)).unwrap();
        let first = text(up.next_urgent().await);
        assert_eq!(first, text(resize(82)), "only the last size counts");
        assert_eq!(text(up.next_urgent().await), "Signal(INT)");
    }

    #[test]
    fn a_channel_is_over_from_soft_until_low() {
        let flow = Arc::new(Flow::default());
        let up = Uplink::new(Arc::clone(&flow));
        up.arrived(SOFT as usize).unwrap();
        assert!(!flow.is_over() && !up.is_over());
        up.arrived(1).unwrap();
        assert!(flow.is_over() && up.is_over());
        up.delivered((SOFT - LOW) as usize);
        assert!(flow.is_over() && up.is_over());
        up.delivered(2);
        assert!(!flow.is_over() && !up.is_over());
        assert_eq!(flow.totals().1, SOFT as u64 + 1);
    }

    #[test]
    fn a_channel_that_ends_takes_its_count_with_it() {
        let flow = Arc::new(Flow::default());
        let up = Uplink::new(Arc::clone(&flow));
        up.arrived(2 * SOFT as usize).unwrap();
        assert!(flow.is_over());
        drop(up);
        assert!(!flow.is_over());
        assert_eq!(flow.total.load(Ordering::Relaxed), 0);
        assert_eq!(flow.live.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn many_channels_together_hold_what_their_windows_allow_and_no_more() {
        let flow = Arc::new(Flow::default());
        let channels: Vec<_> = (0..100).map(|_| Uplink::new(Arc::clone(&flow))).collect();
        // The first window of each is used up, and more came before all were.
        for up in &channels {
            up.arrived(FIRST_WINDOW as usize).unwrap();
        }
        channels[0].arrived(TOTAL_MAX as usize).unwrap();
        let total = || flow.total.load(Ordering::Relaxed);
        let flooded = channels
            .iter()
            .skip(1)
            .any(|up| up.arrived(TOTAL_MAX as usize) == Err(Excess));
        assert!(flooded);
        assert!(total() < 300 << 20, "{}", total());

        let one = Arc::new(Flow::default());
        let up = Uplink::new(Arc::clone(&one));
        let second = Uplink::new(one);
        up.arrived(TOTAL_MAX as usize).unwrap();
        second.arrived(FIRST_WINDOW as usize).unwrap();
        assert_eq!(second.arrived(TOTAL_MAX as usize), Err(Excess));
    }

    #[test]
    fn floods_are_refused() {
        let up = Uplink::new(Arc::default());
        assert_eq!(up.arrived(QUEUED_MAX as usize + 1), Err(Excess));
        let env = || Request::Env("A".into(), "b".into());
        let taken = (0..REQUESTS_MAX + 5)
            .take_while(|_| up.push_request(env()).is_ok())
            .count();
        assert_eq!(taken, REQUESTS_MAX);
    }
}
