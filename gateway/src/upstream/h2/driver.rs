//! The task of one HTTP/2 connection to an upstream.

use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use edd_route::Admission;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::shared::{Connected, IDLE_MAX};
use crate::http::h2::{Coalesced, Lent};
use crate::shared::Shared;

/// A connection that nobody drives yet.
pub(super) struct Driver<I> {
    h2: Connection<Coalesced<I, ()>, Bytes>,
    io: Coalesced<I, ()>,
}

/// Begins HTTP/2 on `io`. The first request does not wait for the upstream's settings, the others
/// do (see [`Connected::settle`]).
pub(super) async fn open<I>(io: I) -> Result<(SendRequest<Bytes>, Driver<I>), h2::Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let io = Coalesced::new(io, ());
    let (sender, h2) = Builder::new()
        .enable_push(false)
        .initial_max_send_streams(FIRST_STREAMS_MAX)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(io.clone())
        .await?;
    Ok((sender, Driver { h2, io }))
}

impl<I> Driver<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    /// Where to leave handles on what the h2 crate is handed.
    pub(super) fn lent(&self) -> Lent {
        self.io.lent()
    }

    /// Drives the connection until it is over, idle for too long, no longer admitted, or cut.
    pub(super) async fn run(
        mut self,
        connected: Rc<Connected>,
        admission: Admission,
        shared: Arc<Shared>,
    ) {
        let mut pings = self.h2.ping_pong();
        let io = self.io.clone();
        let drive = tokio::task::unconstrained(poll_fn(|cx| self.poll(cx, &connected)));
        tokio::select! {
            biased;
            () = drive => {}
            () = settle_late(&connected) => {}
            () = admission.revoked() => {}
            () = shared.drain.cut().cancelled() => {}
            () = watch(&io, pings.as_mut(), &connected) => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, connected: &Connected) -> Poll<()> {
        self.io.admit();
        if let Poll::Ready(ended) = Pin::new(&mut self.h2).poll(cx) {
            if let Err(error) = ended {
                debug!(peer = %connected.peer, %error, "upstream connection ended");
            }
            return Poll::Ready(());
        }
        if self.io.has_read() {
            // Its settings come before all else (RFC 9113, section 3.4), and are in effect.
            connected.settle();
        }
        if let Err(error) = ready!(self.io.poll_drain(cx)) {
            debug!(peer = %connected.peer, %error, "upstream connection ended");
            return Poll::Ready(());
        }
        connected.quota.refill();
        Poll::Pending
    }
}

/// Whoever never says what it takes is taken to take what is usual. Never ends.
async fn settle_late(connected: &Connected) {
    sleep(SETTINGS_WAIT).await;
    connected.settle();
    pending().await
}

/// Ends when the connection is idle for too long, or dead.
async fn watch<I>(io: &Coalesced<I, ()>, mut pings: Option<&mut PingPong>, connected: &Connected) {
    let mut timer = pin!(sleep_until(Instant::now() + PING_EVERY));
    let mut pinged: Option<Instant> = None;
    loop {
        timer.as_mut().await;
        let now = Instant::now();
        let moved = io.moved();
        let due = if connected.streams() == 0 {
            pinged = None;
            let due = connected.idle_since.get() + IDLE_MAX;
            if due <= now {
                // It closes by itself once nobody may ask any more.
                connected.close();
                now + IDLE_MAX
            } else {
                due.min(now + PING_EVERY)
            }
        } else if let Some(pinged) = pinged.filter(|&pinged| moved <= pinged) {
            if pinged + PING_WAIT <= now {
                debug!(peer = %connected.peer, "upstream connection ended: silent");
                return;
            }
            pinged + PING_WAIT
        } else if moved + PING_EVERY > now {
            pinged = None;
            moved + PING_EVERY
        } else {
            if let Some(pings) = &mut pings {
                // The last one's answer must be taken before there is another.
                let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
                let _ = pings.send_ping(Ping::opaque());
            }
            pinged = Some(now);
            now + PING_WAIT
        };
        timer.as_mut().reset(due);
    }
}

/// Before the upstream has said how many it takes.
const FIRST_STREAMS_MAX: usize = 100;

/// For the upstream's settings; others than the first request wait for them.
const SETTINGS_WAIT: Duration = Duration::from_secs(1);

const STREAM_WINDOW: u32 = 1 << 20;

/// Wide, because the h2 crate charges small frames against it.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Larger frames cost less to read.
const FRAME_MAX: u32 = 64 << 10;

const SEND_BUFFER: usize = 256 << 10;

const HEADER_LIST_MAX: u32 = 64 << 10;

const PING_EVERY: Duration = Duration::from_secs(20);

const PING_WAIT: Duration = Duration::from_secs(10);
