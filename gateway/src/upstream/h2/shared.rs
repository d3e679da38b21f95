//! The HTTP/2 connections of one thread, by upstream.
//!
//! Requests share a connection until it has as many streams as the upstream
//! allows; then there is another one, up to a limit, beyond which requests wait
//! their turn inside the h2 crate. What it allows it says at once, but a little
//! later than the first request is sent: whoever else comes until then waits, or
//! the upstream would refuse what is too much.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use edd_route::Admission;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};

use super::driver;
use super::stream::UpstreamStream;
use crate::http::h2::flow::Quota;
use crate::shared::Shared;
use crate::telemetry::ConnectionGauge;
use crate::upstream::{ConnectError, UpstreamKey};

/// A connection and what its streams share.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) peer: SocketAddr,
    pub(super) quota: Quota,
    admission: Admission,
    sender: RefCell<Option<SendRequest<Bytes>>>,
    /// The turn of whoever opened it, until the upstream has said what it allows.
    unsettled: RefCell<Option<OwnedMutexGuard<()>>>,
    streams: Cell<usize>,
    /// Since when there is no stream.
    pub(super) idle_since: Cell<Instant>,
    shared: Arc<Shared>,
    counted: RefCell<ConnectionGauge>,
}

impl Connected {
    /// Streams that are held.
    pub(super) fn streams(&self) -> usize {
        self.streams.get()
    }

    pub(super) fn enter(&self) {
        if self.streams.replace(self.streams.get() + 1) == 0 {
            *self.counted.borrow_mut() = self.shared.metrics.upstream_active();
        }
    }

    pub(super) fn leave(&self) {
        let left = self.streams.get().saturating_sub(1);
        self.streams.set(left);
        if left == 0 {
            *self.counted.borrow_mut() = self.shared.metrics.upstream_idle();
            self.idle_since.set(Instant::now());
        }
    }

    /// It is known what the upstream allows: others may share the connection, or open the next.
    pub(super) fn settle(&self) {
        self.unsettled.take();
    }

    /// Takes no more requests. Those under way go on.
    pub(super) fn close(&self) {
        self.sender.take();
        self.unsettled.take();
    }

    fn is_open(&self) -> bool {
        self.sender.borrow().is_some() && !self.admission.is_revoked()
    }

    fn room(&self) -> usize {
        if self.unsettled.borrow().is_some() {
            return 0;
        }
        let sender = self.sender.borrow();
        let allowed = sender
            .as_ref()
            .map_or(0, SendRequest::current_max_send_streams);
        allowed.min(STREAMS_MAX).saturating_sub(self.streams.get())
    }

    fn stream(self: &Rc<Self>) -> Option<UpstreamStream> {
        let sender = self.sender.borrow().clone()?;
        Some(UpstreamStream::new(self, sender))
    }
}

/// The connections of one thread. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connections(Rc<RefCell<HashMap<UpstreamKey, Of>>>);

/// Those of one upstream.
#[derive(Clone, Debug, Default)]
struct Of {
    connections: Vec<Rc<Connected>>,
    /// Held by whoever opens one; the others wait for it.
    opening: Arc<Mutex<()>>,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It does not speak HTTP/2.
    #[error("opening an HTTP/2 connection")]
    Handshake(#[source] h2::Error),
}

impl Connections {
    /// A stream on a connection of `key`, a new one if need be. Whether it was there before.
    ///
    /// `connect` is called by one request at a time; the others wait for it until `deadline`. Must
    /// be called on a `LocalSet`. Cancellation safe.
    pub(crate) async fn stream<I>(
        &self,
        key: &UpstreamKey,
        admission: &Admission,
        shared: &Arc<Shared>,
        deadline: Instant,
        connect: impl AsyncFnOnce() -> Result<(I, SocketAddr), ConnectError>,
    ) -> Result<(UpstreamStream, bool), OpenError>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        if let Some(stream) = self.free(key, admission) {
            return Ok((stream, true));
        }
        let opening = self.opening(key);
        let turn = Arc::clone(&opening.turn).lock_owned();
        let Ok(turn) = timeout_at(deadline, turn).await else {
            return Err(ConnectError::TimedOut.into());
        };
        // Somebody else may have opened it meanwhile.
        if let Some(stream) = self.free(key, admission) {
            return Ok((stream, true));
        }
        let (io, peer) = connect().await?;
        let opened = timeout_at(deadline, driver::open(io)).await;
        let (sender, driver) = opened
            .map_err(|_| ConnectError::TimedOut)?
            .map_err(OpenError::Handshake)?;
        let connected = Rc::new(Connected {
            peer,
            quota: Quota::new(driver.lent()),
            admission: admission.clone(),
            sender: RefCell::new(Some(sender)),
            unsettled: RefCell::new(Some(turn)),
            streams: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            shared: Arc::clone(shared),
            counted: RefCell::new(shared.metrics.upstream_idle()),
        });
        let mut all = self.0.borrow_mut();
        let of = all.entry(key.clone()).or_default();
        of.connections.push(Rc::clone(&connected));
        drop(all);
        let stream = connected.stream().ok_or(ConnectError::TimedOut)?;
        let task = driver.run(Rc::clone(&connected), admission.clone(), Arc::clone(shared));
        let (connections, key) = (self.clone(), key.clone());
        tokio::task::spawn_local(async move {
            task.await;
            connections.forget(&key, &connected);
        });
        Ok((stream, false))
    }

    fn opening<'k>(&self, key: &'k UpstreamKey) -> Opening<'k> {
        let mut all = self.0.borrow_mut();
        let of = all.entry(key.clone()).or_default();
        Opening {
            connections: self.clone(),
            key,
            turn: Arc::clone(&of.opening),
        }
    }

    /// A stream on a connection that has room, or on any if there may be no more.
    fn free(&self, key: &UpstreamKey, admission: &Admission) -> Option<UpstreamStream> {
        let all = self.0.borrow();
        let fit = all.get(key)?.connections.iter();
        let fit = fit.filter(|c| c.is_open() && c.admission.is(admission));
        let (mut count, mut best) = (0, None);
        for connection in fit {
            count += 1;
            let room = connection.room();
            if best.as_ref().is_none_or(|(most, _)| room > *most) {
                best = Some((room, connection));
            }
        }
        let (room, connection) = best?;
        (room > 0 || count >= CONNECTIONS_MAX)
            .then(|| connection.stream())
            .flatten()
    }

    fn forget(&self, key: &UpstreamKey, over: &Rc<Connected>) {
        over.close();
        let mut all = self.0.borrow_mut();
        if let Some(of) = all.get_mut(key) {
            of.connections
                .retain(|connection| !Rc::ptr_eq(connection, over));
            if of.connections.is_empty() && Arc::strong_count(&of.opening) == 1 {
                all.remove(key);
            }
        }
    }
}

/// Whoever opens a connection or waits for it. The last one to go without leaves nothing behind.
struct Opening<'k> {
    connections: Connections,
    key: &'k UpstreamKey,
    turn: Arc<Mutex<()>>,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut all = self.connections.0.borrow_mut();
        // The map's and ours.
        let is_last = Arc::strong_count(&self.turn) == 2;
        if is_last
            && all
                .get(self.key)
                .is_some_and(|of| of.connections.is_empty())
        {
            all.remove(self.key);
        }
    }
}

/// On one connection, whatever the upstream allows.
const STREAMS_MAX: usize = 256;

/// To one upstream, per thread.
const CONNECTIONS_MAX: usize = 8;

/// Without a stream.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use edd_route::ContainerId;

    use super::*;

    fn key(start: u64) -> UpstreamKey {
        UpstreamKey::Container {
            id: ContainerId::new("c1").unwrap(),
            start,
            port: 80,
            target_port: 8080,
        }
    }

    #[test]
    fn whoever_connects_in_vain_leaves_nothing_behind() {
        let connections = Connections::default();
        let keys = [1, 2].map(key);
        let first = connections.opening(&keys[0]);
        let waiting = connections.opening(&keys[0]);
        let other = connections.opening(&keys[1]);
        assert!(Arc::ptr_eq(&first.turn, &waiting.turn), "one at a time");
        drop(first);
        assert_eq!(connections.0.borrow().len(), 2, "somebody waits");
        drop((waiting, other));
        assert_eq!(connections.0.borrow().len(), 0);
    }
}
