//! What one channel's client has sent and its container has not taken.
//!
//! The reader never waits, since the connection's only loop waits for it: it
//! appends to a queue of our own, in the client's order. What concerns a
//! process that runs (a signal, a resize) may overtake data. The bytes are
//! counted in the connection's [`Flow`] and in the owner's account. Nothing
//! here does I/O.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use super::audit::ChannelAudit;
use super::budget::Holding;
use super::flow::{Flow, TOTAL_MAX};
use super::request::Request;

/// A channel with more than this waiting has enough for a while: the client's socket is read on
/// when…
const ENOUGH: i64 = 256 << 10;

/// …it has less than this, or some milliseconds later (see `wire`).
const MORE: i64 = 128 << 10;

/// A channel with more than this waiting is over…
const SOFT: i64 = 1 << 20;

/// …until it has less than this.
const LOW: i64 = 512 << 10;

/// More than any client that keeps to its window can have waiting in one channel: what opened for
/// others and went to this one by mistake ends at [`TOTAL_MAX`].
const QUEUED_MAX: i64 = TOTAL_MAX + (8 << 20);

/// Pieces below this are joined, so that a trickle does not cost an entry for two bytes.
const SMALL: usize = 1 << 10;

/// Joined pieces grow to this.
const TAIL_MAX: usize = 32 << 10;

/// Requests that may wait in one channel; a client that sends more is up to no good.
const REQUESTS_MAX: usize = 256;

/// Bytes of the requests that may wait in one channel.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Something that goes to the container, in the client's order.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// Data: a stream code (none: the standard input) and bytes.
    Data(Option<u32>, Bytes),
    /// Nothing more at all: the client has closed.
    End,
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
    /// What the whole channel holds, downwards too.
    holding: Option<Arc<Holding>>,
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
        let holding = flow.account.get().map(|account| Arc::new(account.open()));
        Arc::new(Self {
            flow,
            holding,
            audit: OnceLock::new(),
            count: Mutex::default(),
            queue: Mutex::default(),
            ready: Notify::new(),
            urgent_ready: Notify::new(),
        })
    }

    /// Where what waits is counted, if it is.
    pub(crate) fn holding(&self) -> Option<&Arc<Holding>> {
        self.holding.as_ref()
    }

    /// Waits until the channel has to close for the memory that it holds. Cancellation safe.
    pub(crate) async fn sent_away(&self) {
        match &self.holding {
            Some(holding) => holding.leave().cancelled().await,
            None => std::future::pending().await,
        }
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
        let enough = count.queued > ENOUGH;
        self.flow.enough.store(enough, Ordering::Relaxed);
        if !count.over && count.queued > SOFT {
            count.over = true;
            self.flow.over.fetch_add(1, Ordering::Relaxed);
        }
        if count.queued > QUEUED_MAX || total > self.flow.total_max() {
            return Err(Excess);
        }
        drop(count);
        if let Some(holding) = &self.holding {
            holding.add(bytes);
        }
        Ok(())
    }

    /// Counts bytes that the container's connection has taken.
    pub(crate) fn delivered(&self, bytes: usize) {
        if let Some(holding) = &self.holding {
            holding.sub(bytes);
        }
        let len = signed(bytes);
        self.flow.total.fetch_sub(len, Ordering::Relaxed);
        let mut count = lock(&self.count);
        let before = count.queued;
        count.queued -= len;
        if before >= MORE && count.queued < MORE {
            self.flow.wants_more();
        }
        if count.over && count.queued < LOW {
            count.over = false;
            self.flow.over.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Appends data. Never waits. What comes behind the end of the data is dropped.
    pub(crate) fn push_data(&self, code: Option<u32>, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let mut queue = lock(&self.queue);
        if queue.ended {
            drop(queue);
            self.delivered(data.len());
            return;
        }
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
        lock(&self.queue).end_data();
        self.ready.notify_one();
    }

    /// Appends the end of everything, behind that of the data. Never waits.
    pub(crate) fn push_end(&self) {
        let mut queue = lock(&self.queue);
        queue.end_data();
        queue.items.push_back(Item::End);
        self.ready.notify_one();
    }

    /// Drops what waits.
    pub(crate) fn clear(&self) {
        let dropped = lock(&self.queue).clear();
        self.delivered(dropped);
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
        if let Some(holding) = &self.holding {
            holding.add(request.len());
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
            let popped = lock(&self.queue).pop();
            if let Some(item) = popped {
                if let Item::Request(request) = &item {
                    self.taken(request);
                }
                return item;
            }
            self.ready.notified().await;
        }
    }

    /// The next request that overtakes data. Cancellation safe; one taker only.
    pub(crate) async fn next_urgent(&self) -> Request {
        loop {
            let popped = lock(&self.queue).pop_urgent();
            if let Some(request) = popped {
                self.taken(&request);
                return request;
            }
            self.urgent_ready.notified().await;
        }
    }

    fn taken(&self, request: &Request) {
        if let Some(holding) = &self.holding {
            holding.sub(request.len());
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
    fn end_data(&mut self) {
        if !self.ended {
            self.settle();
            self.items.push_back(Item::Eof);
            self.ended = true;
        }
    }

    /// Drops everything; how many bytes of data there were.
    fn clear(&mut self) -> usize {
        let items = self.items.drain(..).map(|item| match item {
            Item::Data(_, data) => data.len(),
            Item::End | Item::Eof | Item::Request(_) => 0,
        });
        let bytes = items.sum::<usize>() + self.tail.len();
        self.tail = BytesMut::new();
        bytes
    }

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
    use russh::Sig;

    use super::super::budget::Budget;
    use super::super::flow::FIRST_WINDOW;
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

    #[tokio::test]
    async fn requests_pass_behind_the_end_of_the_data_and_data_does_not() {
        let flow = Arc::new(Flow::default());
        let up = Uplink::new(Arc::clone(&flow));
        up.push_request(Request::Shell).unwrap();
        up.push_eof();
        up.push_eof();
        // The shell is not on its way yet, so this may not overtake it.
        up.push_request(Request::WindowChange([80, 24, 0, 0]))
            .unwrap();
        up.arrived(4).unwrap();
        up.push_data(None, Bytes::from_static(b"late"));
        up.push_end();
        for expected in [
            "Request(Shell)",
            "Eof",
            "Request(WindowChange([80, 24, 0, 0]))",
            "End",
        ] {
            assert_eq!(text(up.next().await), expected);
        }
        assert_eq!(flow.total.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn requests_are_held_until_they_are_taken() {
        let mut registry = prometheus_client::registry::Registry::default();
        let metrics = crate::telemetry::Metrics::register(&mut registry);
        let budget = Budget::new(100, metrics);
        let flow = Arc::new(Flow::default());
        flow.charge(budget.account(edd_route::UserId(1)));
        let up = Uplink::new(flow);
        let env = || Request::Env("A".into(), "b".repeat(59));
        up.push_request(env()).unwrap();
        up.next().await;
        up.push_request(env()).unwrap();
        assert!(!up.holding().unwrap().leave().is_cancelled());
        up.push_request(env()).unwrap();
        up.sent_away().await;
    }

    #[test]
    fn what_is_dropped_is_not_counted_any_more() {
        let flow = Arc::new(Flow::default());
        let up = Uplink::new(Arc::clone(&flow));
        for len in [2 * SMALL, 3] {
            up.arrived(len).unwrap();
            up.push_data(None, Bytes::from(vec![0; len]));
        }
        up.clear();
        assert_eq!(flow.total.load(Ordering::Relaxed), 0);
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
