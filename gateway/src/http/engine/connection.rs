//! A connection to an upstream, and its loan to one exchange.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;

use edd_route::Admission;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::body::{Progress, RequestBody};
use crate::listener::Worker;
use crate::shared::Shared;
use crate::tcp::{Fuse, Fused};
use crate::telemetry::ConnectionGauge;
use crate::upstream::{Reusable, Socket, UpstreamKey};

/// An HTTP/1.1 connection to an upstream, as the pool keeps it.
#[derive(Debug)]
pub struct UpstreamConnection {
    pub(super) sender: SendRequest<RequestBody>,
    /// Whom it leads to.
    pub(super) peer: SocketAddr,
    /// What it depends on; its driver ends with it.
    admission: Admission,
    /// Moves its bytes. By itself it would wait for a peer that reads nothing, for ever.
    _driver: AbortOnDropHandle<()>,
    /// Blown where its end must not look like one.
    pub(super) fuse: Fuse,
    /// Counts it while it is in use, or while it is kept.
    counted: ConnectionGauge,
}

impl UpstreamConnection {
    /// Speaks HTTP on `stream`. Its task ends with the connection, with the admission or with the drain.
    pub(super) async fn open(
        stream: Socket,
        peer: SocketAddr,
        admission: Admission,
        shared: &Shared,
    ) -> hyper::Result<Self> {
        let fuse = Fuse::default();
        let stream = Fused::new(stream, fuse.clone());
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(BUFFER_MAX)
            .max_headers(FIELDS_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        let revoked = admission.revoked();
        let cut = shared.drain.cut().clone();
        let blown = fuse.clone();
        let driver = tokio::task::spawn_local(async move {
            let mut driver = pin!(driver.with_upgrades());
            tokio::select! {
                biased;
                ended = &mut driver => match ended {
                    Ok(()) => return,
                    Err(error) => debug!(%peer, %error, "upstream connection ended"),
                },
                () = revoked => {}
                () = cut.cancelled() => {}
            }
            // While the driver still has the stream. A request that was cut is not to be
            // read to its last byte, and a peer that reads nothing is not to be waited for.
            blown.blow();
        });
        Ok(Self {
            sender,
            peer,
            admission,
            _driver: AbortOnDropHandle::new(driver),
            fuse,
            counted: shared.metrics.upstream_active(),
        })
    }
}

impl Drop for UpstreamConnection {
    fn drop(&mut self) {
        // In the middle of an exchange: the peer need not be sent what is left of it.
        if !self.sender.is_ready() && !self.sender.is_closed() {
            self.fuse.blow();
        }
    }
}

impl Reusable for UpstreamConnection {
    fn is_open(&mut self) -> bool {
        self.sender.is_ready() && !self.admission.is_revoked()
    }
}

/// A connection on loan to one exchange: given back when the answer is complete, else closed.
#[derive(Debug)]
pub(super) struct Loan {
    pub(super) connection: UpstreamConnection,
    /// How the request's body gets on.
    pub(super) upload: Option<Rc<Progress>>,
    worker: Rc<Worker>,
    key: UpstreamKey,
}

impl Loan {
    /// Lends a new connection.
    pub(super) fn new(
        connection: UpstreamConnection,
        worker: &Rc<Worker>,
        key: UpstreamKey,
    ) -> Self {
        Self {
            connection,
            upload: None,
            worker: Rc::clone(worker),
            key,
        }
    }

    /// Lends the connection that was kept for `key` and depends on `admission`, if there is one.
    pub(super) fn of_kept(
        worker: &Rc<Worker>,
        key: &UpstreamKey,
        admission: &Admission,
    ) -> Option<Self> {
        let fits = |kept: &UpstreamConnection| kept.admission.is(admission);
        let mut connection = worker.pool.idle.take(key, fits)?;
        connection.counted = worker.shared.metrics.upstream_active();
        Some(Self::new(connection, worker, key.clone()))
    }

    /// Back to the pool. The answer is complete; the request's body may still be on its way.
    ///
    /// It is waited for as long as it moves, and closed once it has not for `--body-timeout`.
    pub(super) fn give_back(mut self) {
        if self.connection.sender.is_ready() {
            self.keep();
        } else if !self.connection.sender.is_closed() {
            tokio::task::spawn_local(async move {
                let limit = self.worker.shared.config.timeouts.body;
                let mut due = Instant::now() + limit;
                loop {
                    let ready = timeout_at(due, self.connection.sender.ready()).await;
                    match ready {
                        Ok(Ok(())) => return self.keep(),
                        Ok(Err(_)) => return,
                        Err(_) => {}
                    }
                    let moved = self.upload.as_ref().map(|upload| upload.moved() + limit);
                    match moved.filter(|&moved| moved > due) {
                        Some(moved) => due = moved,
                        None => return,
                    }
                }
            });
        }
    }

    fn keep(self) {
        let Self {
            mut connection,
            worker,
            key,
            ..
        } = self;
        connection.counted = worker.shared.metrics.upstream_idle();
        worker.pool.idle.put(key, connection);
    }
}

/// Largest response head, and the read and write buffer of a connection.
const BUFFER_MAX: usize = 128 * 1024;

const FIELDS_MAX: usize = 256;
