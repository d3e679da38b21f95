//! The end of the process, as one data-plane thread sees it.
//!
//! The tokens of `Drain` are shared by all threads, and asking them takes a
//! lock. So one task per thread waits for them; connections read a cell and are
//! woken once.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

use crate::drain::Drain;

/// How far the process is on its way out.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Stage {
    /// Not at all.
    #[default]
    Serving,
    /// What runs is finished; a request that is on its way is the last one.
    Draining,
    /// Connections without a request end.
    Idle,
    /// Everything ends now.
    Cut,
}

/// The stage of one thread, and who wants to know of a change. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ending(Rc<State>);

#[derive(Debug, Default)]
struct State {
    stage: Cell<Stage>,
    wakers: RefCell<Wakers>,
}

#[derive(Debug, Default)]
struct Wakers {
    slots: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Ending {
    /// The stage now.
    pub(crate) fn stage(&self) -> Stage {
        self.0.stage.get()
    }

    /// Follows the drain; ends with the cut.
    pub(crate) async fn follow(self, drain: Drain) {
        drain.token().cancelled().await;
        self.enter(Stage::Draining);
        drain.idle().cancelled().await;
        self.enter(Stage::Idle);
        drain.cut().cancelled().await;
        self.enter(Stage::Cut);
    }

    fn enter(&self, stage: Stage) {
        self.0.stage.set(stage);
        for waker in self.0.wakers.borrow().slots.iter().flatten() {
            waker.wake_by_ref();
        }
    }

    /// Wakes by `waker` at each change, until the watch is dropped.
    pub(crate) fn watch(&self, waker: &Waker) -> Watch {
        let mut wakers = self.0.wakers.borrow_mut();
        let waker = Some(waker.clone());
        let slot = match wakers.free.pop() {
            Some(slot) => slot,
            None => {
                wakers.slots.push(None);
                wakers.slots.len() - 1
            }
        };
        if let Some(place) = wakers.slots.get_mut(slot) {
            *place = waker;
        }
        Watch {
            ending: self.clone(),
            slot,
        }
    }
}

/// A place among those who are woken.
#[derive(Debug)]
pub(crate) struct Watch {
    ending: Ending,
    slot: usize,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut wakers = self.ending.0.wakers.borrow_mut();
        if let Some(place) = wakers.slots.get_mut(self.slot) {
            *place = None;
        }
        let slot = self.slot;
        wakers.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn watchers_are_woken_at_each_stage_until_they_leave() {
        let (ending, drain) = (Ending::default(), Drain::new());
        let (ended, local) = (ending.clone(), LocalSet::new());
        local.spawn_local(ending.clone().follow(drain.clone()));
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (log, watched) = (Rc::clone(&seen), ending.clone());
        local.spawn_local(async move {
            let mut watch = None;
            std::future::poll_fn(|cx| {
                watch.get_or_insert_with(|| watched.watch(cx.waker()));
                log.borrow_mut().push(watched.stage());
                match watched.stage() {
                    Stage::Cut => std::task::Poll::Ready(()),
                    _ => std::task::Poll::Pending,
                }
            })
            .await;
        });
        drop(ending.watch(Waker::noop()));
        let guard = drain.guard();
        let end = async {
            tokio::task::yield_now().await;
            drain.run(std::time::Duration::from_secs(1)).await
        };
        let (cut, ()) = tokio::join!(end, local);
        drop(guard);
        assert_eq!(cut, 1);
        let stages = [Stage::Serving, Stage::Draining, Stage::Idle, Stage::Cut];
        assert_eq!(*seen.borrow(), stages);
        assert_eq!(ended.0.wakers.borrow().slots.iter().flatten().count(), 0);
    }
}
