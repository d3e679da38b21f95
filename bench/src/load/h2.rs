//! The load's HTTP/2: several streams at once on each kept connection.
//!
//! A stream above the last one that a GOAWAY names was not processed and is
//! asked for again on the next connection (RFC 9113, section 6.8), as every
//! client does: the library answers the server's PING before requests that it
//! has already queued, so that some come too late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, anyhow, ensure};
use h2::client::SendRequest;
use http::Request;
use tokio::time::{Instant, timeout};

use super::{DEADLINE, Lane, Tally, tls};

/// Requests at once on a connection.
const STREAMS: u32 = 4;

type Sender = SendRequest<bytes::Bytes>;

/// Asks one request after the other.
struct Asker {
    pace: tokio::time::Interval,
    /// The last one was not processed and is due.
    again: bool,
}

/// Asks until it is stopped; a connection that the server ended is replaced.
pub(super) async fn run(lane: Lane) {
    let lane = Arc::new(lane);
    let asker = |index| Asker {
        pace: lane.pace(index, STREAMS),
        again: false,
    };
    let mut askers: Vec<_> = (0..STREAMS).map(asker).collect();
    while !lane.stop.is_cancelled() {
        let sender = match open(&lane).await {
            Ok(sender) => sender,
            Err(error) => {
                lane.tally.failed(&error);
                if let Some(asker) = askers.first_mut() {
                    asker.pace.tick().await;
                }
                continue;
            }
        };
        // One of them notices the end first.
        let ended = Arc::new(AtomicBool::new(false));
        let mut asking = tokio::task::JoinSet::new();
        for mut asker in std::mem::take(&mut askers) {
            let (lane, sender, ended) = (Arc::clone(&lane), sender.clone(), Arc::clone(&ended));
            asking.spawn(async move {
                stream_after_stream(&lane, sender, &mut asker, &ended).await;
                asker
            });
        }
        drop(sender);
        while let Some(asker) = asking.join_next().await {
            askers.extend(asker);
        }
        if ended.load(Ordering::Relaxed) {
            Tally::add(&lane.tally.closed);
        }
    }
}

async fn open(lane: &Lane) -> Result<Sender> {
    let stream = tls::connect(lane).await?;
    let shaking = timeout(DEADLINE, h2::client::handshake(stream));
    let (sender, connection) = shaking.await.context("no HTTP/2 in time")??;
    // Ends with the connection, which ends with its last handle.
    tokio::spawn(connection);
    Ok(sender)
}

/// Asks on this connection as long as it takes requests.
async fn stream_after_stream(
    lane: &Lane,
    mut sender: Sender,
    asker: &mut Asker,
    ended: &AtomicBool,
) {
    let tally = &lane.tally;
    loop {
        let due = async {
            if !asker.again {
                asker.pace.tick().await;
            }
        };
        if lane.stop.run_until_cancelled(due).await.is_none() {
            return;
        }
        sender = match timeout(DEADLINE, sender.ready()).await {
            Ok(Ok(sender)) => sender,
            // It takes no more: GOAWAY, or the end. Nothing was sent.
            Ok(Err(_)) => return ended.store(true, Ordering::Relaxed),
            Err(_) => {
                tally.failed(&anyhow!("HTTP/2: no stream in time"));
                return ended.store(true, Ordering::Relaxed);
            }
        };
        let url = format!("https://{}{}", lane.plan.host, lane.plan.path);
        let request = match Request::get(url).body(()) {
            Ok(request) => request,
            Err(error) => return tally.failed(&error.into()),
        };
        let begun = Instant::now();
        let Ok((answer, _)) = sender.send_request(request, true) else {
            // The end came between the two.
            return ended.store(true, Ordering::Relaxed);
        };
        asker.again = false;
        Tally::add(&tally.sent);
        let asked = timeout(DEADLINE, read(answer)).await;
        match asked.context("no answer in time").flatten() {
            Ok(()) => tally.answered(begun.elapsed()),
            Err(error) => {
                let cause = error.downcast_ref::<h2::Error>();
                let cause = cause.filter(|error| error.is_remote());
                if cause.is_some_and(is_unprocessed) {
                    Tally::add(&tally.refused);
                    asker.again = true;
                    return ended.store(true, Ordering::Relaxed);
                }
                if cause.is_some_and(h2::Error::is_reset) {
                    Tally::add(&tally.reset);
                }
                tally.failed(&error.context("HTTP/2"));
            }
        }
    }
}

/// Whether a GOAWAY without an error told that the stream was not looked at.
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)
}

/// The whole answer.
async fn read(answer: h2::client::ResponseFuture) -> Result<()> {
    let (head, mut body) = answer.await?.into_parts();
    ensure!(head.status == 200, "answered {}", head.status);
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(())
}
