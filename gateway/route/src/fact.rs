//! Facts that admit connections, and their revocation.
//!
//! A container that runs, a rule, a key, a flag: each is a [`Fact`]. A
//! connection keeps the facts that admitted it as its [`Admission`]; when the
//! table no longer holds one of them the writer revokes it, and exactly the
//! connections that hold it end. Ordinary requests only read the flag; what
//! lives long waits for [`Admission::revoked`]. A change that keeps a fact
//! keeps the very same object, so it ends nothing.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use event_listener::{Event, EventListener};
use smallvec::SmallVec;

/// Something that is true until it is revoked, once and for ever.
#[derive(Clone, Default)]
pub struct Fact(Arc<State>);

#[derive(Default)]
struct State {
    revoked: AtomicBool,
    /// Only waited on by connections that outlive an ordinary request.
    ended: Event,
}

impl Fact {
    /// A fact that holds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it is over. One atomic load.
    pub fn is_revoked(&self) -> bool {
        self.0.revoked.load(Ordering::Acquire)
    }

    /// Ends it. Costs what waits for it.
    pub fn revoke(&self) {
        self.0.revoked.store(true, Ordering::Release);
        self.0.ended.notify(usize::MAX);
    }

    /// Whether both are the same fact.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_revoked() {
            "Fact(revoked)"
        } else {
            "Fact(holds)"
        })
    }
}

/// All facts that admitted one connection, stream or request.
#[derive(Clone, Debug, Default)]
pub struct Admission(SmallVec<[Fact; 3]>);

impl Admission {
    /// An admission that depends on `facts`; none of them: it never ends.
    pub fn new(facts: impl IntoIterator<Item = Fact>) -> Self {
        Self(facts.into_iter().collect())
    }

    /// Whether it depends on nothing, and so never ends.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any of its facts is over.
    pub fn is_revoked(&self) -> bool {
        self.0.iter().any(Fact::is_revoked)
    }

    /// Whether both depend on the very same facts.
    pub fn is(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| a.is(b))
    }

    /// Ends as soon as any of its facts is over; never, if it has none.
    ///
    /// Cancellation safe: dropping the future takes its registration back.
    pub fn revoked(&self) -> Revoked {
        // Listen first, look second: a revocation in between is then seen.
        let listeners = self.0.iter().map(|fact| fact.0.ended.listen()).collect();
        Revoked {
            listeners,
            facts: self.0.clone(),
        }
    }
}

/// The future of [`Admission::revoked`].
#[must_use = "futures do nothing unless polled"]
pub struct Revoked {
    listeners: SmallVec<[EventListener; 3]>,
    facts: SmallVec<[Fact; 3]>,
}

impl Future for Revoked {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.facts.iter().any(Fact::is_revoked) {
            return Poll::Ready(());
        }
        for listener in &mut this.listeners {
            if Pin::new(listener).poll(cx).is_ready() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn any_revoked_fact_ends_the_admission_and_wakes_it() {
        let (a, b) = (Fact::new(), Fact::new());
        let admission = Admission::new([a.clone(), b.clone()]);
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut cx = Context::from_waker(&waker);
        let mut waiting = Box::pin(admission.revoked());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        assert!(!admission.is_revoked());

        b.revoke();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(admission.is_revoked());
        assert!(waiting.as_mut().poll(&mut cx).is_ready());
        assert!(!a.is_revoked());
    }

    #[test]
    fn revocation_before_the_wait_is_seen() {
        let fact = Fact::new();
        fact.revoke();
        let mut cx = Context::from_waker(Waker::noop());
        let mut waiting = Box::pin(Admission::new([fact]).revoked());
        assert!(waiting.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn admissions_are_the_same_by_their_facts_alone() {
        let (a, b) = (Fact::new(), Fact::new());
        let both = Admission::new([a.clone(), b.clone()]);
        assert!(both.is(&Admission::new([a.clone(), b])));
        assert!(!both.is(&Admission::new([a.clone()])));
        assert!(!both.is(&Admission::new([a, Fact::new()])));
        assert!(Admission::default().is(&Admission::default()));
    }

    #[test]
    fn an_admission_without_facts_never_ends() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut waiting = Box::pin(Admission::default().revoked());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        assert!(!Admission::default().is_revoked());
    }
}
