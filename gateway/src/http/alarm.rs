//! One timer for everything that a connection waits for.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is moved only if something is due before it would fire.
///
/// Deadlines that come later, as most do, cost nothing: it fires in vain once
/// and is set again then.
#[derive(Debug)]
pub(crate) struct Alarm {
    sleep: Pin<Box<Sleep>>,
}

impl Alarm {
    /// A timer that is first due then.
    pub(crate) fn new(due: Instant) -> Self {
        Self {
            sleep: Box::pin(sleep_until(due)),
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
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

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
}
