//! Serves one HTTP/2 client connection.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::debug;

use super::pulse::Pulse;
use super::service::{self, Downstream};
use crate::http::ConnectionFacts;
use crate::listener::Worker;

/// Streams run on the connection's own thread, each on its leash.
#[derive(Clone, Debug)]
struct LocalExecutor(Rc<Downstream>);

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, stream: F) {
        // hyper calls the service, then this; what else it runs has no leash.
        let leash = self.0.leash.take().unwrap_or_default();
        tokio::task::spawn_local(async move {
            let mut stream = pin!(stream);
            // Without its future the stream is reset, and that one alone.
            poll_fn(|cx| match stream.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => leash.poll_over(cx),
            })
            .await;
        });
    }
}

/// Serves HTTP/2 on `io`, preface first, until the connection is over.
///
/// When draining begins, or after `--idle-timeout` without a stream, the client
/// gets a GOAWAY and the streams under way finish; at the cut everything ends.
/// Must run on a `LocalSet`. Cancellation safe: dropping the future closes the
/// connection.
pub async fn serve_h2<I>(io: I, facts: ConnectionFacts, worker: &Rc<Worker>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let pulse = Pulse::idle();
    let admission = facts.admission.clone().unwrap_or_default();
    let downstream = Downstream::new(worker, facts, Arc::clone(&pulse));
    let requests = {
        let downstream = Rc::clone(&downstream);
        service_fn(move |request| {
            let answer = service::answer(Rc::clone(&downstream), request);
            async { Ok::<_, Infallible>(answer.await) }
        })
    };
    let connection = http2::Builder::new(LocalExecutor(Rc::clone(&downstream)))
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WAIT)
        .serve_connection(TokioIo::new(io), requests);
    let mut connection = pin!(connection);

    let drain = &worker.shared.drain;
    let timeouts = &worker.shared.config.timeouts;
    let mut draining = pin!(drain.token().cancelled());
    let mut cut = pin!(drain.cut().cancelled());
    let mut revoked = pin!(admission.revoked());
    let mut timer = pin!(tokio::time::sleep_until(pulse.deadline(timeouts)));
    let mut last = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!(%error, "connection ended");
                }
                return;
            }
            () = &mut draining, if !last => {
                last = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut cut, if last => return,
            () = &mut revoked => return,
            () = &mut timer => {
                let now = Instant::now();
                let due = pulse.deadline(timeouts);
                if !downstream.is_idle() || due > now {
                    // Streams have limits of their own.
                    timer.as_mut().reset(due.max(now + LOOK_AGAIN));
                } else if last {
                    return;
                } else {
                    last = true;
                    connection.as_mut().graceful_shutdown();
                    timer.as_mut().reset(now + GOODBYE);
                }
            }
        }
    }
}

const STREAMS_MAX: u32 = 256;

const STREAM_WINDOW: u32 = 1 << 20;

/// Wide, because the h2 crate charges small frames against it.
const CONNECTION_WINDOW: u32 = 8 << 20;

const FRAME_MAX: u32 = 16 << 10;

/// Buffered per stream towards a slow client.
const SEND_BUFFER: usize = 256 << 10;

const HEADER_LIST_MAX: u32 = 64 << 10;

/// Rapid reset (RUSTSEC-2024-0003).
const PENDING_RESETS_MAX: usize = 20;

const LOCAL_RESETS_MAX: usize = 1024;

const PING_EVERY: Duration = Duration::from_secs(20);

const PING_WAIT: Duration = Duration::from_secs(10);

const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long an idle client may take to close after the GOAWAY.
const GOODBYE: Duration = Duration::from_secs(5);
