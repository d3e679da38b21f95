//! Keepalives of a connection to a container: it is asked whether it lives, and told that we do.
//!
//! russh could ask by itself, but it would not hear the answer while the
//! socket is not read because the client takes nothing (see `own`), and give up a
//! container that is well. So it is asked here, and only while somebody listens.
//! Meanwhile the questions of the container's sshd (`ClientAliveInterval`) lie
//! unread as well; it counts every packet as an answer, so it gets one a second.

use std::sync::Arc;
use std::time::Duration;

use russh::client::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::container::ContainerHandler;
use super::downlink::Backlog;

/// While the socket is not read: an answer to whatever sshd may have asked. It cannot ask
/// more than once a second.
const BEAT: Duration = Duration::from_millis(900);

/// Asks and tells until `cut`, and cuts a container that does not answer: one that has been
/// silent for `interval` is asked, and given up after `questions_max` without a word.
pub(super) async fn run(
    handle: Arc<Handle<ContainerHandler>>,
    backlog: Arc<Backlog>,
    interval: Duration,
    questions_max: usize,
    cut: CancellationToken,
) {
    let mut asked = 0;
    let mut heard = backlog.reads();
    while !cut.is_cancelled() && !handle.is_closed() {
        if backlog.own.stands() {
            // If nothing can be written either, TCP's own time-outs tell.
            let _ = timeout(BEAT, handle.send_keepalive(false)).await;
            let _ = timeout(BEAT, cut.cancelled()).await;
            (asked, heard) = (0, backlog.reads());
            continue;
        }
        tokio::select! {
            () = cut.cancelled() => return,
            () = backlog.own.stopped() => continue,
            () = tokio::time::sleep(interval) => {}
        }
        let reads = backlog.reads();
        if reads != heard {
            (asked, heard) = (0, reads);
            continue;
        }
        if asked >= questions_max {
            debug!("a container does not answer keepalives");
            cut.cancel();
            return;
        }
        asked += 1;
        let _ = timeout(interval, handle.send_keepalive(true)).await;
    }
}
