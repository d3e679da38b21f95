//! Large bodies from socket to socket without passing through this process.
//!
//! Pages move through a pipe, which halves the cost of bulk. Only between two
//! plain sockets, only for a known length, and only if there is much of it:
//! small bodies are cheaper copied.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// A body of known length that may leave its socket unread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bulk<'s> {
    /// Where it comes from.
    pub(crate) from: &'s TcpStream,
    /// How much of it is still to come.
    pub(crate) left: u64,
}

/// A transfer between two sockets, and what is between them.
#[derive(Debug, Default)]
pub(crate) struct Splice {
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    held: usize,
    /// There is no pipe to be had, or the sockets cannot be spliced.
    refused: bool,
}

/// What a poll moved.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Moved {
    /// Out of the source.
    pub(crate) read: u64,
    /// Into the other socket.
    pub(crate) written: u64,
}

/// How a poll ended.
#[derive(Debug)]
pub(crate) enum State {
    /// The source broke off.
    Broke(io::Error),
    /// Everything has left the source and reached the other socket.
    Done,
    /// The other socket broke.
    Gone,
    /// The source has nothing at the moment.
    Starved,
    /// The other socket is full.
    Blocked,
    /// It does not work here: read and write instead.
    Unable,
}

impl Splice {
    /// Whether bytes are between the sockets.
    #[cfg(test)]
    fn is_busy(&self) -> bool {
        self.held > 0
    }

    /// Whether `left` bytes are worth it.
    pub(crate) fn wants(&self, left: u64) -> bool {
        !self.refused && (left >= WORTH_IT || self.held > 0)
    }

    /// Moves what can be moved of `bulk`.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        bulk: Bulk<'_>,
        to: &TcpStream,
    ) -> (Moved, State) {
        let mut moved = Moved::default();
        let state = self.advance(cx, bulk, to, &mut moved);
        if self.held == 0
            && let Some(pipe) = self.pipe.take()
        {
            pipe.give_back();
        }
        (moved, state)
    }

    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        bulk: Bulk<'_>,
        to: &TcpStream,
        moved: &mut Moved,
    ) -> State {
        if self.pipe.is_none() {
            self.pipe = Pipe::take();
        }
        let Some(pipe) = &self.pipe else {
            self.refused = true;
            return State::Unable;
        };
        loop {
            if self.held > 0 {
                match to.poll_write_ready(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return State::Gone,
                    Poll::Pending => return State::Blocked,
                }
                let sent = to.try_io(Interest::WRITABLE, || {
                    Ok(splice(&pipe.out, None, to, None, self.held, FLAGS)?)
                });
                match sent {
                    Ok(0) => return State::Gone,
                    Ok(count) => {
                        self.held = self.held.saturating_sub(count);
                        moved.written += count as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return State::Gone,
                }
                continue;
            }
            let left = bulk.left - moved.read;
            if left == 0 {
                return State::Done;
            }
            match bulk.from.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return State::Broke(error),
                Poll::Pending => return State::Starved,
            }
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(PIPE_BYTES);
            let read = bulk.from.try_io(Interest::READABLE, || {
                Ok(splice(bulk.from, None, &pipe.into, None, want, FLAGS)?)
            });
            match read {
                Ok(0) => return State::Broke(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.held = count;
                    moved.read += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.refused = true;
                    return State::Unable;
                }
                Err(error) => return State::Broke(error),
            }
        }
    }
}

/// An empty pipe.
#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    /// One of the thread's, or a new one.
    fn take() -> Option<Self> {
        if let Some(pipe) = SPARE.with_borrow_mut(Vec::pop) {
            return Some(pipe);
        }
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Beyond what a user may have in all it stays small, which is only slower.
        let _ = fcntl_setpipe_size(&into, PIPE_BYTES);
        Some(Self { out, into })
    }

    fn give_back(self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_MAX {
                spare.push(self);
            }
        });
    }
}

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// Less is cheaper to copy.
const WORTH_IT: u64 = 64 * 1024;

/// Asked for; the kernel may give less.
const PIPE_BYTES: usize = 256 * 1024;

/// Empty pipes that a thread keeps.
const SPARE_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn a_body_crosses_whole_and_what_follows_it_stays() {
        let (mut source, from) = pair().await;
        let (to, mut sink) = pair().await;
        let body: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 % 251) as u8).collect();
        let expected = body.clone();
        let write = tokio::spawn(async move {
            source.write_all(&body).await.unwrap();
            source.write_all(b"next").await.unwrap();
            source
        });
        let read = tokio::spawn(async move {
            let mut got = vec![0; expected.len()];
            sink.read_exact(&mut got).await.unwrap();
            assert!(got == expected);
            sink
        });
        let mut splice = Splice::default();
        let (mut left, mut written) = (3_000_000, 0);
        poll_fn(|cx| {
            let bulk = Bulk { from: &from, left };
            let (moved, state) = splice.poll(cx, bulk, &to);
            left -= moved.read;
            written += moved.written;
            match state {
                State::Done => Poll::Ready(()),
                State::Starved | State::Blocked => Poll::Pending,
                other => panic!("{other:?}"),
            }
        })
        .await;
        assert_eq!((left, written), (0, 3_000_000));
        assert!(!splice.is_busy());
        let _sink = read.await.unwrap();
        let _source = write.await.unwrap();
        let mut next = [0; 4];
        let mut from = from;
        from.read_exact(&mut next).await.unwrap();
        assert_eq!(&next, b"next");
    }

    #[tokio::test]
    async fn a_source_that_ends_too_early_is_told() {
        let (mut source, from) = pair().await;
        let (to, _sink) = pair().await;
        source.write_all(&[7; 100_000]).await.unwrap();
        drop(source);
        let mut splice = Splice::default();
        let mut left = 100_001;
        let error = poll_fn(|cx| {
            let (moved, state) = splice.poll(cx, Bulk { from: &from, left }, &to);
            left -= moved.read;
            match state {
                State::Broke(error) => Poll::Ready(error),
                State::Starved | State::Blocked => Poll::Pending,
                other => panic!("{other:?}"),
            }
        })
        .await;
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(left, 1);
    }
}
