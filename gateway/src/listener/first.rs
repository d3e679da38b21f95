//! Reads the first bytes of a connection until it is clear what it speaks.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use edd_detect::{Verdict, detect};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// The first bytes, and what they turned out to be.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum First {
    /// It is not clear yet, and there is no room for more of it ([`Beginnings`]).
    Crowded,
    /// The client ended its data before it was clear; it may still read.
    Ended(Bytes),
    /// The connection broke, or it is not worth going on: draining, half a ClientHello.
    Gone,
    /// A final verdict.
    Known(Verdict, Bytes),
    /// Silence, though more could have made it clear.
    Silent(Bytes),
    /// The deadline passed. True: it began as TLS.
    TimedOut(Bytes, bool),
}

/// How long to wait, and for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience<'t> {
    /// For all of it.
    pub(crate) deadline: Instant,
    /// For each byte while it is not clear; none: only the deadline counts.
    pub(crate) silence: Option<Duration>,
    /// Ends the wait of a client that has sent nothing.
    pub(crate) draining: &'t CancellationToken,
}

/// What is held of connections of which it is not clear yet what they speak, all together.
///
/// Of each a little is free, which is more than honest clients need: their beginnings come in one
/// go, and the largest ClientHellos have some 2 KiB. So whoever sends half of one and waits can
/// fill no more than this, and only harms those who do as he does.
#[derive(Debug)]
pub(super) struct Beginnings {
    max: usize,
    held: AtomicUsize,
}

impl Default for Beginnings {
    fn default() -> Self {
        Self::new(BEGINNINGS_BYTES_MAX)
    }
}

impl Beginnings {
    fn new(max: usize) -> Self {
        Self {
            max,
            held: AtomicUsize::new(0),
        }
    }
}

/// What one connection holds of them.
struct Part<'b> {
    of: &'b Beginnings,
    bytes: usize,
}

impl Part<'_> {
    /// It holds so much memory now; whether there was room for it.
    fn grow(&mut self, capacity: usize) -> bool {
        let more = capacity
            .saturating_sub(FREE_BYTES)
            .saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        self.bytes += more;
        self.of.held.fetch_add(more, Ordering::Relaxed) + more <= self.of.max
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        self.of.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads on from `bytes` until a verdict is final or patience ends.
///
/// Bounded by what `edd-detect` looks at, and by the room in `beginnings`. Not cancellation safe:
/// what was read is lost.
pub(super) async fn read_first<S>(
    stream: &mut S,
    mut bytes: BytesMut,
    patience: Patience<'_>,
    beginnings: &Beginnings,
) -> First
where
    S: AsyncRead + Unpin,
{
    let mut part = Part {
        of: beginnings,
        bytes: 0,
    };
    loop {
        let verdict = detect(&bytes);
        if verdict.is_final() {
            return First::Known(verdict, bytes.freeze());
        }
        if !part.grow(bytes.capacity()) {
            return First::Crowded;
        }
        let is_tls = verdict == Verdict::PartialTls;
        let silence = patience.silence.filter(|_| !is_tls);
        let silent_at = silence.map(|silence| Instant::now() + silence);
        let until = silent_at.map_or(patience.deadline, |at| at.min(patience.deadline));

        let idle = bytes.is_empty();
        let read = tokio::select! {
            biased;
            read = timeout_at(until, read_more(stream, &mut bytes)) => read,
            () = patience.draining.cancelled(), if idle => return First::Gone,
        };
        match read {
            Ok(Ok(1..)) => {}
            Ok(Ok(0)) if is_tls => return First::Gone,
            Ok(Ok(0)) => return First::Ended(bytes.freeze()),
            Ok(Err(_)) => return First::Gone,
            Err(_) if silence.is_some() => return First::Silent(bytes.freeze()),
            Err(_) => return First::TimedOut(bytes.freeze(), is_tls),
        }
    }
}

/// Appends what has come and tells how much; 0 at the end. A connection that waits holds no memory here.
///
/// Cancellation safe: nothing is read without being appended.
pub(super) async fn read_more<S>(stream: &mut S, bytes: &mut BytesMut) -> io::Result<usize>
where
    S: AsyncRead + Unpin,
{
    poll_fn(|cx| {
        let mut scratch = [const { MaybeUninit::uninit() }; READ_BYTES];
        let mut read = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
        bytes.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
    .await
}

/// Enough for the head of most requests and for a ClientHello with post-quantum keys.
const READ_BYTES: usize = 2048;

/// So much of each connection is not counted.
const FREE_BYTES: usize = 4 * 1024;

/// The rest of all: a thousand of the longest beginnings.
const BEGINNINGS_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const SILENCE: Duration = Duration::from_millis(500);

    /// Sends the pieces with pauses between them and tells what was read, and after how long.
    async fn first(pieces: &[(&[u8], u64)], silence: Option<Duration>, end: bool) -> (First, u64) {
        let (mut near, mut far) = duplex(1 << 20);
        let begun = Instant::now();
        let draining = CancellationToken::new();
        let patience = Patience {
            deadline: begun + HEADER,
            silence,
            draining: &draining,
        };
        let send = async {
            for (piece, pause) in pieces {
                near.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_millis(*pause)).await;
            }
            if !end {
                std::future::pending::<()>().await;
            }
            drop(near);
            std::future::pending::<()>().await;
        };
        let all = Beginnings::default();
        tokio::select! {
            first = read_first(&mut far, BytesMut::new(), patience, &all) => {
                (first, u64::try_from(begun.elapsed().as_millis()).unwrap())
            }
            () = send => unreachable!(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_known_however_it_is_cut() {
        let pieces = [(&b"G"[..], 400), (b"E", 400), (b"T", 400), (b" / HTTP", 0)];
        let (first, _) = first(&pieces, Some(SILENCE), false).await;
        let whole = Bytes::from_static(b"GET / HTTP");
        assert_eq!(first, First::Known(Verdict::Http1, whole));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_the_last_byte_and_only_while_unclear() {
        for (pieces, expected, at) in [
            (&[][..], First::Silent(Bytes::new()), 500),
            (
                &[(&b"SS"[..], 0)],
                First::Silent(Bytes::from_static(b"SS")),
                500,
            ),
            (
                &[(b"P", 400), (b"O", 0)],
                First::Silent(Bytes::from_static(b"PO")),
                900,
            ),
            (
                &[(b"\x16\x03\x01", 0)],
                First::TimedOut(Bytes::from_static(b"\x16\x03\x01"), true),
                10_000,
            ),
        ] {
            let (first, took) = first(pieces, Some(SILENCE), false).await;
            assert_eq!(first, expected);
            assert!((at..at + 5).contains(&took), "{took} ms");
        }
        let (first, took) = first(&[(b"GE", 0)], None, false).await;
        assert_eq!(first, First::TimedOut(Bytes::from_static(b"GE"), false));
        assert!((10_000..10_005).contains(&took), "{took} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_ends_at_the_deadline() {
        let pieces: Vec<_> = std::iter::repeat_n((&b"A"[..], 450), 30).collect();
        let (first, took) = first(&pieces, Some(SILENCE), false).await;
        assert!(matches!(first, First::Silent(bytes) if bytes.len() == 23));
        assert!((10_000..10_005).contains(&took), "{took} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn an_early_end_is_told_from_a_broken_hello() {
        let (ended, _) = first(&[(b"GE", 0)], Some(SILENCE), true).await;
        assert_eq!(ended, First::Ended(Bytes::from_static(b"GE")));
        let (gone, _) = first(&[(b"\x16\x03", 0)], Some(SILENCE), true).await;
        assert_eq!(gone, First::Gone);
    }

    #[tokio::test(start_paused = true)]
    async fn draining_ends_the_wait_of_the_silent_only() {
        let (mut near, mut far) = duplex(64);
        let draining = CancellationToken::new();
        draining.cancel();
        let patience = Patience {
            deadline: Instant::now() + HEADER,
            silence: None,
            draining: &draining,
        };
        let all = Beginnings::default();
        assert_eq!(
            read_first(&mut far, BytesMut::new(), patience, &all).await,
            First::Gone
        );
        near.write_all(b"GET / ").await.unwrap();
        let known = First::Known(Verdict::Http1, Bytes::from_static(b"GET / "));
        let read = read_first(&mut far, BytesMut::new(), patience, &all).await;
        assert_eq!(read, known);
    }

    #[tokio::test(start_paused = true)]
    async fn long_beginnings_share_a_room_and_short_ones_need_none() {
        // The beginning of a hello of 60 KiB in records of 16 KiB.
        let record = [&[22, 3, 1, 0x40, 0, 1, 0, 0xf0, 0][..], &[0; 0x4000 - 4]].concat();
        let next = [&[22, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat();
        let long = [&record[..], &next, &next].concat();
        let all = Beginnings::new(100_000);
        let draining = CancellationToken::new();
        let patience = Patience {
            deadline: Instant::now() + HEADER,
            silence: Some(SILENCE),
            draining: &draining,
        };
        let begin = async |bytes: &[u8]| {
            let (mut near, mut far) = duplex(1 << 20);
            near.write_all(bytes).await.unwrap();
            let first = read_first(&mut far, BytesMut::new(), patience, &all).await;
            drop(near);
            first
        };
        let others = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(begin(&long).await, First::Crowded);
            assert!(matches!(begin(b"GET /").await, First::Known(..)));
            assert_eq!(begin(b"GE").await, First::Silent(Bytes::from_static(b"GE")));
            // Half of an ordinary one may wait.
            let half = begin(&record[..2000]).await;
            assert!(matches!(half, First::TimedOut(..)), "{half:?}");
        };
        let (first, ()) = tokio::join!(begin(&long), others);
        assert!(matches!(first, First::TimedOut(..)), "{first:?}");
        assert_eq!(all.held.load(Ordering::Relaxed), 0);
        // The deadline is over, and yet what is there is read first.
        let again = begin(&long).await;
        assert!(matches!(again, First::TimedOut(..)), "{again:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_becomes_clear_is_bounded() {
        let line = [b"BREW /".to_vec(), vec![b'a'; 1 << 17]].concat();
        let (unknown, _) = first(&[(&line, 0)], None, false).await;
        let First::Known(Verdict::Unknown, bytes) = unknown else {
            panic!("{unknown:?}")
        };
        assert!(bytes.len() < 2 * edd_detect::FIRST_BYTES_MAX);
    }
}
