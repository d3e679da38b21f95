//! What the task of a connection has to do besides the connection: its
//! exchanges, and one thing that comes from outside.
//!
//! Each exchange has a seat, whose waker notes it and wakes the task, so that
//! only what was woken is polled. The future of an exchange is some KiB: made
//! anew for each request it would be allocated, moved and freed each time,
//! which costs more than to decide about the request. So it is a clerk, who
//! serves one request after the other and waits with the thread in between.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::LocalBoxFuture;

use crate::http::alarm::Alarm;

/// A request that can be served.
pub(crate) trait Serve: 'static {
    /// Serves it to its end. The alarm is the clerk's, and may have been set by others.
    fn serve(self, alarm: &mut Alarm) -> impl Future<Output = ()>;
}

/// A future that serves one request after the other.
struct Clerk<R> {
    desk: Rc<Desk<R>>,
    /// Never ready.
    work: LocalBoxFuture<'static, ()>,
}

/// Where a clerk finds the next request.
struct Desk<R> {
    request: Cell<Option<R>>,
    busy: Cell<bool>,
}

impl<R: Serve> Clerk<R> {
    fn new() -> Self {
        let desk = Rc::new(Desk {
            request: Cell::new(None),
            busy: Cell::new(false),
        });
        let work = Box::pin(Self::work(Rc::clone(&desk)));
        Self { desk, work }
    }

    async fn work(desk: Rc<Desk<R>>) {
        let mut alarm = Alarm::idle();
        loop {
            let request = poll_fn(|_| desk.request.take().map_or(Poll::Pending, Poll::Ready));
            request.await.serve(&mut alarm).await;
            alarm.rest();
            desk.busy.set(false);
        }
    }

    fn begin(&self, request: R) {
        self.desk.request.set(Some(request));
        self.desk.busy.set(true);
    }

    /// Ready when the request is served.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = self.work.as_mut().poll(cx);
        match self.desk.busy.get() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }
}

/// The clerks of a thread who have nothing to do.
pub(crate) struct Clerks<R>(RefCell<Vec<Clerk<R>>>);

impl<R> Default for Clerks<R> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<R> fmt::Debug for Clerks<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clerks")
            .field(&self.0.borrow().len())
            .finish()
    }
}

impl<R: Serve> Clerks<R> {
    /// The one who was busy last, if there is one.
    fn take(&self) -> Clerk<R> {
        let idle = self.0.borrow_mut().pop();
        idle.unwrap_or_else(Clerk::new)
    }

    fn give_back(&self, clerk: Clerk<R>) {
        let mut idle = self.0.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(clerk);
        }
    }
}

/// Whose turn it is.
struct Turns {
    /// Wakers may be used by any thread. Locked for a push or a swap.
    seats: Mutex<Vec<usize>>,
    task: Waker,
}

impl Turns {
    fn seats(&self) -> MutexGuard<'_, Vec<usize>> {
        // It is whole after each statement.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes its seat, once until it is polled.
struct Bell {
    seat: usize,
    rung: AtomicBool,
    turns: Arc<Turns>,
}

impl Bell {
    /// True: it was not noted before.
    fn note(&self) -> bool {
        let noted = self.rung.swap(true, Ordering::AcqRel);
        if !noted {
            self.turns.seats().push(self.seat);
        }
        !noted
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.note() {
            self.turns.task.wake_by_ref();
        }
    }
}

/// A bell, and the waker that rings it.
struct Rung {
    bell: Arc<Bell>,
    waker: Waker,
}

impl Rung {
    fn new(seat: usize, turns: &Arc<Turns>) -> Self {
        let bell = Arc::new(Bell {
            seat,
            rung: AtomicBool::new(false),
            turns: Arc::clone(turns),
        });
        let waker = Waker::from(Arc::clone(&bell));
        Self { bell, waker }
    }

    /// What to poll with. From now on it rings again.
    fn answer(&self) -> Context<'_> {
        self.bell.rung.swap(false, Ordering::AcqRel);
        Context::from_waker(&self.waker)
    }
}

/// The exchanges of one connection, and the `T` that comes from outside.
pub(super) struct Work<R, T> {
    seats: Vec<Seat<R>>,
    /// Seats that nobody sits on.
    free: Vec<usize>,
    turns: Arc<Turns>,
    /// Whose turn it is in this round; kept for its memory.
    round: Vec<usize>,
    outside: LocalBoxFuture<'static, T>,
    door: Rung,
}

struct Seat<R> {
    rung: Rung,
    clerk: Option<Clerk<R>>,
}

impl<R: Serve, T> Work<R, T> {
    /// No exchange yet. Whatever is woken wakes `task`.
    pub(super) fn new(task: Waker, outside: LocalBoxFuture<'static, T>) -> Self {
        let turns = Arc::new(Turns {
            seats: Mutex::default(),
            task,
        });
        let door = Rung::new(OUTSIDE, &turns);
        door.waker.wake_by_ref();
        Self {
            seats: Vec::new(),
            free: Vec::new(),
            turns,
            round: Vec::new(),
            outside,
            door,
        }
    }

    /// Waits for something else from outside, once the last has come.
    pub(super) fn listen(&mut self, outside: LocalBoxFuture<'static, T>) {
        self.outside = outside;
        self.door.waker.wake_by_ref();
    }

    /// Exchanges that are not over.
    pub(super) fn open(&self) -> usize {
        self.seats.len() - self.free.len()
    }

    /// Seats a request. Those of one round begin together with the next poll: what they send
    /// upstream, and so what comes back, stays close together.
    pub(super) fn seat(&mut self, request: R, clerks: &Clerks<R>) {
        let clerk = clerks.take();
        clerk.begin(request);
        let at = self.free.pop().unwrap_or_else(|| {
            let rung = Rung::new(self.seats.len(), &self.turns);
            self.seats.push(Seat { rung, clerk: None });
            self.seats.len() - 1
        });
        if let Some(seat) = self.seats.get_mut(at) {
            seat.clerk = Some(clerk);
            seat.rung.bell.note();
        }
    }

    /// Polls what was woken, each about once, and tells what has come from outside.
    pub(super) fn poll(&mut self, clerks: &Clerks<R>) -> Option<T> {
        let mut round = std::mem::take(&mut self.round);
        let mut came = None;
        // One wakes the other; the connection waits for none of them.
        let mut polls = 0;
        while polls <= self.open() {
            std::mem::swap(&mut round, &mut *self.turns.seats());
            if round.is_empty() {
                break;
            }
            polls += round.len();
            for at in round.drain(..) {
                if at != OUTSIDE {
                    self.poll_seat(at, clerks);
                } else if let Poll::Ready(it) = self.outside.as_mut().poll(&mut self.door.answer())
                {
                    came = Some(it);
                }
            }
        }
        self.round = round;
        came
    }

    fn poll_seat(&mut self, at: usize, clerks: &Clerks<R>) {
        let Some(Seat {
            rung,
            clerk: seated,
        }) = self.seats.get_mut(at)
        else {
            return;
        };
        let cx = &mut rung.answer();
        // Who sat there before may have left a waker behind.
        let Some(clerk) = seated else { return };
        if clerk.poll(cx).is_ready()
            && let Some(clerk) = seated.take()
        {
            clerks.give_back(clerk);
            self.free.push(at);
        }
    }
}

/// The place of what comes from outside among the seats.
const OUTSIDE: usize = usize::MAX;

/// Clerks that a thread keeps: as many as a busy one has requests at once.
const IDLE_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::oneshot;

    use super::*;

    /// Counts its polls, and is over when it is told.
    struct Asked {
        polls: Rc<Cell<usize>>,
        told: oneshot::Receiver<()>,
        held: Rc<()>,
    }

    impl Serve for Asked {
        async fn serve(self, _: &mut Alarm) {
            let Self {
                polls,
                mut told,
                held,
            } = self;
            poll_fn(|cx| {
                polls.set(polls.get() + 1);
                std::pin::Pin::new(&mut told).poll(cx)
            })
            .await
            .unwrap();
            drop(held);
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Bench {
        woken: Arc<Woken>,
        work: Work<Asked, u8>,
        clerks: Clerks<Asked>,
        held: Rc<()>,
    }

    impl Bench {
        fn new(outside: LocalBoxFuture<'static, u8>) -> Self {
            let woken = Arc::<Woken>::default();
            let mut bench = Self {
                work: Work::new(Waker::from(Arc::clone(&woken)), outside),
                woken,
                clerks: Clerks::default(),
                held: Rc::new(()),
            };
            bench.work.poll(&bench.clerks);
            bench
        }

        fn ask(&mut self) -> (Rc<Cell<usize>>, oneshot::Sender<()>) {
            let (tell, told) = oneshot::channel();
            let polls = Rc::<Cell<usize>>::default();
            let asked = Asked {
                polls: Rc::clone(&polls),
                told,
                held: Rc::clone(&self.held),
            };
            self.work.seat(asked, &self.clerks);
            self.work.poll(&self.clerks);
            (polls, tell)
        }

        fn idle(&self) -> usize {
            self.clerks.0.borrow().len()
        }
    }

    #[tokio::test]
    async fn only_what_was_woken_is_polled_and_once_however_often_it_was() {
        let mut bench = Bench::new(Box::pin(pending()));
        let (one, tell_one) = bench.ask();
        let (two, _tell_two) = bench.ask();
        assert_eq!((one.get(), two.get(), bench.work.open()), (1, 1, 2));
        bench.work.poll(&bench.clerks);
        assert_eq!((one.get(), two.get()), (1, 1));

        let before = bench.woken.0.load(Ordering::SeqCst);
        bench.work.seats[1].rung.waker.wake_by_ref();
        bench.work.seats[1].rung.waker.wake_by_ref();
        assert_eq!(bench.woken.0.load(Ordering::SeqCst), before + 1);
        bench.work.poll(&bench.clerks);
        assert_eq!((one.get(), two.get()), (1, 2));
        tell_one.send(()).unwrap();
        bench.work.poll(&bench.clerks);
        assert_eq!((one.get(), two.get(), bench.work.open()), (2, 2, 1));
    }

    #[tokio::test]
    async fn a_clerk_serves_again_and_forgets_whom_it_served() {
        let mut bench = Bench::new(Box::pin(pending()));
        for _ in 0..3 {
            let (_, tell) = bench.ask();
            assert_eq!((bench.idle(), bench.work.open()), (0, 1));
            let stale = bench.work.seats[0].rung.waker.clone();
            tell.send(()).unwrap();
            bench.work.poll(&bench.clerks);
            assert_eq!((bench.idle(), bench.work.open()), (1, 0));
            assert_eq!(Rc::strong_count(&bench.held), 1);
            // Nobody sits there, or somebody else.
            stale.wake();
            bench.work.poll(&bench.clerks);
        }
        let (polls, _tell) = bench.ask();
        assert_eq!(polls.get(), 1);
        // What is cut in the middle lets go of everything, and is nobody's clerk any more.
        let Bench {
            work, clerks, held, ..
        } = bench;
        drop(work);
        assert_eq!((Rc::strong_count(&held), clerks.0.borrow().len()), (1, 0));
    }

    #[tokio::test]
    async fn what_comes_from_outside_is_told_once_and_can_be_followed_by_more() {
        let (send, sent) = oneshot::channel();
        let mut bench = Bench::new(Box::pin(async { sent.await.unwrap() }));
        assert_eq!(bench.work.poll(&bench.clerks), None);
        send.send(1).unwrap();
        assert_eq!(bench.work.poll(&bench.clerks), Some(1));
        bench.work.listen(Box::pin(async { 2 }));
        assert_eq!(bench.work.poll(&bench.clerks), Some(2));
    }
}
