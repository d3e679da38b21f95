//! Ends an answer from outside.
//!
//! hyper asks a body for more only when the client takes it: a client that does
//! not read would keep its answer for ever, whatever the body knows. So whoever
//! runs the answer also looks here.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use edd_route::{Admission, Revoked};
use tokio::time::{Instant, Sleep};

/// What one answer depends on, while it is under way.
#[derive(Default)]
pub(super) struct Leash(RefCell<Option<Fastened>>);

struct Fastened {
    revoked: Revoked,
    /// How long nothing may move.
    limit: Duration,
    moved: Instant,
    timer: Pin<Box<Sleep>>,
}

impl fmt::Debug for Leash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leash").finish_non_exhaustive()
    }
}

impl Leash {
    /// From now on the answer ends with `admission`, or when nothing has moved for `limit`.
    pub(super) fn fasten(&self, admission: &Admission, limit: Duration) {
        let moved = Instant::now();
        *self.0.borrow_mut() = Some(Fastened {
            revoked: admission.revoked(),
            limit,
            moved,
            timer: Box::pin(tokio::time::sleep_until(moved + limit)),
        });
    }

    /// Some of the answer was taken.
    pub(super) fn moved(&self) {
        if let Some(fastened) = &mut *self.0.borrow_mut() {
            fastened.moved = Instant::now();
        }
    }

    /// All of it was.
    pub(super) fn loosen(&self) {
        *self.0.borrow_mut() = None;
    }

    /// Ready when the answer must end.
    pub(super) fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut fastened = self.0.borrow_mut();
        let Some(fastened) = &mut *fastened else {
            return Poll::Pending;
        };
        if Pin::new(&mut fastened.revoked).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // The timer is set again when it fires, not with each frame.
        loop {
            ready!(fastened.timer.as_mut().poll(cx));
            let due = fastened.moved + fastened.limit;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            fastened.timer.as_mut().reset(due);
        }
    }
}
