//! The memory that SSH connections may fill with what waits: one budget, shared by owner.
//!
//! Every byte that waits for a container or a client is counted thrice: in its
//! channel's [`Holding`], in the [`Account`] of the container's owner, and in
//! the [`Budget`] of the process; by atomics, for this is the data path. From
//! half of the limit on, who holds more than an even share is granted little
//! ([`Account::is_pressed`]), which stops what keeps to its windows. Beyond the
//! limit the largest channel of the owner who holds the most is told to
//! close, and no other's. Nothing here does I/O.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use edd_route::UserId;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::telemetry::Metrics;

/// Of the process.
#[derive(Debug)]
pub(crate) struct Budget {
    /// In bytes.
    limit: i64,
    /// Bytes that wait, all owners.
    total: AtomicI64,
    /// Bytes of channels that have been told to close and have not yet.
    leaving: AtomicI64,
    /// How many `owners` there are.
    owners_count: AtomicUsize,
    /// Locked when a connection logs in or ends, and to look for who has to go.
    owners: Mutex<HashMap<UserId, Weak<Account>>>,
    metrics: Metrics,
}

/// Of one owner of containers, while any connection to these lives.
#[derive(Debug)]
pub(crate) struct Account {
    owner: UserId,
    budget: Arc<Budget>,
    /// Bytes that wait.
    held: AtomicI64,
    next: AtomicU64,
    /// Locked when a channel opens or ends, and to look for who has to go.
    channels: Mutex<HashMap<u64, Weak<Share>>>,
}

/// Of one channel. What it still counts ends with it.
#[derive(Debug)]
pub(crate) struct Holding(Arc<Share>);

#[derive(Debug)]
struct Share {
    account: Arc<Account>,
    number: u64,
    held: AtomicI64,
    /// What it held when it was told to close.
    leaving: AtomicI64,
    is_leaving: AtomicBool,
    leave: CancellationToken,
}

impl Budget {
    /// For `limit` bytes.
    pub(crate) fn new(limit: u64, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            total: AtomicI64::new(0),
            leaving: AtomicI64::new(0),
            owners_count: AtomicUsize::new(0),
            owners: Mutex::default(),
            metrics,
        })
    }

    /// The account of an owner. Hold it while the connection lives.
    pub(crate) fn account(self: &Arc<Self>, owner: UserId) -> Arc<Account> {
        let mut owners = lock(&self.owners);
        if let Some(account) = owners.get(&owner).and_then(Weak::upgrade) {
            return account;
        }
        let account = Arc::new(Account {
            owner,
            budget: Arc::clone(self),
            held: AtomicI64::new(0),
            next: AtomicU64::new(0),
            channels: Mutex::default(),
        });
        owners.insert(owner, Arc::downgrade(&account));
        self.owners_count.store(owners.len(), Ordering::Relaxed);
        account
    }

    fn is_over(&self) -> bool {
        let leaving = self.leaving.load(Ordering::Relaxed);
        self.total.load(Ordering::Relaxed) - leaving > self.limit
    }

    /// Tells channels to close until what stays is within the limit. Never waits: who finds
    /// somebody else at it leaves it to him.
    #[cold]
    fn relieve(&self) {
        let owners = match self.owners.try_lock() {
            Ok(owners) => owners,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // Those whose last holder goes meanwhile lock `owners` when they are dropped.
        let accounts: Vec<Arc<Account>> = owners.values().filter_map(Weak::upgrade).collect();
        drop(owners);
        while self.is_over() {
            let greediest = accounts.iter().max_by_key(|account| account.staying());
            let Some(share) = greediest.and_then(|account| account.largest()) else {
                return;
            };
            self.send_away(&share);
        }
    }

    fn send_away(&self, share: &Share) {
        // Two may be at it, each with a list of its own.
        if share.is_leaving.swap(true, Ordering::Relaxed) {
            return;
        }
        let held = share.held.load(Ordering::Relaxed);
        share.leaving.store(held, Ordering::Relaxed);
        self.leaving.fetch_add(held, Ordering::Relaxed);
        self.metrics.ssh_buffer_limit_closed();
        warn!(
            owner = share.account.owner.0,
            bytes = held,
            limit = self.limit,
            "ssh buffers are full, the largest channel of the greediest owner is closed"
        );
        share.leave.cancel();
    }
}

impl Account {
    /// A channel that holds nothing yet.
    pub(crate) fn open(self: &Arc<Self>) -> Holding {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let share = Arc::new(Share {
            account: Arc::clone(self),
            number,
            held: AtomicI64::new(0),
            leaving: AtomicI64::new(0),
            is_leaving: AtomicBool::new(false),
            leave: CancellationToken::new(),
        });
        lock(&self.channels).insert(number, Arc::downgrade(&share));
        Holding(share)
    }

    /// Whether this owner holds more than an even share of what is getting scarce.
    pub(crate) fn is_pressed(&self) -> bool {
        let scarce = self.budget.limit / 2;
        if self.budget.total.load(Ordering::Relaxed) <= scarce {
            return false;
        }
        let owners = self.budget.owners_count.load(Ordering::Relaxed);
        let share = scarce / i64::try_from(owners).unwrap_or(i64::MAX).max(1);
        self.held.load(Ordering::Relaxed) > share
    }

    /// What it holds in channels that have not been told to close.
    fn staying(&self) -> i64 {
        self.shares().iter().map(|share| share.staying()).sum()
    }

    /// The channel that holds the most and has not been told to close.
    fn largest(&self) -> Option<Arc<Share>> {
        let shares = self.shares().into_iter();
        let staying = shares.filter(|share| share.staying() > 0);
        staying.max_by_key(|share| share.staying())
    }

    fn shares(&self) -> Vec<Arc<Share>> {
        let channels = lock(&self.channels);
        channels.values().filter_map(Weak::upgrade).collect()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut owners = lock(&self.budget.owners);
        // Another may stand there by now.
        if owners
            .get(&self.owner)
            .is_some_and(|account| account.strong_count() == 0)
        {
            owners.remove(&self.owner);
        }
        let count = owners.len();
        self.budget.owners_count.store(count, Ordering::Relaxed);
    }
}

impl Holding {
    /// Counts bytes that wait.
    pub(crate) fn add(&self, bytes: usize) {
        let share = &self.0;
        share.change(signed(bytes));
        let budget = &share.account.budget;
        if budget.is_over() {
            budget.relieve();
        }
    }

    /// Counts bytes that do not wait any more.
    pub(crate) fn sub(&self, bytes: usize) {
        self.0.change(-signed(bytes));
    }

    /// Whether its owner holds more than an even share of what is getting scarce.
    pub(crate) fn is_pressed(&self) -> bool {
        self.0.account.is_pressed()
    }

    /// Cancelled when the channel has to close.
    pub(crate) fn leave(&self) -> &CancellationToken {
        &self.0.leave
    }
}

impl Share {
    fn change(&self, bytes: i64) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.account.held.fetch_add(bytes, Ordering::Relaxed);
        let budget = &self.account.budget;
        budget.total.fetch_add(bytes, Ordering::Relaxed);
    }

    fn staying(&self) -> i64 {
        match self.is_leaving.load(Ordering::Relaxed) {
            true => 0,
            false => self.held.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.change(-self.held.load(Ordering::Relaxed));
        let leaving = self.leaving.load(Ordering::Relaxed);
        let budget = &self.account.budget;
        budget.leaving.fetch_sub(leaving, Ordering::Relaxed);
        lock(&self.account.channels).remove(&self.number);
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    fn budget(limit: u64) -> (Arc<Budget>, Registry) {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        (Budget::new(limit, metrics), registry)
    }

    fn is_leaving(holding: &Holding) -> bool {
        holding.leave().is_cancelled()
    }

    #[test]
    fn the_largest_channel_of_the_greediest_owner_goes_and_no_other() {
        let (budget, registry) = budget(100);
        let [greedy, modest] = [1, 2].map(|owner| budget.account(UserId(owner)));
        // The largest of all channels is the modest one's.
        let small: Vec<_> = (0..4).map(|_| greedy.open()).collect();
        let large = modest.open();
        large.add(30);
        for (holding, bytes) in small.iter().zip([15, 20, 15, 15]) {
            holding.add(bytes);
        }
        assert!(!small.iter().any(is_leaving) && !is_leaving(&large));
        large.add(6);
        let gone: Vec<bool> = small.iter().map(is_leaving).collect();
        assert_eq!(gone, [false, true, false, false]);
        assert!(!is_leaving(&large));
        // While it has not gone yet, nobody else has to.
        large.add(4);
        assert_eq!(small.iter().filter(|one| is_leaving(one)).count(), 1);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("ssh_buffer_limit_closed_total 1"), "{text}");
    }

    #[test]
    fn what_ends_is_given_back() {
        let (budget, _registry) = budget(100);
        let account = budget.account(UserId(1));
        let holding = account.open();
        holding.add(70);
        holding.sub(20);
        holding.add(60);
        assert!(is_leaving(&holding));
        assert_eq!(budget.leaving.load(Ordering::Relaxed), 110);
        drop(holding);
        assert_eq!(budget.total.load(Ordering::Relaxed), 0);
        assert_eq!(budget.leaving.load(Ordering::Relaxed), 0);
        assert!(lock(&account.channels).is_empty());
        drop(account);
        assert!(lock(&budget.owners).is_empty());
        assert_eq!(budget.owners_count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn connections_of_one_owner_share_an_account() {
        let (budget, _registry) = budget(100);
        let first = budget.account(UserId(1));
        let holding = first.open();
        holding.add(60);
        let second = budget.account(UserId(1));
        assert!(Arc::ptr_eq(&first, &second));
        assert!(second.is_pressed());
        assert!(!budget.account(UserId(2)).is_pressed(), "who holds nothing");
    }

    #[test]
    fn an_even_share_is_never_pressed() {
        let (budget, _registry) = budget(100);
        let accounts = [1, 2].map(|owner| budget.account(UserId(owner)));
        let [greedy, modest] = accounts.each_ref().map(|account| account.open());
        greedy.add(45);
        assert!(!accounts[0].is_pressed(), "nothing is scarce");
        modest.add(10);
        assert!(accounts[0].is_pressed());
        assert!(!accounts[1].is_pressed());
    }

    #[test]
    fn threads_that_come_and_go_leave_nothing_behind() {
        let (budget, _registry) = budget(1000);
        std::thread::scope(|scope| {
            for owner in 0..4 {
                let budget = &budget;
                scope.spawn(move || {
                    for _ in 0..1000 {
                        let account = budget.account(UserId(owner % 3));
                        let holdings = [account.open(), account.open()];
                        for holding in &holdings {
                            holding.add(300);
                            holding.sub(100);
                        }
                    }
                });
            }
        });
        assert_eq!(budget.total.load(Ordering::Relaxed), 0);
        assert_eq!(budget.leaving.load(Ordering::Relaxed), 0);
        assert!(lock(&budget.owners).is_empty());
    }
}
