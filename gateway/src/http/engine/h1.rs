//! Serves one HTTP/1 client connection.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use edd_route::Admission;
use hyper::body::Incoming;
use hyper::server::conn::http1::{self, UpgradeableConnection};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::debug;

use super::body::ResponseBody;
use super::pulse::{Pulse, Watched};
use super::service::{self, Downstream};
use crate::http::ConnectionFacts;
use crate::listener::Worker;
use crate::tcp::{Fused, OverTcp};

/// Serves HTTP/1.0 and 1.1 on `io` until the connection is over, an upgraded one included.
///
/// When draining begins the answer under way is the last one; at the cut
/// everything ends. Must run on a `LocalSet`. Cancellation safe: dropping the
/// future closes the connection.
pub async fn serve_h1<I>(io: I, facts: ConnectionFacts, worker: &Rc<Worker>)
where
    I: AsyncRead + AsyncWrite + OverTcp + Unpin + Send + 'static,
{
    let pulse = Pulse::expecting_head();
    let admission = facts.admission.clone().unwrap_or_default();
    let downstream = Downstream::new(worker, facts, Arc::clone(&pulse));
    let requests = {
        let downstream = Rc::clone(&downstream);
        service_fn(move |request| {
            let answer = service::answer(Rc::clone(&downstream), request);
            async { Ok::<_, Infallible>(answer.await) }
        })
    };
    let io = TokioIo::new(Watched::new(
        Fused::new(io, downstream.fuse.clone()),
        Arc::clone(&pulse),
    ));
    let connection = http1::Builder::new()
        .max_buf_size(BUFFER_MAX)
        .max_headers(FIELDS_MAX)
        .serve_connection(io, requests)
        .with_upgrades();
    let connection = pin!(connection);
    let done = drive(connection, &downstream, &admission).await;
    if !done && (!downstream.is_idle() || pulse.is_blocked()) {
        // Something of an answer is still in here.
        downstream.fuse.blow();
    }
    // Taken in any case: what is left in there holds on to the connection's state.
    let switched = downstream.switched.take();
    if let (true, Some(switched)) = (done, switched) {
        switched.run(worker).await;
    }
}

/// Runs the connection until hyper is done with it (true) or something cuts it (false).
async fn drive<I, S>(
    mut connection: Pin<&mut UpgradeableConnection<I, S>>,
    downstream: &Downstream,
    admission: &Admission,
) -> bool
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = ResponseBody, Error = Infallible>,
{
    let Downstream { worker, pulse, .. } = downstream;
    let drain = &worker.shared.drain;
    let timeouts = &worker.shared.config.timeouts;
    let mut draining = pin!(drain.token().cancelled());
    let mut idle = pin!(drain.idle().cancelled());
    let mut begun = false;
    let mut cut = pin!(drain.cut().cancelled());
    let mut revoked = pin!(admission.revoked());
    let mut timer = pin!(tokio::time::sleep_until(pulse.deadline(timeouts)));
    let leashed = |cx: &mut Context<'_>| match &*downstream.leash.borrow() {
        Some(leash) => leash.poll_over(cx),
        None => Poll::Pending,
    };
    let mut last = false;
    loop {
        tokio::select! {
            biased;
            // First: an answer that is ready now still gets its `Connection: close`.
            // While nothing is asked, a request may be on its way: it is waited for a moment.
            () = poll_fn(|cx| {
                begun = begun || draining.as_mut().poll(cx).is_ready();
                if begun && (!downstream.is_idle() || idle.as_mut().poll(cx).is_ready()) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }), if !last => {
                last = true;
                connection.as_mut().graceful_shutdown();
            }
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!(%error, "connection ended");
                }
                return true;
            }
            () = &mut cut => return false,
            () = &mut revoked => return false,
            () = poll_fn(leashed) => return false,
            () = &mut timer => {
                let due = pulse.deadline(timeouts);
                if due <= Instant::now() {
                    return false;
                }
                timer.as_mut().reset(due);
            }
        }
    }
}

/// Largest head, and how much is read ahead.
const BUFFER_MAX: usize = 64 * 1024;

const FIELDS_MAX: usize = 128;
