//! The socket as russh sees it: replayed prefix, paced reading, an end from outside.
//!
//! russh's loops can be blocked in a write or in a queue, where no message
//! reaches them; cutting the socket under them always works. The wire also
//! slows its reads while some channel holds too much: a client's, so that the
//! two-byte trickle of `window` costs a few hundred packets a second and not a
//! core; a container's, to the pace at which the client takes what has come, and
//! not at all while the channel that the connection is for holds too much.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::downlink::Backlog;
use super::flow::Flow;

/// How long a read is put off while some channel is over.
const PACE: Duration = Duration::from_millis(2);

/// How long a read is put off at most while the channel that the last one was for has enough.
/// Whatever else the client sends waits as long.
const ENOUGH_PAUSE: Duration = Duration::from_millis(10);

/// A fill of at most this is a trickle; bulk fills more and is not slowed.
const TRICKLE_FILL: usize = 512;

/// While nobody takes what a container has sent, this much is read from it…
const SIP: usize = 64 << 10;

/// …once in so long: what else its connection carries must not stop.
const SIP_PAUSE: Duration = Duration::from_millis(100);

/// The read buffer starts here, so that an idle session is cheap…
const BUFFER_MIN: usize = 8 << 10;

/// …and doubles up to this when one read fills it.
const BUFFER_MAX: usize = 128 << 10;

/// A socket under russh.
pub(crate) struct Wire<S> {
    socket: S,
    /// Read and not yet taken; holds the prefix first.
    buffer: BytesMut,
    buffer_size: usize,
    last_fill: usize,
    pacing: Pacing,
    /// What the peer has been sent already and russh is about to send.
    told: Bytes,
    /// A read that may be made: so many bytes at most.
    turn: Option<usize>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    banner: Option<BannerWatch>,
}

enum Pacing {
    /// Reads of a client.
    Client {
        flow: Arc<Flow>,
        pause: Pin<Box<Sleep>>,
        pausing: bool,
    },
    /// Reads of a container.
    Container {
        backlog: Arc<Backlog>,
        pause: Pin<Box<Sleep>>,
        /// What clients had taken at the last read, while a channel holds too much.
        taken: Option<u64>,
    },
}

/// Set once the peer has sent the start of its identification.
#[derive(Clone, Debug, Default)]
pub(crate) struct BannerSeen(Arc<AtomicBool>);

impl BannerSeen {
    /// Whether it came.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct BannerWatch {
    seen: BannerSeen,
    /// Bytes of `SSH-` matched so far.
    matched: usize,
}

impl<S> Wire<S> {
    /// A client's socket: `prefix` was read before and comes first; reads are paced by `flow`.
    pub(crate) fn downstream(
        socket: S,
        prefix: &Bytes,
        flow: Arc<Flow>,
        cut: CancellationToken,
    ) -> Self {
        let pacing = Pacing::Client {
            flow,
            pause: Box::pin(tokio::time::sleep(PACE)),
            pausing: false,
        };
        Self {
            buffer: BytesMut::from(&prefix[..]),
            ..Self::plain(socket, cut, pacing)
        }
    }

    /// A container's socket: tells when its banner began; reads are paced by `backlog`.
    pub(crate) fn upstream(
        socket: S,
        cut: CancellationToken,
        seen: BannerSeen,
        backlog: Arc<Backlog>,
    ) -> Self {
        let pacing = Pacing::Container {
            backlog,
            pause: Box::pin(tokio::time::sleep(SIP_PAUSE)),
            taken: None,
        };
        Self {
            banner: Some(BannerWatch { seen, matched: 0 }),
            ..Self::plain(socket, cut, pacing)
        }
    }

    /// The peer has been sent this already: the first bytes to write are these again, and are not.
    pub(crate) fn was_told(&mut self, told: Bytes) {
        self.told = told;
    }

    fn plain(socket: S, cut: CancellationToken, pacing: Pacing) -> Self {
        Self {
            socket,
            buffer: BytesMut::new(),
            buffer_size: BUFFER_MIN,
            last_fill: usize::MAX,
            pacing,
            told: Bytes::new(),
            turn: None,
            cut: Box::pin(cut.cancelled_owned()),
            banner: None,
        }
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Pacing {
    /// Ready when the socket may be read, and how much of it at most.
    fn poll_turn(&mut self, last_fill: usize, cx: &mut Context<'_>) -> Poll<usize> {
        match self {
            Self::Client {
                flow,
                pause,
                pausing,
            } => {
                let is_over = flow.is_over();
                let bulk = last_fill > TRICKLE_FILL;
                // What is over is held back by its window.
                let enough = bulk && !is_over && flow.has_enough(cx.waker());
                if !enough && (bulk || !is_over) {
                    *pausing = false;
                    return Poll::Ready(usize::MAX);
                }
                if !*pausing {
                    let time = if enough { ENOUGH_PAUSE } else { PACE };
                    pause.as_mut().reset(Instant::now() + time);
                    *pausing = true;
                }
                ready!(pause.as_mut().poll(cx));
                *pausing = false;
                Poll::Ready(usize::MAX)
            }
            Self::Container {
                backlog,
                pause,
                taken,
            } => {
                if !backlog.own.may_read(cx.waker()) {
                    return Poll::Pending;
                }
                backlog.watch(cx.waker());
                if !backlog.holds_back() {
                    *taken = None;
                    return Poll::Ready(usize::MAX);
                }
                let now_taken = backlog.taken();
                let Some(before) = *taken else {
                    // The first read under pressure is a small one, from which on is counted.
                    *taken = Some(now_taken);
                    pause.as_mut().reset(Instant::now() + SIP_PAUSE);
                    return Poll::Ready(SIP);
                };
                if now_taken.wrapping_sub(before) < last_fill as u64 {
                    ready!(pause.as_mut().poll(cx));
                    *taken = Some(now_taken);
                } else {
                    *taken = Some(before.wrapping_add(last_fill as u64));
                }
                pause.as_mut().reset(Instant::now() + SIP_PAUSE);
                Poll::Ready(SIP)
            }
        }
    }
}

impl BannerWatch {
    /// Looks for `SSH-`; whether it was found.
    fn look(&mut self, bytes: &[u8]) -> bool {
        const START: &[u8] = b"SSH-";
        for &byte in bytes {
            self.matched = match START.get(self.matched) {
                Some(&wanted) if wanted == byte => self.matched + 1,
                // A third S: the last two are the start.
                _ if byte == b'S' && self.matched == 2 => 2,
                _ => usize::from(byte == b'S'),
            };
            if self.matched == START.len() {
                self.seen.0.store(true, Ordering::Relaxed);
                return true;
            }
        }
        false
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// Reads the socket once into the empty buffer; 0 bytes are its end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let turn = match self.turn {
            Some(turn) => turn,
            None => *self
                .turn
                .insert(ready!(self.pacing.poll_turn(self.last_fill, cx))),
        };
        self.buffer.reserve(self.buffer_size);
        let socket = Pin::new(&mut self.socket);
        let filled = ready!(poll_read_buf(
            socket,
            cx,
            &mut (&mut self.buffer).limit(turn)
        ))?;
        self.turn = None;
        self.last_fill = filled;
        if let Pacing::Container { backlog, .. } = &self.pacing {
            backlog.read();
        }
        if filled >= self.buffer_size {
            self.buffer_size = (self.buffer_size * 2).min(BUFFER_MAX);
        }
        if let Some(watch) = &mut self.banner
            && watch.look(&self.buffer)
        {
            self.banner = None;
        }
        Poll::Ready(Ok(filled))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.poll_cut(cx)?;
        if this.buffer.is_empty() && ready!(this.poll_fill(cx))? == 0 {
            return Poll::Ready(Ok(()));
        }
        let len = this.buffer.len().min(out.remaining());
        out.put_slice(this.buffer.get(..len).unwrap_or_default());
        this.buffer.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        if !self.told.is_empty() {
            let len = self.told.len().min(bytes.len());
            let again = self.told.split_to(len);
            if bytes.get(..len) != Some(&again) {
                // Never: both have it from one place.
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            return Poll::Ready(Ok(len));
        }
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::downlink::{Downlink, Piece};
    use super::super::uplink::Uplink;
    use super::*;

    #[tokio::test]
    async fn the_prefix_comes_first() {
        let (mut client, socket) = tokio::io::duplex(64);
        let cut = CancellationToken::new();
        let prefix = Bytes::from_static(b"SSH-2");
        let mut wire = Wire::downstream(socket, &prefix, Arc::default(), cut);
        client.write_all(b".0-x\r\n").await.unwrap();
        drop(client);
        let mut all = Vec::new();
        wire.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"SSH-2.0-x\r\n");
    }

    #[tokio::test]
    async fn what_was_told_is_not_told_again() {
        let (mut client, socket) = tokio::io::duplex(64);
        let cut = CancellationToken::new();
        let mut wire = Wire::downstream(socket, &Bytes::new(), Arc::default(), cut);
        wire.was_told(Bytes::from_static(b"SSH-x\r\n"));
        for piece in [&b"SSH"[..], b"-x\r\n", b"more"] {
            wire.write_all(piece).await.unwrap();
        }
        drop(wire);
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"more");
    }

    #[tokio::test]
    async fn a_cut_wakes_blocked_reads_and_writes() {
        let (_peer, socket) = tokio::io::duplex(4);
        let cut = CancellationToken::new();
        let wire = Wire::upstream(socket, cut.clone(), BannerSeen::default(), Arc::default());
        let (mut read, mut write) = tokio::io::split(wire);
        let blocked = async {
            let big = [0_u8; 64];
            let mut one = [0_u8; 1];
            tokio::select! {
                r = write.write_all(&big) => r.map(|()| 0),
                r = read.read(&mut one) => r,
            }
        };
        let (result, ()) = tokio::join!(blocked, async {
            tokio::task::yield_now().await;
            cut.cancel();
        });
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn the_banner_is_seen_in_pieces_and_behind_other_lines() {
        for (text, seen) in [
            ("Exceeded MaxStartups\r\n", false),
            ("SSSH-2.0-x\r\n", true),
            ("hello\r\nSSH-2.0-x\r\n", true),
            ("SSH", false),
        ] {
            let flag = BannerSeen::default();
            let mut watch = BannerWatch {
                seen: flag.clone(),
                matched: 0,
            };
            for byte in text.bytes() {
                if watch.look(&[byte]) {
                    break;
                }
            }
            assert_eq!(flag.is_set(), seen, "{text:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reads_are_paced_only_while_a_channel_is_over_and_little_comes() {
        let flow: Arc<Flow> = Arc::default();
        let (mut client, socket) = tokio::io::duplex(1 << 20);
        let cut = CancellationToken::new();
        let mut wire = Wire::downstream(socket, &Bytes::new(), Arc::clone(&flow), cut);
        let mut small = [0_u8; 2];

        let begin = Instant::now();
        for _ in 0..100 {
            client.write_all(b"xy").await.unwrap();
            wire.read_exact(&mut small).await.unwrap();
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);

        let channel = Uplink::new(flow);
        channel.arrived(2 << 20).unwrap();
        for _ in 0..100 {
            client.write_all(b"xy").await.unwrap();
            wire.read_exact(&mut small).await.unwrap();
        }
        let took = begin.elapsed();
        assert!(took >= PACE * 100 && took < PACE * 200, "{took:?}");

        let begin = Instant::now();
        client.write_all(&[0; 256 << 10]).await.unwrap();
        let mut bulk = vec![0; 256 << 10];
        wire.read_exact(&mut bulk).await.unwrap();
        assert!(begin.elapsed() <= PACE * 2, "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_read_as_fast_as_its_container_takes_and_soon_in_any_case() {
        let flow: Arc<Flow> = Arc::default();
        let (mut client, socket) = tokio::io::duplex(1 << 20);
        let cut = CancellationToken::new();
        let mut wire = Wire::downstream(socket, &Bytes::new(), Arc::clone(&flow), cut);
        let (channel, other) = (Uplink::new(Arc::clone(&flow)), Uplink::new(flow));
        let mut bulk = vec![0; 4 << 10];
        let begin = Instant::now();
        client.write_all(&bulk).await.unwrap();
        wire.read_exact(&mut bulk).await.unwrap();
        channel.arrived(300 << 10).unwrap();
        client.write_all(&bulk).await.unwrap();
        wire.read_exact(&mut bulk).await.unwrap();
        assert_eq!(begin.elapsed(), ENOUGH_PAUSE, "nobody takes anything");

        client.write_all(&bulk).await.unwrap();
        let mut reading = pin!(wire.read_exact(&mut bulk));
        assert!(futures_util::poll!(&mut reading).is_pending());
        channel.delivered(100 << 10);
        assert!(futures_util::poll!(&mut reading).is_pending());
        channel.delivered(100 << 10);
        reading.await.unwrap();
        assert_eq!(begin.elapsed(), ENOUGH_PAUSE);

        // Another channel has room.
        channel.arrived(200 << 10).unwrap();
        other.arrived(1 << 10).unwrap();
        client.write_all(&bulk).await.unwrap();
        wire.read_exact(&mut bulk).await.unwrap();
        assert_eq!(begin.elapsed(), ENOUGH_PAUSE);
    }

    #[tokio::test]
    async fn a_container_is_not_read_while_its_own_channel_holds_too_much() {
        let backlog = Arc::<Backlog>::default();
        let (mut container, socket) = tokio::io::duplex(1 << 10);
        let cut = CancellationToken::new();
        let seen = BannerSeen::default();
        let mut wire = Wire::upstream(socket, cut, seen, Arc::clone(&backlog));
        backlog.own.opened(0);
        backlog.own.arrived(0, 2 << 20);
        container.write_all(b"more").await.unwrap();
        let mut more = [0_u8; 4];
        let mut reading = pin!(wire.read_exact(&mut more));
        assert!(futures_util::poll!(&mut reading).is_pending());
        backlog.own.stopped().await;
        backlog.own.taken(2 << 20);
        reading.await.unwrap();
        assert_eq!(&more, b"more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_is_read_as_fast_as_its_client_takes_and_never_quite_stopped() {
        let (backlog, flow) = (Arc::<Backlog>::default(), Arc::<Flow>::default());
        let (mut container, socket) = tokio::io::duplex(1 << 20);
        let seen = BannerSeen::default();
        let cut = CancellationToken::new();
        let mut wire = Wire::upstream(socket, cut, seen, Arc::clone(&backlog));
        let mut bytes = vec![0_u8; 8 * SIP];

        let begin = Instant::now();
        container.write_all(&bytes).await.unwrap();
        wire.read_exact(&mut bytes).await.unwrap();
        assert_eq!(begin.elapsed(), Duration::ZERO);

        let channel = Downlink::<()>::new(Arc::clone(&backlog), flow, None);
        channel
            .push(Piece::Data(Bytes::from(vec![0; 2 << 20])))
            .unwrap();
        container.write_all(&bytes).await.unwrap();
        wire.read_exact(&mut bytes[..SIP]).await.unwrap();
        assert_eq!(begin.elapsed(), Duration::ZERO, "the first sip");
        // Nobody takes anything.
        wire.read_exact(&mut bytes[..2 * SIP]).await.unwrap();
        assert_eq!(begin.elapsed().as_millis(), 2 * SIP_PAUSE.as_millis());
        // Somebody does.
        channel.taken(2 * SIP);
        wire.read_exact(&mut bytes[..2 * SIP]).await.unwrap();
        assert_eq!(begin.elapsed().as_millis(), 2 * SIP_PAUSE.as_millis());
        // As soon as the channel is gone, everybody else has the line.
        let rest = tokio::spawn(async move {
            let mut rest = [0; 3 * SIP];
            wire.read_exact(&mut rest).await.unwrap();
            begin.elapsed()
        });
        tokio::task::yield_now().await;
        drop(channel);
        let took = rest.await.unwrap();
        assert_eq!(took.as_millis(), 2 * SIP_PAUSE.as_millis());
    }
}
