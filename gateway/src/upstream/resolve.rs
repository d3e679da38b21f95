//! Names of static targets to addresses, remembered for a moment by each thread.
//!
//! A lookup belongs to the name, not to the request that wants it: it runs on
//! by itself, once for all who wait, and leaves what it finds here even if
//! nobody waits any more.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

/// The remembered names of one thread. Clones share them.
#[derive(Clone)]
pub(crate) struct Names(Rc<Inner>);

struct Inner {
    resolver: Resolver,
    known: RefCell<HashMap<Arc<str>, Known>>,
    running: Cell<usize>,
}

type Resolver = Box<dyn Fn(Arc<str>) -> Lookup>;

type Lookup = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>>>>;

#[derive(Default)]
struct Known {
    addresses: Rc<[SocketAddr]>,
    /// Since when the addresses are used without asking again.
    at: Option<Instant>,
    /// Why there are none, and since when.
    failed: Option<(Instant, String)>,
    warned: Option<Instant>,
    /// Closed by the end of the lookup that is under way.
    lookup: Option<watch::Receiver<()>>,
}

impl Default for Names {
    fn default() -> Self {
        Self::new(Box::new(|target| {
            Box::pin(async move {
                let found = tokio::net::lookup_host(&*target).await?;
                Ok(found.take(ADDRESSES_MAX).collect())
            })
        }))
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.0.known.borrow();
        f.debug_tuple("Names").field(&known.len()).finish()
    }
}

impl Names {
    fn new(resolver: Resolver) -> Self {
        Self(Rc::new(Inner {
            resolver,
            known: RefCell::default(),
            running: Cell::new(0),
        }))
    }

    /// All addresses of `target` (`host:port`) by `deadline`; never an empty list.
    ///
    /// If the resolver fails or is silent, the addresses known before are used;
    /// without any it is an error, and a warning at most every 30 s. Must be
    /// called on a `LocalSet`. Cancellation safe: the lookup goes on for others.
    pub(crate) async fn resolve(
        &self,
        target: &Arc<str>,
        deadline: Instant,
    ) -> io::Result<Rc<[SocketAddr]>> {
        if let Ok(literal) = target.parse::<SocketAddr>() {
            return Ok(Rc::new([literal]));
        }
        if let Some(known) = self.recall(target) {
            return known;
        }
        let Some(mut lookup) = self.lookup(target) else {
            return self.fall_back(target, "too many names are being looked up");
        };
        // Whoever has addresses to fall back to needs time for connecting to them.
        let until = match self.has_addresses(target) {
            true => deadline - deadline.saturating_duration_since(Instant::now()) / 2,
            false => deadline,
        };
        // Nothing is ever sent: the sender goes when the lookup has ended.
        let _ = timeout_at(until, lookup.changed()).await;
        match self.recall(target) {
            Some(known) => known,
            None => self.fall_back(target, "the resolver does not answer"),
        }
    }

    /// What is known well enough not to ask for it.
    fn recall(&self, target: &Arc<str>) -> Option<io::Result<Rc<[SocketAddr]>>> {
        let names = self.0.known.borrow();
        let known = names.get(target)?;
        if known.at.is_some_and(|at| at.elapsed() < FRESH) {
            return Some(Ok(Rc::clone(&known.addresses)));
        }
        let (at, error) = known.failed.as_ref()?;
        (at.elapsed() < FAILED).then(|| Err(io::Error::other(error.clone())))
    }

    fn has_addresses(&self, target: &Arc<str>) -> bool {
        let names = self.0.known.borrow();
        names.get(target).is_some_and(|k| !k.addresses.is_empty())
    }

    /// The lookup of `target` that is under way, begun if need be; none if too many are.
    fn lookup(&self, target: &Arc<str>) -> Option<watch::Receiver<()>> {
        let mut names = self.0.known.borrow_mut();
        if names.len() >= NAMES_MAX && !names.contains_key(target) {
            names.retain(|_, known| known.lookup.is_some());
        }
        let known = names.entry(Arc::clone(target)).or_default();
        if let Some(lookup) = &known.lookup {
            return Some(lookup.clone());
        }
        if self.0.running.get() >= LOOKUPS_MAX {
            return None;
        }
        self.0.running.set(self.0.running.get() + 1);
        let (done, lookup) = watch::channel(());
        known.lookup = Some(lookup.clone());
        let found = (self.0.resolver)(Arc::clone(target));
        let (names, target) = (self.clone(), Arc::clone(target));
        tokio::task::spawn_local(async move {
            names.learn(&target, found.await);
            drop(done);
        });
        Some(lookup)
    }

    /// A lookup has ended.
    fn learn(&self, target: &Arc<str>, found: io::Result<Vec<SocketAddr>>) {
        self.0.running.set(self.0.running.get() - 1);
        let error = {
            let mut names = self.0.known.borrow_mut();
            let known = names.entry(Arc::clone(target)).or_default();
            known.lookup = None;
            match found {
                Ok(addresses) if !addresses.is_empty() => {
                    known.addresses = addresses.into();
                    known.at = Some(Instant::now());
                    known.failed = None;
                    return;
                }
                Ok(_) => "the name has no addresses".to_owned(),
                Err(error) => error.to_string(),
            }
        };
        // Whoever waits finds it by `recall`.
        let _ = self.fall_back(target, &error);
    }

    /// Nothing answered for `target`: warned about, at most every 30 s, and what was known goes on.
    fn fall_back(&self, target: &Arc<str>, error: &str) -> io::Result<Rc<[SocketAddr]>> {
        let mut names = self.0.known.borrow_mut();
        let known = names.entry(Arc::clone(target)).or_default();
        let now = Instant::now();
        if known.warned.is_none_or(|at| at + WARN_EVERY <= now) {
            known.warned = Some(now);
            warn!(%target, %error, "upstream does not resolve");
        }
        if known.addresses.is_empty() {
            known.failed = Some((now, error.to_owned()));
            return Err(io::Error::other(error.to_owned()));
        }
        // Stale is better than nothing; ask again soon, not with every request.
        known.at = Some(now);
        Ok(Rc::clone(&known.addresses))
    }
}

/// How long an answer of the resolver is used.
const FRESH: Duration = Duration::from_secs(5);

/// How long its failure is.
const FAILED: Duration = Duration::from_secs(1);

const WARN_EVERY: Duration = Duration::from_secs(30);

/// Addresses tried for one name.
const ADDRESSES_MAX: usize = 8;

/// Names remembered; targets come from routes.yaml, whose past versions leave theirs behind.
const NAMES_MAX: usize = 4096;

/// Lookups under way at once; each occupies a thread for as long as the resolver is silent.
const LOOKUPS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::future::join_all;
    use tokio::task::LocalSet;

    use super::*;

    const WAIT: Duration = Duration::from_secs(3);

    /// A resolver that gives these answers, then hangs; and how often it was asked.
    fn scripted(answers: Vec<io::Result<Vec<SocketAddr>>>) -> (Names, Rc<Cell<usize>>) {
        let asked = Rc::new(Cell::new(0));
        let count = Rc::clone(&asked);
        let answers = RefCell::new(answers.into_iter());
        let names = Names::new(Box::new(move |_| {
            count.set(count.get() + 1);
            match answers.borrow_mut().next() {
                Some(answer) => Box::pin(async { answer }),
                None => Box::pin(pending()),
            }
        }));
        (names, asked)
    }

    fn target() -> Arc<str> {
        "somewhere.test:80".into()
    }

    fn address() -> SocketAddr {
        "192.0.2.1:80".parse().unwrap()
    }

    async fn ask(names: &Names) -> io::Result<Rc<[SocketAddr]>> {
        names.resolve(&target(), Instant::now() + WAIT).await
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn literals_need_no_resolver() {
        run(async {
            let (names, asked) = scripted(vec![]);
            let resolved = names.resolve(&"[::1]:80".into(), Instant::now()).await;
            assert_eq!(&*resolved.unwrap(), ["[::1]:80".parse().unwrap()]);
            assert_eq!(asked.get(), 0);
        });
    }

    #[test]
    fn the_last_good_addresses_outlive_a_resolver_that_fails() {
        run(async {
            let away = || Err(io::Error::other("away"));
            let (names, asked) = scripted(vec![away(), Ok(vec![address()]), away()]);
            assert!(ask(&names).await.is_err());
            // The failure is remembered too, but not for long.
            assert!(ask(&names).await.is_err());
            assert_eq!(asked.get(), 1);
            tokio::time::advance(FAILED).await;
            assert_eq!(&*ask(&names).await.unwrap(), [address()]);
            tokio::time::advance(FRESH).await;
            assert_eq!(&*ask(&names).await.unwrap(), [address()]);
            assert_eq!(asked.get(), 3);
        });
    }

    #[test]
    fn the_last_good_addresses_outlive_a_resolver_that_hangs() {
        run(async {
            let (names, asked) = scripted(vec![Ok(vec![address()])]);
            ask(&names).await.unwrap();
            tokio::time::advance(FRESH).await;
            let begun = Instant::now();
            assert_eq!(&*ask(&names).await.unwrap(), [address()]);
            assert!(begun.elapsed() < WAIT, "time is left for connecting");
            // The next ones do not wait at all, and nobody asks twice.
            let begun = Instant::now();
            assert_eq!(&*ask(&names).await.unwrap(), [address()]);
            assert!(begun.elapsed().is_zero());
            tokio::time::advance(FRESH).await;
            assert_eq!(&*ask(&names).await.unwrap(), [address()]);
            assert_eq!(asked.get(), 2);
        });
    }

    #[test]
    fn a_resolver_that_never_answers_is_asked_once_and_waited_for_until_the_deadline() {
        run(async {
            let (names, asked) = scripted(vec![]);
            let begun = Instant::now();
            let asking = join_all((0..100).map(|_| ask(&names))).await;
            assert!(asking.iter().all(Result::is_err));
            assert!(begun.elapsed() <= WAIT + Duration::from_millis(2));
            assert_eq!(asked.get(), 1);
        });
    }

    #[test]
    fn an_answer_that_nobody_waited_for_is_used() {
        run(async {
            let names = Names::new(Box::new(|_| {
                Box::pin(async {
                    tokio::time::sleep(2 * WAIT).await;
                    Ok(vec![address()])
                })
            }));
            assert!(ask(&names).await.is_err());
            tokio::time::sleep(WAIT).await;
            let begun = Instant::now();
            assert_eq!(&*ask(&names).await.unwrap(), [address()]);
            assert!(begun.elapsed() < WAIT);
        });
    }

    #[test]
    fn hanging_lookups_are_limited_in_number() {
        run(async {
            let (names, asked) = scripted(vec![]);
            let asking = (0..2 * LOOKUPS_MAX).map(async |n| {
                let target = format!("name{n}.test:80").into();
                names.resolve(&target, Instant::now() + WAIT).await
            });
            assert!(join_all(asking).await.iter().all(Result::is_err));
            assert_eq!(asked.get(), LOOKUPS_MAX);
        });
    }
}
