//! Copies between two streams until both have ended.
//!
//! What is read goes straight from a buffer of the thread to the other side;
//! only what that side does not take at once is kept, so a quiet relay holds no
//! buffer. Each direction ends by itself: the end of one side's data is passed
//! on as such while the other direction goes on.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use edd_route::Admission;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// What a relay did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Relayed {
    /// Bytes read from downstream.
    pub bytes_in: u64,
    /// Bytes read from upstream.
    pub bytes_out: u64,
    /// Why it is over.
    pub end: End,
}

/// Why a relay is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// A side broke. What the other side got may be cut, so it should not look complete.
    Broken(Side),
    /// Both sides have ended their data, and it was delivered.
    Closed,
    /// The gateway's drain has reached its deadline.
    Drained,
    /// Silence for too long.
    Idle,
    /// A fact that admitted it is over.
    Revoked,
}

impl End {
    /// For the record; none for an end as it should be.
    pub fn note(self) -> Option<&'static str> {
        match self {
            Self::Broken(Side::Downstream) => Some("client broke off"),
            Self::Broken(Side::Upstream) => Some("upstream broke off"),
            Self::Closed => None,
            Self::Drained => Some("drained"),
            Self::Idle => Some("idle"),
            Self::Revoked => Some("revoked"),
        }
    }
}

/// One end of a relay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The client.
    Downstream,
    /// The container or target.
    Upstream,
}

/// Relays until both directions have ended, nothing has moved for `idle`, the
/// `admission` is revoked or `cut` is cancelled.
///
/// Nothing is closed here: the caller drops the streams, and resets them where
/// [`End`] says that the data may be cut. Not cancellation safe: dropping the
/// future loses what was read and not yet written.
pub async fn relay<D, U>(
    down: &mut D,
    up: &mut U,
    admission: &Admission,
    idle: Duration,
    cut: &CancellationToken,
) -> Relayed
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut inward = Pump::default();
    let mut outward = Pump::default();
    let mut timer = pin!(sleep_until(Instant::now() + idle));
    let mut revoked = pin!(admission.revoked());
    let mut cancelled = pin!(cut.cancelled());
    let (mut seen, mut quiet_since) = (0, Instant::now());

    let end = poll_fn(|cx| {
        if revoked.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Revoked);
        }
        if cancelled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Drained);
        }
        let first = inward.poll(cx, down, up);
        let second = outward.poll(cx, up, down);
        if first == Poll::Ready(Flow::ReadFailed) {
            return Poll::Ready(End::Broken(Side::Downstream));
        }
        if second == Poll::Ready(Flow::ReadFailed) {
            return Poll::Ready(End::Broken(Side::Upstream));
        }
        if let (Poll::Ready(first), Poll::Ready(second)) = (first, second) {
            return Poll::Ready(match (first, second) {
                (Flow::WriteFailed, _) => End::Broken(Side::Upstream),
                (_, Flow::WriteFailed) => End::Broken(Side::Downstream),
                _ => End::Closed,
            });
        }
        let moved = inward.moved + outward.moved;
        if moved != seen {
            seen = moved;
            quiet_since = Instant::now();
        }
        // The timer is set again when it fires, not at each byte.
        loop {
            ready!(timer.as_mut().poll(cx));
            let until = quiet_since + idle;
            if until <= Instant::now() {
                return Poll::Ready(End::Idle);
            }
            timer.as_mut().reset(until);
        }
    })
    .await;
    Relayed {
        bytes_in: inward.copied,
        bytes_out: outward.copied,
        end,
    }
}

/// How one direction is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Flow {
    /// All data and its end were passed on.
    Ended,
    /// The source broke.
    ReadFailed,
    /// The other side takes no more; what it still sends is delivered.
    WriteFailed,
}

/// One direction.
#[derive(Default)]
struct Pump {
    /// Read, but not yet taken by the other side, from `at` on.
    left: Vec<u8>,
    at: usize,
    ended: bool,
    unflushed: bool,
    over: Option<Flow>,
    /// Bytes read.
    copied: u64,
    /// Grows whenever anything moves.
    moved: u64,
}

impl Pump {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Flow>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if let Some(flow) = self.over {
            return Poll::Ready(flow);
        }
        let mut scratch = Scratch::take();
        let flow = ready!(self.advance(cx, from, to, scratch.buffer()));
        self.left = Vec::new();
        self.over = Some(flow);
        Poll::Ready(flow)
    }

    fn advance<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        scratch: &mut [u8],
    ) -> Poll<Flow>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while let Some(left) = self.left.get(self.at..).filter(|left| !left.is_empty()) {
                match ready!(Pin::new(&mut *to).poll_write(cx, left)) {
                    Ok(0) | Err(_) => return Poll::Ready(Flow::WriteFailed),
                    Ok(count) => self.wrote(count),
                }
            }
            if !self.left.is_empty() {
                (self.left, self.at) = (Vec::new(), 0);
            }
            if self.ended {
                // A side that is already gone cannot be told; that is no fault.
                let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                return Poll::Ready(Flow::Ended);
            }
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Flow::ReadFailed),
                Poll::Pending => {
                    if self.unflushed {
                        if ready!(Pin::new(&mut *to).poll_flush(cx)).is_err() {
                            return Poll::Ready(Flow::WriteFailed);
                        }
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
            let read = buffer.filled();
            self.moved += 1;
            if read.is_empty() {
                self.ended = true;
                continue;
            }
            self.copied += read.len() as u64;
            match Pin::new(&mut *to).poll_write(cx, read) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Flow::WriteFailed),
                Poll::Ready(Ok(count)) => {
                    self.unflushed = true;
                    self.left
                        .extend_from_slice(read.get(count..).unwrap_or_default());
                }
                Poll::Pending => self.left.extend_from_slice(read),
            }
        }
    }

    fn wrote(&mut self, count: usize) {
        self.at += count;
        self.moved += 1;
        self.unflushed = true;
    }
}

/// The thread's buffer, lent for one poll. A second taker meanwhile gets its own.
struct Scratch(Box<[u8]>);

impl Scratch {
    fn take() -> Self {
        let buffer = SCRATCH.take();
        Self(buffer.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice()))
    }

    fn buffer(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.set(Some(std::mem::take(&mut self.0)));
    }
}

thread_local! {
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Halves the cost of bulk against 8 KiB.
const BUFFER_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use edd_route::Fact;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    struct Ends {
        client: DuplexStream,
        server: DuplexStream,
        relay: tokio::task::JoinHandle<Relayed>,
    }

    fn start(admission: Admission, idle: Duration, cut: CancellationToken) -> Ends {
        let (client, mut down) = duplex(1000);
        let (mut up, server) = duplex(700);
        let relay =
            tokio::spawn(async move { relay(&mut down, &mut up, &admission, idle, &cut).await });
        Ends {
            client,
            server,
            relay,
        }
    }

    fn plain() -> Ends {
        start(Admission::default(), LONG, CancellationToken::new())
    }

    fn data(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 % 251) as u8).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_cross_both_ways_whole_and_counted() {
        let Ends {
            client,
            server,
            relay,
        } = plain();
        let (up, down) = (data(300_000), data(200_001));
        let talk = async |stream: DuplexStream, mine: Vec<u8>| {
            let (mut read, mut write) = tokio::io::split(stream);
            let mut got = Vec::new();
            let (sent, received) = tokio::join!(
                async {
                    write.write_all(&mine).await?;
                    write.shutdown().await
                },
                read.read_to_end(&mut got)
            );
            sent.unwrap();
            received.unwrap();
            got
        };
        let (at_client, at_server) =
            tokio::join!(talk(client, up.clone()), talk(server, down.clone()));
        assert!(at_client == down && at_server == up);
        let done = relay.await.unwrap();
        assert_eq!((done.bytes_in, done.bytes_out), (300_000, 200_001));
        assert_eq!(done.end, End::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn one_side_may_end_while_the_other_goes_on() {
        let mut ends = plain();
        ends.client.write_all(b"question").await.unwrap();
        ends.client.shutdown().await.unwrap();
        let mut question = Vec::new();
        ends.server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");

        let mut buf = [0; 6];
        ends.server.write_all(b"answer").await.unwrap();
        ends.client.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"answer");
        assert!(!ends.relay.is_finished());

        ends.server.shutdown().await.unwrap();
        assert_eq!(ends.client.read(&mut buf).await.unwrap(), 0);
        assert_eq!(ends.relay.await.unwrap().end, End::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_traffic_does_not() {
        let idle = Duration::from_secs(10);
        let mut ends = start(Admission::default(), idle, CancellationToken::new());
        let begun = Instant::now();
        let mut byte = [0];
        for _ in 0..5 {
            tokio::time::advance(Duration::from_secs(9)).await;
            ends.server.write_all(b"x").await.unwrap();
            ends.client.read_exact(&mut byte).await.unwrap();
        }
        assert_eq!(ends.relay.await.unwrap().end, End::Idle);
        let lived = begun.elapsed();
        assert!(lived >= Duration::from_secs(55) && lived < Duration::from_secs(57));
    }

    #[tokio::test(start_paused = true)]
    async fn revocation_and_drain_end_it_at_once() {
        let fact = Fact::new();
        let cut = CancellationToken::new();
        let mut revoked = start(Admission::new([fact.clone()]), LONG, cut.clone());
        let drained = start(Admission::default(), LONG, cut.clone());
        revoked.client.write_all(b"x").await.unwrap();
        let mut byte = [0];
        revoked.server.read_exact(&mut byte).await.unwrap();

        let begun = Instant::now();
        fact.revoke();
        assert_eq!(revoked.relay.await.unwrap().end, End::Revoked);
        assert!(!drained.relay.is_finished());
        cut.cancel();
        assert_eq!(drained.relay.await.unwrap().end, End::Drained);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_stops_reading_is_still_heard() {
        let mut ends = plain();
        let (mut read, write) = tokio::io::split(ends.server);
        drop(ends.client.write_all(b"x").await);
        read.read_u8().await.unwrap();
        let mut server = read.unsplit(write);
        server.write_all(b"refused").await.unwrap();
        drop(server);
        // The client still sends; the answer must reach it all the same.
        let _ = ends.client.write_all(&data(500)).await;
        let mut answer = Vec::new();
        ends.client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"refused");
    }
}
