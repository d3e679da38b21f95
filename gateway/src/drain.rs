//! The end of the process: stop accepting, let what runs finish, cut the rest.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The steps of ending, and who is still here.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
    idle: CancellationToken,
    cut: CancellationToken,
    connections: TaskTracker,
}

impl Drain {
    /// Nothing is ending yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when draining begins: stop accepting, `Connection: close`, GOAWAY.
    pub fn token(&self) -> &CancellationToken {
        &self.begun
    }

    /// Cancelled a moment after that: connections on which nothing is under way end.
    ///
    /// Not at once, for the next request of a kept connection may be on its way, and would be
    /// lost. It is answered with `Connection: close` instead.
    pub fn idle(&self) -> &CancellationToken {
        &self.idle
    }

    /// Cancelled when the deadline has passed: everything ends now.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Held by every connection for as long as it lives.
    pub fn guard(&self) -> TaskTrackerToken {
        self.connections.token()
    }

    /// Connections that live.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Begins, waits at most `timeout` for all connections to end, then cuts the rest.
    ///
    /// Returns how many were cut. They are given a moment to notice.
    pub async fn run(&self, timeout: Duration) -> usize {
        self.begun.cancel();
        self.connections.close();
        let idle = IDLE_GRACE.min(timeout / 4);
        if self.ended_within(idle).await {
            return 0;
        }
        self.idle.cancel();
        if self.ended_within(timeout.saturating_sub(idle)).await {
            return 0;
        }
        let left = self.connections.len();
        self.cut.cancel();
        self.ended_within(CUT_GRACE).await;
        left
    }

    async fn ended_within(&self, limit: Duration) -> bool {
        let ended = tokio::time::timeout(limit, self.connections.wait());
        ended.await.is_ok()
    }
}

/// How long a connection without a request may still send one.
const IDLE_GRACE: Duration = Duration::from_secs(1);

/// How long a cut connection may take to say goodbye.
const CUT_GRACE: Duration = Duration::from_secs(2);
