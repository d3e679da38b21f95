//! Connections kept for the next request of the same upstream.
//!
//! Last in, first out, so that the warmest is used and the surplus ages. What a
//! connection is, the pool does not know: it asks whether it still lives.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

use edd_route::UserId;
use tokio::time::{Instant, sleep, timeout};

use crate::listener::Gate;

/// A connection that can be kept.
pub trait Reusable: 'static {
    /// Whether the next request may be sent on it. Also false once what admitted it is over.
    fn is_open(&mut self) -> bool;

    /// The owner of the container that it leads to, if it does.
    fn owner(&self) -> Option<UserId>;
}

impl<C: Reusable> Reusable for Box<C> {
    fn owner(&self) -> Option<UserId> {
        (**self).owner()
    }

    fn is_open(&mut self) -> bool {
        (**self).is_open()
    }
}

/// What is kept, and since when.
#[derive(Debug)]
pub struct Idle<C> {
    connection: C,
    since: Instant,
}

/// Idle connections of one thread, by key. Clones share them.
#[derive(Debug)]
pub struct IdlePool<K, C>(Rc<RefCell<Kept<K, C>>>);

#[derive(Debug)]
struct Kept<K, C> {
    by_key: HashMap<K, VecDeque<Idle<C>>, BuildHasherDefault<Quick>>,
    sweeping: bool,
    /// Says when there are too many connections in all.
    gate: Option<Gate>,
}

impl<K, C> Clone for IdlePool<K, C> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<K, C> Default for IdlePool<K, C> {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(Kept {
            by_key: HashMap::default(),
            sweeping: false,
            gate: None,
        })))
    }
}

impl<K, C> IdlePool<K, C> {
    /// A pool that makes room when `gate` is pressed.
    pub fn under(gate: Gate) -> Self {
        let pool = Self::default();
        pool.0.borrow_mut().gate = Some(gate);
        pool
    }
}

impl<K: Clone + Eq + Hash + 'static, C: Reusable> IdlePool<K, C> {
    /// The connection that was kept last, is alive and `fits`.
    pub fn take(&self, key: &K, now: Instant, fits: impl Fn(&C) -> bool) -> Option<C> {
        let mut kept = self.0.borrow_mut();
        let queue = kept.by_key.get_mut(key)?;
        let mut found = None;
        while let Some(mut idle) = queue.pop_back() {
            let fresh = now.saturating_duration_since(idle.since) < IDLE_MAX;
            if fresh && idle.connection.is_open() && fits(&idle.connection) {
                found = Some(idle.connection);
                break;
            }
        }
        // An empty queue stays for the connection to come back to, until the next sweep.
        found
    }

    /// Keeps a connection; beyond the limit the oldest of its key goes.
    ///
    /// Must be called on a `LocalSet`: the first one kept starts the sweeper.
    pub fn put(&self, key: &K, mut connection: C, now: Instant) {
        if !connection.is_open() {
            return;
        }
        let mut kept = self.0.borrow_mut();
        let wanted = |gate: &Gate| gate.wants(connection.owner());
        if kept.gate.as_ref().is_some_and(wanted) {
            // Somebody needs its place more.
            return;
        }
        let idle = Idle {
            connection,
            since: now,
        };
        match kept.by_key.get_mut(key) {
            Some(queue) => {
                if queue.len() >= IDLE_PER_KEY_MAX {
                    queue.pop_front();
                }
                queue.push_back(idle);
            }
            None => {
                kept.by_key.insert(key.clone(), VecDeque::from([idle]));
            }
        }
        if !kept.sweeping {
            kept.sweeping = true;
            tokio::task::spawn_local(sweep(Rc::downgrade(&self.0)));
        }
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.0.borrow().by_key.values().map(VecDeque::len).sum()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Clone + Eq + Hash + 'static, C: Reusable> Kept<K, C> {
    /// Lets aged and dead ones go.
    fn sweep(&mut self) {
        let now = Instant::now();
        self.by_key.retain(|_, queue| {
            queue.retain_mut(|idle| {
                now.duration_since(idle.since) < IDLE_MAX && idle.connection.is_open()
            });
            !queue.is_empty()
        });
    }

    /// Lets as many go as somebody waits for. True: nothing is left, nobody need come again.
    fn clear_out(&mut self, wanted: usize, of_owners: HashMap<UserId, usize>) -> bool {
        for _ in 0..wanted {
            if !self.evict() {
                break;
            }
        }
        if !of_owners.is_empty() {
            self.evict_of(of_owners);
        }
        self.sweeping = !self.by_key.is_empty();
        !self.sweeping
    }

    /// Lets so many of each owner go.
    fn evict_of(&mut self, mut wanted: HashMap<UserId, usize>) {
        self.by_key.retain(|_, queue| {
            queue.retain(|idle| {
                let owner = idle.connection.owner();
                match owner.and_then(|owner| wanted.get_mut(&owner)) {
                    Some(more @ 1..) => {
                        *more -= 1;
                        false
                    }
                    _ => true,
                }
            });
            !queue.is_empty()
        });
    }

    /// Lets the oldest of all go.
    fn evict(&mut self) -> bool {
        let oldest = self
            .by_key
            .iter()
            .filter_map(|(key, queue)| Some((queue.front()?.since, key)))
            .min_by_key(|(since, _)| *since)
            .map(|(_, key)| key.clone());
        let Some(key) = oldest else { return false };
        if let Some(queue) = self.by_key.get_mut(&key) {
            queue.pop_front();
            if queue.is_empty() {
                self.by_key.remove(&key);
            }
        }
        true
    }
}

/// Lets aged connections go while there are any, and others when room is
/// needed; ends when the pool is empty or gone.
async fn sweep<K: Clone + Eq + Hash + 'static, C: Reusable>(pool: Weak<RefCell<Kept<K, C>>>) {
    let gate = match pool.upgrade() {
        Some(pool) => pool.borrow().gate.clone(),
        None => return,
    };
    let mut presses = 0;
    let mut swept = Instant::now();
    loop {
        match &gate {
            None => sleep(SWEEP_EVERY).await,
            Some(gate) => {
                let mut pressed = pin!(gate.pressed());
                // From here on nothing is missed.
                pressed.as_mut().enable();
                if gate.waiting() == 0 && gate.presses() == presses {
                    let _ = timeout(SWEEP_EVERY, pressed).await;
                }
                presses = gate.presses();
            }
        }
        let Some(pool) = pool.upgrade() else { return };
        let waiting = gate.as_ref().map_or(0, Gate::waiting);
        let of_owners = gate.as_ref().map(Gate::waiting_of_owners);
        let of_owners = of_owners.unwrap_or_default();
        // Whoever presses for himself does not have everybody's looked at each time.
        if waiting > 0 || swept.elapsed() >= SWEEP_EVERY {
            swept = Instant::now();
            pool.borrow_mut().sweep();
        }
        let is_pressed = !of_owners.is_empty();
        if pool.borrow_mut().clear_out(waiting, of_owners) {
            return;
        }
        drop(pool);
        if waiting > 0 {
            // Those who waited go first.
            tokio::task::yield_now().await;
        } else if is_pressed {
            // However often one owner asks, the others' requests come first.
            sleep(PRESSED_PAUSE).await;
        }
    }
}

/// Common servers close idle connections after 5 s; a request must not meet that moment.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// As many as there may be requests at once; what is not needed ages out.
const IDLE_PER_KEY_MAX: usize = 1024;

/// A removed container's connections go within a second.
const SWEEP_EVERY: Duration = Duration::from_millis(500);

/// Between two looks for one owner's own; short beside how long he waits for them.
const PRESSED_PAUSE: Duration = Duration::from_millis(5);

/// A hash in a few cycles. Keys come from routes and containers, not from clients.
#[derive(Debug, Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        let last = rest
            .iter()
            .fold(1, |last, byte| last << 8 | u64::from(*byte));
        self.write_u64(last);
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn finish(&self) -> u64 {
        // Tables look at the upper bits too, where the product is best mixed.
        self.0.rotate_left(26)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::task::LocalSet;

    use crate::listener::Refused;

    use super::*;

    #[derive(Clone)]
    struct Fake {
        number: usize,
        open: Rc<Cell<bool>>,
    }

    impl Reusable for Fake {
        fn owner(&self) -> Option<UserId> {
            None
        }

        fn is_open(&mut self) -> bool {
            self.open.get()
        }
    }

    struct Held(crate::listener::UpstreamPermit);

    impl Reusable for Held {
        fn is_open(&mut self) -> bool {
            true
        }

        fn owner(&self) -> Option<UserId> {
            self.0.owner()
        }
    }

    fn fake(number: usize) -> Fake {
        Fake {
            number,
            open: Rc::new(Cell::new(true)),
        }
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn the_last_one_kept_is_taken_first_and_only_by_its_key() {
        run(async {
            let pool = IdlePool::default();
            pool.put(&"a", fake(1), Instant::now());
            pool.put(&"a", fake(2), Instant::now());
            assert!(pool.take(&"b", Instant::now(), |_| true).is_none());
            let order =
                [(); 3].map(|()| pool.take(&"a", Instant::now(), |_| true).map(|f| f.number));
            assert_eq!(order, [Some(2), Some(1), None]);
            assert!(pool.is_empty());
        });
    }

    #[test]
    fn dead_and_unfit_ones_are_let_go() {
        run(async {
            let pool = IdlePool::default();
            let dead = fake(3);
            pool.put(&"a", fake(1), Instant::now());
            pool.put(&"a", fake(2), Instant::now());
            pool.put(&"a", dead.clone(), Instant::now());
            dead.open.set(false);
            let taken = pool
                .take(&"a", Instant::now(), |f| f.number != 2)
                .map(|f| f.number);
            assert_eq!(taken, Some(1));
            pool.put(&"a", dead, Instant::now());
            assert!(pool.is_empty());
        });
    }

    #[test]
    fn idle_ones_age_out_without_traffic() {
        run(async {
            let pool = IdlePool::default();
            pool.put(&"a", fake(1), Instant::now());
            tokio::time::advance(Duration::from_secs(3)).await;
            pool.put(&"a", fake(2), Instant::now());
            sleep(Duration::from_secs(2)).await;
            assert_eq!(pool.len(), 1);
            sleep(Duration::from_secs(4)).await;
            assert!(pool.is_empty());
            // The sweeper has ended; the next connection starts another.
            pool.put(&"a", fake(3), Instant::now());
            sleep(Duration::from_secs(6)).await;
            assert!(pool.is_empty());
        });
    }

    #[test]
    fn no_more_than_the_limit_is_kept() {
        run(async {
            let pool = IdlePool::default();
            for number in 0..=IDLE_PER_KEY_MAX {
                pool.put(&"a", fake(number), Instant::now());
            }
            assert_eq!(pool.len(), IDLE_PER_KEY_MAX);
            let newest = pool.take(&"a", Instant::now(), |_| true).map(|f| f.number);
            assert_eq!(newest, Some(IDLE_PER_KEY_MAX));
        });
    }

    #[test]
    fn when_room_is_needed_the_oldest_goes() {
        run(async {
            let gate = Gate::new(1, None, 2);
            let pool = IdlePool::under(gate.clone());
            let soon = || Instant::now() + Duration::from_millis(500);
            pool.put(
                &"old",
                Held(gate.admit_upstream(None).unwrap()),
                Instant::now(),
            );
            tokio::time::advance(Duration::from_millis(10)).await;
            pool.put(
                &"young",
                Held(gate.admit_upstream(None).unwrap()),
                Instant::now(),
            );
            let third = gate
                .admit_upstream_by(None, soon(), || !pool.is_empty())
                .await;
            assert!(third.is_ok());
            assert!(pool.take(&"old", Instant::now(), |_| true).is_none());
            let young = pool.take(&"young", Instant::now(), |_| true);
            assert!(young.is_some());
            assert!(
                gate.admit_upstream_by(None, soon(), || !pool.is_empty())
                    .await
                    .is_err()
            );
        });
    }

    /// An owner at his share could have everybody's idle connections let go.
    #[test]
    fn for_a_greedy_owner_only_his_own_go() {
        run(async {
            let gate = Gate::new(1, None, 10);
            let pool = IdlePool::under(gate.clone());
            let soon = || Instant::now() + Duration::from_millis(500);
            let put = |key: &'static str, owner: Option<u64>| {
                let permit = gate
                    .admit_upstream(owner.map(|id| UserId(id as _)))
                    .unwrap();
                pool.put(&key, Held(permit), Instant::now());
            };
            put("a route", None);
            put("his", Some(1));
            put("his other", Some(1));
            put("another's", Some(2));
            let one = Some(UserId(1));
            let busy: Vec<_> = std::iter::from_fn(|| gate.admit_upstream(one).ok()).collect();
            assert_eq!(gate.admit_upstream(one).unwrap_err(), Refused::OwnerLimit);
            let more = gate.admit_upstream_by(one, soon(), || !pool.is_empty());
            let more = more.await.unwrap();
            // One was enough, and whatever he wants, the others' stay and are kept.
            assert_eq!(pool.len(), 3);
            let kept = pool.take(&"a route", Instant::now(), |_| true).unwrap();
            let wanting = gate.admit_upstream_by(one, soon(), || true);
            let (wanting, ()) = tokio::join!(wanting, async {
                pool.put(&"a route", kept, Instant::now());
            });
            drop((busy, more, wanting.unwrap()));
            assert!(pool.take(&"a route", Instant::now(), |_| true).is_some());
            assert!(pool.take(&"another's", Instant::now(), |_| true).is_some());
        });
    }
}
