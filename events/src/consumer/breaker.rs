//! The circuit breaker of a consumer: the world's fault opens it, and nothing
//! is asked of the handler until a pause is over; then one batch is tried.

use tokio::sync::watch;
use tracing::info;

use crate::Metrics;

/// How a consumer stands to the world.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum BreakerState {
    /// The handler handles.
    Closed,
    /// One batch is being tried.
    HalfOpen,
    /// The world is at fault: consumption pauses, what was delivered is kept
    /// alive and nothing becomes a dead letter.
    Open,
}

impl BreakerState {
    /// As the metric has it: 0 closed, 1 half open, 2 open.
    fn number(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// The state, shown to whoever watches and in the metrics.
#[derive(Debug)]
pub(super) struct Breaker {
    stream: &'static str,
    metrics: Metrics,
    state: watch::Sender<BreakerState>,
}

impl Breaker {
    pub(super) fn new(stream: &'static str, metrics: Metrics) -> Self {
        metrics.breaker(stream, BreakerState::Closed.number());
        Self {
            stream,
            metrics,
            state: watch::Sender::new(BreakerState::Closed),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<BreakerState> {
        self.state.subscribe()
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.state.borrow() == BreakerState::Closed
    }

    /// The handler is about to be asked.
    pub(super) fn ask(&self) {
        if *self.state.borrow() == BreakerState::Open {
            self.set(BreakerState::HalfOpen);
        }
    }

    /// The world is at fault.
    pub(super) fn open(&self) {
        self.set(BreakerState::Open);
    }

    /// It is not, or no longer.
    pub(super) fn close(&self) {
        if self.set(BreakerState::Closed) {
            info!(stream = self.stream, "consumption goes on");
        }
    }

    fn set(&self, state: BreakerState) -> bool {
        let changed = self
            .state
            .send_if_modified(|now| std::mem::replace(now, state) != state);
        if changed {
            self.metrics.breaker(self.stream, state.number());
        }
        changed
    }
}
