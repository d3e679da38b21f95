//! Reads the first bytes of a connection until it is clear what it speaks.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
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

/// Reads on from `bytes` until a verdict is final or patience ends.
///
/// Bounded by what `edd-detect` looks at. Not cancellation safe: what was read is lost.
pub(super) async fn read_first<S>(
    stream: &mut S,
    mut bytes: BytesMut,
    patience: Patience<'_>,
) -> First
where
    S: AsyncRead + Unpin,
{
    loop {
        let verdict = detect(&bytes);
        if verdict.is_final() {
            return First::Known(verdict, bytes.freeze());
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
        tokio::select! {
            first = read_first(&mut far, BytesMut::new(), patience) => {
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
        assert_eq!(
            read_first(&mut far, BytesMut::new(), patience).await,
            First::Gone
        );
        near.write_all(b"GET / ").await.unwrap();
        let known = First::Known(Verdict::Http1, Bytes::from_static(b"GET / "));
        assert_eq!(read_first(&mut far, BytesMut::new(), patience).await, known);
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
