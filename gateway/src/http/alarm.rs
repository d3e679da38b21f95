//! One timer for everything that a connection waits for.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is moved only if something is due before it would fire.
///
/// Deadlines that come later, as most do, cost nothing: it fires in vain once
/// and is set again then.
#[derive(Debug)]
pub(crate) struct Alarm {
    sleep: Pin<Box<Sleep>>,
    /// Set again to a later moment.
    put_off: bool,
}

impl Alarm {
    /// A timer that is first due then.
    pub(crate) fn new(due: Instant) -> Self {
        Self {
            sleep: Box::pin(sleep_until(due)),
            put_off: false,
        }
    }

    /// A timer for things that are due at some time or other.
    pub(crate) fn idle() -> Self {
        Self::new(Instant::now() + SOON)
    }

    /// Nothing is due any more. It fires before long all the same, and lets go of its last waker then.
    pub(crate) fn rest(&mut self) {
        if std::mem::take(&mut self.put_off) {
            let soon = Instant::now() + SOON;
            if self.sleep.deadline() > soon {
                self.sleep.as_mut().reset(soon);
            }
        }
    }

    /// Ready once `due` has come, with the time it is.
    pub(crate) fn poll_due(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<Instant> {
        if due < self.sleep.deadline() {
            self.sleep.as_mut().reset(due);
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let now = Instant::now();
            if due <= now {
                return Poll::Ready(now);
            }
            self.sleep.as_mut().reset(due);
            self.put_off = true;
        }
    }
}

/// Later than most answers, so that most never set it again.
const SOON: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_due_when_it_is_due_wherever_it_stood() {
        let begun = Instant::now();
        let after = |secs| begun + Duration::from_secs(secs);
        let mut alarm = Alarm::new(after(10));
        for secs in [20, 21, 50, 51] {
            let now = poll_fn(|cx| alarm.poll_due(cx, after(secs))).await;
            assert!(now >= after(secs) && now < after(secs) + Duration::from_millis(5));
            let at_once = poll_fn(|cx| alarm.poll_due(cx, after(1))).await;
            assert!(at_once < after(secs) + Duration::from_millis(5));
        }
    }
    #[tokio::test(start_paused = true)]
    async fn at_rest_it_keeps_nobody_for_long() {
        let begun = Instant::now();
        let mut alarm = Alarm::idle();
        let far = begun + Duration::from_secs(3600);
        let waiting = poll_fn(|cx| alarm.poll_due(cx, far));
        let waited = tokio::time::timeout(SOON * 2, waiting).await;
        assert!(waited.is_err());
        assert_eq!(alarm.sleep.deadline(), far);
        alarm.rest();
        assert!(alarm.sleep.deadline() <= Instant::now() + SOON);
    }
}
