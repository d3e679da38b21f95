//! HTTP/2 on the client's side, on the h2 crate.
//!
//! The crate knows frames, windows and compression; everything above is the
//! same as for HTTP/1. In the order bytes meet them: `coalesce` is the socket,
//! `outbox` what is written to it, `meter` counts what is no request, `connection` is the task that drives the
//! connection and all its streams, `gather` its waker, `work` its exchanges,
//! `request` makes a head of what came, `stream` is the client of one exchange,
//! `flow` its two directions, `fields` the maps of the h2 crate as slices and back.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use ::h2::RecvStream;
use ::h2::server::{Builder, Connection, SendResponse};
use bytes::Bytes;
use http::{Method, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tracing::debug;

use super::ConnectionFacts;
use super::alarm::Alarm;
use super::answer::Answer;
use super::downstream::Downstream;
use super::forward;
use super::head::Version;
use super::plan::{Plan, Turn};
use crate::listener::Worker;

mod blocks;
mod coalesce;
mod connection;
pub(crate) mod fields;
pub(crate) mod flow;
mod gather;
mod meter;
mod outbox;
mod request;
mod stream;
mod work;

pub(crate) use coalesce::Coalesced;
pub(crate) use outbox::Lent;
pub(crate) use work::Clerks;

use connection::{Over, Task};
use meter::Meter;
use request::Asked;
use stream::{Link, Stream};
use work::Serve;

/// Serves HTTP/2 on `io`, preface first, until the connection is over.
///
/// When draining begins, or after `--idle-timeout` without a stream, the client
/// gets a GOAWAY and the streams under way finish; at the cut everything ends.
/// Must run on a `LocalSet`. Cancellation safe: dropping the future closes the
/// connection.
pub async fn serve_h2<I>(io: I, facts: ConnectionFacts, worker: &Rc<Worker>)
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let admission = facts.admission.clone().unwrap_or_default();
    let mut io = Coalesced::new(io, Meter::default());
    let limit = worker.shared.config.timeouts.header;
    let h2 = match timeout(limit, shake_hands(&io)).await {
        Ok(Ok(h2)) => h2,
        Ok(Err(error)) => {
            debug!(%error, "connection ended");
            return;
        }
        Err(_) => return,
    };
    let down = Rc::new(Downstream::new(worker, facts));
    let mut task = Task::new(down, admission, h2, io.clone());
    let over = tokio::task::unconstrained(poll_fn(|cx| task.poll(cx))).await;
    drop(task);
    if over == Over::Told {
        let _ = timeout(FAREWELL, discard(&mut io)).await;
    }
}

/// Sends our settings and reads the client's preface.
async fn shake_hands<I>(
    io: &Coalesced<I, Meter>,
) -> Result<Connection<Coalesced<I, Meter>, Bytes>, ::h2::Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let mut shaking = Builder::new()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .enable_connect_protocol()
        .handshake(io.clone());
    poll_fn(|cx| {
        let shaken = std::pin::Pin::new(&mut shaking).poll(cx);
        // A socket that broke is found broken by whoever reads next.
        let _ = io.poll_drain(cx);
        shaken
    })
    .await
}

/// A request whose head was read and judged.
pub(crate) struct Opened {
    down: Rc<Downstream>,
    turn: Turn,
    stream: Stream,
}

impl Opened {
    fn new(
        down: &Rc<Downstream>,
        link: &Rc<Link>,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> Self {
        let (parts, body) = request.into_parts();
        let tunnel = parts.method == Method::CONNECT;
        let asked = Asked::new(parts);
        let fields = asked.fields();
        let turn = match asked.view(&fields, body.is_end_stream()) {
            Ok(view) => Turn::begin(down, &view),
            Err(refused) => {
                let answer = Answer::malformed(refused.status(), refused);
                Turn::refused(down, Version::H2, answer)
            }
        };
        Self {
            down: Rc::clone(down),
            turn,
            stream: Stream::new(link, body, respond, tunnel),
        }
    }
}

impl Serve for Opened {
    async fn serve(self, alarm: &mut Alarm) {
        let Self {
            down,
            mut turn,
            mut stream,
        } = self;
        if turn.is_said_to_be_empty() {
            let limit = down.worker.shared.config.timeouts.body;
            // Rare: no reason for all exchanges to be larger.
            if let Err(failure) = Box::pin(stream.hear_end(limit)).await {
                turn.exchange.note(failure.note());
                match failure.answer() {
                    Some(answer) => turn.plan = Plan::Answer(answer),
                    None => return,
                }
            }
        }
        forward::serve(&mut stream, turn, &down, alarm).await;
        stream.settle().await;
    }
}

/// Reads and throws away what the client still sends.
///
/// Closing a socket with unread data resets the connection, and the reset
/// overtakes what was sent.
async fn discard<I>(io: &mut Coalesced<I, Meter>)
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let mut left = DISCARD_MAX;
    let mut scratch = [0; 4096];
    io.forget_watch();
    if io.shutdown().await.is_err() {
        return;
    }
    while left > 0 {
        io.admit();
        match io.read(&mut scratch).await {
            Ok(0) | Err(_) => return,
            Ok(count) => left = left.saturating_sub(count),
        }
    }
}

const STREAMS_MAX: u32 = 256;

const STREAM_WINDOW: u32 = 1 << 20;

/// Wide, because the h2 crate charges small frames against it.
const CONNECTION_WINDOW: u32 = 8 << 20;

const FRAME_MAX: u32 = 16 << 10;

/// What the h2 crate may hold of one stream; what is within the windows, that is.
const SEND_BUFFER: usize = 256 << 10;

const HEADER_LIST_MAX: u32 = 64 << 10;

/// Rapid reset (RUSTSEC-2024-0003), within one read.
const PENDING_RESETS_MAX: usize = 20;

const LOCAL_RESETS_MAX: usize = 1024;

/// How long a client may take to notice our end.
const FAREWELL: Duration = Duration::from_millis(500);

/// More than a client sends without looking.
const DISCARD_MAX: usize = 1 << 20;
