//! One waker for everything that a connection's task polls.
//!
//! Streams wake the h2 crate, which wakes the task that is just polling them.
//! Through the runtime each of these would cost another poll of everything. Here
//! a wake that comes while the task runs is only noted, and the task looks again
//! before it rests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Wake, Waker};

use futures_util::task::AtomicWaker;

/// The waker's state, shared by its clones.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    state: AtomicU8,
    task: AtomicWaker,
}

/// Nobody runs; a wake goes to the runtime.
const RESTING: u8 = 0;
/// The task runs; a wake is noted.
const RUNNING: u8 = 1;
/// A wake was noted, or has gone to the runtime.
const WOKEN: u8 = 2;

impl Gather {
    /// The task runs: from now on wakes are noted.
    pub(crate) fn begin(&self, task: &Waker) {
        self.task.register(task);
        self.state.store(RUNNING, Ordering::Release);
    }

    /// Forgets what was noted: everything is about to be polled.
    pub(crate) fn look(&self) {
        self.state.store(RUNNING, Ordering::Release);
    }

    /// Whether a wake was noted since the last look.
    pub(crate) fn is_woken(&self) -> bool {
        self.state.load(Ordering::Acquire) == WOKEN
    }

    /// Rests, unless a wake was noted: then the task must look again.
    pub(crate) fn rest(&self) -> bool {
        self.state
            .compare_exchange(RUNNING, RESTING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Rests in any case, and has the runtime call again if a wake was noted.
    pub(crate) fn yield_now(&self) {
        if self.state.swap(RESTING, Ordering::AcqRel) == WOKEN {
            self.task.wake();
        }
    }
}

impl Wake for Gather {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == RESTING {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn wakes_go_to_the_runtime_only_while_the_task_rests() {
        let count = Arc::new(Count::default());
        let woken = || count.0.load(Ordering::SeqCst);
        let gather = Arc::new(Gather::default());
        let waker = Waker::from(Arc::clone(&gather));
        gather.begin(&Waker::from(Arc::clone(&count)));
        waker.wake_by_ref();
        assert!(gather.is_woken() && !gather.rest());
        gather.look();
        assert!(gather.rest());
        assert_eq!(woken(), 0);

        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(woken(), 1, "once is enough");
        gather.begin(&Waker::from(Arc::clone(&count)));
        assert!(!gather.is_woken(), "this poll is for that wake");
        waker.wake_by_ref();
        gather.yield_now();
        assert_eq!(woken(), 2);
    }
}
