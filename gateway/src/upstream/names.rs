//! Names of static targets and their addresses, kept up to date in the background.
//!
//! A name is asked about before anybody needs it and again before its answer
//! expires, on the control runtime; the data threads read what is known. An
//! answer that could not be renewed goes on for a while: a resolver that is away
//! takes no upstream with it. Names that nobody uses are not asked about.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::dns::{AskError, Found};

/// Who answers: `host` without a port.
pub(crate) type Ask = Arc<dyn Fn(Arc<str>) -> Answer + Send + Sync>;

/// The answer of one lookup.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Found, AskError>> + Send>>;

/// Makes names; one per process. Clones share it.
#[derive(Clone)]
pub(crate) struct Directory(Arc<Inner>);

struct Inner {
    ask: Ask,
    runtime: Handle,
    /// What times are counted from.
    epoch: Instant,
    /// Lookups under way at once; each may occupy a thread while the resolver is silent.
    lookups: Semaphore,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").finish_non_exhaustive()
    }
}

/// What is known of a name.
#[derive(Clone, Debug, Default)]
struct Known {
    addresses: Arc<[SocketAddr]>,
    /// Until when it is used without asking; none before the first answer.
    fresh_until: Option<Instant>,
    /// Until when the addresses may be used at the longest, whatever the resolver does.
    good_until: Option<Instant>,
    /// Why the last lookup brought nothing.
    error: Option<Arc<str>>,
}

/// `host:port`, and the addresses it stands for. Its lookups end with it.
pub(crate) struct Name {
    text: Arc<str>,
    known: Source,
    /// Where the next connection begins among several addresses.
    turn: AtomicUsize,
}

enum Source {
    Literal(Arc<[SocketAddr]>),
    Looked(Looked),
}

struct Looked {
    known: watch::Receiver<Known>,
    life: Arc<Life>,
}

/// What the task of a name shares with its users.
struct Life {
    epoch: Instant,
    /// When the addresses were last wanted, milliseconds after the epoch.
    used: AtomicU64,
    /// Somebody waited in vain for the lookup that is under way.
    silent: AtomicBool,
    /// Somebody waits for an answer.
    wanted: Notify,
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Name").field(&self.text).finish()
    }
}

impl Directory {
    /// Names that `ask` answers, by tasks on `runtime`.
    pub(crate) fn new(ask: Ask, runtime: Handle) -> Self {
        Self(Arc::new(Inner {
            ask,
            runtime,
            epoch: Instant::now(),
            lookups: Semaphore::new(LOOKUPS_MAX),
        }))
    }

    /// The name `text` (`host:port`). Its first lookup begins at once.
    pub(crate) fn name(&self, text: &str) -> Name {
        let known = match text.parse::<SocketAddr>() {
            Ok(literal) => Source::Literal(Arc::new([literal])),
            Err(_) => Source::Looked(self.follow(text)),
        };
        Name {
            text: text.into(),
            known,
            turn: AtomicUsize::new(0),
        }
    }

    fn follow(&self, text: &str) -> Looked {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        let (sender, known) = watch::channel(Known::default());
        let life = Arc::new(Life {
            epoch: self.0.epoch,
            used: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            wanted: Notify::new(),
        });
        let task = Follower {
            directory: self.clone(),
            host: host.into(),
            port: port.parse().unwrap_or_default(),
            life: Arc::clone(&life),
            sender,
            warned: None,
            failures: 0,
        };
        life.touch(Instant::now());
        self.0.runtime.spawn(task.run());
        Looked { known, life }
    }
}

impl Name {
    /// `host:port`.
    pub(crate) fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// All addresses by `deadline`; never an empty list. Each call begins at
    /// another one, so that connections spread over them.
    ///
    /// Waits only if nothing is known or it has expired. Cancellation safe.
    ///
    /// # Errors
    /// There is no address, known or stale.
    pub(crate) async fn addresses(&self, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
        let known = match &self.known {
            Source::Literal(literal) => return Ok(literal.to_vec()),
            Source::Looked(looked) => looked.addresses(deadline).await?,
        };
        let mut addresses = known.to_vec();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if let Some(begin) = turn.checked_rem(addresses.len()) {
            addresses.rotate_left(begin);
        }
        Ok(addresses)
    }
}

impl Looked {
    async fn addresses(&self, deadline: Instant) -> io::Result<Arc<[SocketAddr]>> {
        let now = Instant::now();
        self.life.touch(now);
        let mut receiver = self.known.clone();
        let known = receiver.borrow_and_update().clone();
        if known.fresh_until.is_some_and(|until| now < until) {
            return known.usable(now);
        }
        self.life.wanted.notify_one();
        if known.addresses.is_empty() || known.has_expired(now) {
            let _ = timeout_at(deadline, receiver.changed()).await;
        } else if known.error.is_none() && !self.life.silent.load(Ordering::Relaxed) {
            // Whoever has addresses to fall back to needs time for connecting to them.
            let half = deadline.saturating_duration_since(now) / 2;
            let waited = timeout_at(now + half, receiver.changed()).await;
            // One waits in vain, not each of them.
            self.life.silent.store(waited.is_err(), Ordering::Relaxed);
        }
        let known = receiver.borrow().clone();
        known.usable(Instant::now())
    }
}

impl Known {
    /// Nobody asked for so long that the addresses may be anybody's by now.
    fn has_expired(&self, now: Instant) -> bool {
        self.good_until.is_some_and(|until| until <= now)
    }

    fn usable(self, now: Instant) -> io::Result<Arc<[SocketAddr]>> {
        if !self.addresses.is_empty() && !self.has_expired(now) {
            return Ok(self.addresses);
        }
        let error = self.error.as_deref();
        Err(io::Error::other(
            error.unwrap_or("the resolver does not answer").to_owned(),
        ))
    }
}

impl Life {
    fn touch(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.epoch).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        self.used.store(millis, Ordering::Relaxed);
    }

    fn idle(&self, now: Instant) -> Duration {
        let used = Duration::from_millis(self.used.load(Ordering::Relaxed));
        now.saturating_duration_since(self.epoch + used)
    }
}

/// The task that keeps one name up to date.
struct Follower {
    directory: Directory,
    host: Arc<str>,
    port: u16,
    life: Arc<Life>,
    /// Closed when the name is dropped.
    sender: watch::Sender<Known>,
    warned: Option<Instant>,
    /// Lookups that failed in a row.
    failures: u32,
}

impl Follower {
    async fn run(mut self) {
        while !self.sender.is_closed() {
            let again = self.look().await;
            let again = Instant::now() + again;
            // Nobody has wanted it for a while: the next one who does will say so.
            let asleep = self.life.idle(Instant::now()) > IDLE;
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(again), if !asleep => break,
                    () = self.life.wanted.notified() => {}
                    () = self.sender.closed() => return,
                }
                // Whoever waited may have been answered by the last lookup.
                let fresh_until = self.sender.borrow().fresh_until;
                if fresh_until.is_none_or(|until| until <= Instant::now()) {
                    break;
                }
            }
        }
    }

    /// One lookup. After how long the next one is due.
    async fn look(&mut self) -> Duration {
        let inner = &self.directory.0;
        let found = {
            let _slot = inner.lookups.acquire().await;
            timeout(LOOKUP_MAX, (inner.ask)(Arc::clone(&self.host))).await
        };
        self.life.silent.store(false, Ordering::Relaxed);
        let now = Instant::now();
        match found {
            Ok(Ok(found)) if !found.addresses.is_empty() => self.learned(found, now),
            Ok(Ok(_)) => self.failed("the name has no addresses", true, now),
            Ok(Err(error)) => self.failed(&error.to_string(), error.is_final(), now),
            Err(_) => self.failed("the resolver does not answer", false, now),
        }
    }

    fn learned(&mut self, found: Found, now: Instant) -> Duration {
        let ttl = found.ttl.clamp(TTL_MIN, TTL_MAX);
        let port = self.port;
        let socket = |address: IpAddr| SocketAddr::new(address, port);
        let addresses: Arc<[_]> = found
            .addresses
            .into_iter()
            .take(ADDRESSES_MAX)
            .map(socket)
            .collect();
        if self.failures > 0 {
            info!(host = %self.host, "upstream resolves again");
        }
        self.failures = 0;
        self.warned = None;
        self.sender.send_modify(|known| {
            known.addresses = addresses;
            known.good_until = Some(now + ttl + STALE_MAX);
            known.fresh_until = Some(now + ttl);
            known.error = None;
        });
        // Before it expires, so that no request waits.
        ttl.mul_f64(0.8)
    }

    /// `definite`: the resolver says that there are none, it is not away.
    fn failed(&mut self, error: &str, definite: bool, now: Instant) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let (fresh, expired) = {
            let known = self.sender.borrow();
            (known.fresh_until, known.has_expired(now))
        };
        // A name that is gone is gone when it is said twice: one answer may be a mishap.
        let gone = definite && self.failures > 1;
        let stale = !self.sender.borrow().addresses.is_empty() && !expired && !gone;
        let again = FAILED
            .saturating_mul(1 << self.failures.min(4).saturating_sub(1))
            .min(FAILED_MAX);
        if self.warned.is_none_or(|at| at + WARN_EVERY <= now) {
            self.warned = Some(now);
            let host = &self.host;
            if stale {
                warn!(%host, %error, "upstream does not resolve; its last known addresses are used");
            } else {
                warn!(%host, %error, "upstream does not resolve");
            }
        }
        self.sender.send_modify(|known| {
            if !stale {
                known.addresses = Arc::default();
            }
            // Not asked again by every request.
            known.fresh_until = fresh.max(Some(now + again));
            known.error = Some(error.into());
        });
        again
    }
}

/// How long the failure of a lookup is taken for an answer; doubled with each further one.
const FAILED: Duration = Duration::from_secs(1);

const FAILED_MAX: Duration = Duration::from_secs(10);

/// An answer may say that it is valid for no time at all.
const TTL_MIN: Duration = Duration::from_secs(1);

/// Files and mistakes have no time to live.
const TTL_MAX: Duration = Duration::from_secs(300);

/// How long after its time an answer may be used while nobody gives another.
const STALE_MAX: Duration = Duration::from_secs(3600);

/// Longest lookup, all servers and search domains together.
const LOOKUP_MAX: Duration = Duration::from_secs(15);

/// A name that nobody has used for so long is no longer asked about.
const IDLE: Duration = Duration::from_secs(120);

const WARN_EVERY: Duration = Duration::from_secs(30);

/// Addresses kept of one name.
const ADDRESSES_MAX: usize = 16;

const LOOKUPS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::pending;
    use std::sync::Mutex;

    use futures_util::future::join_all;

    use super::*;

    const WAIT: Duration = Duration::from_secs(3);

    type Script = Vec<Result<(u8, u64), AskError>>;

    /// A resolver that gives these answers (last byte of the address, seconds to
    /// live), then is silent; and how often it was asked.
    fn scripted(answers: Script) -> (Directory, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let answers = Mutex::new(VecDeque::from(answers));
        let ask: Ask = Arc::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            match answers.lock().unwrap().pop_front() {
                None => Box::pin(pending()),
                Some(answer) => Box::pin(async move {
                    answer.map(|(byte, ttl)| Found {
                        addresses: vec![IpAddr::from([192, 0, 2, byte])],
                        ttl: Duration::from_secs(ttl),
                    })
                }),
            }
        });
        (Directory::new(ask, Handle::current()), asked)
    }

    fn away() -> Result<(u8, u64), AskError> {
        Err(AskError::Away("away".into()))
    }

    fn gone() -> Result<(u8, u64), AskError> {
        Err(AskError::NoSuchName)
    }

    /// The last bytes of the addresses.
    async fn ask(name: &Name) -> Option<Vec<u8>> {
        let found = name.addresses(Instant::now() + WAIT).await.ok()?;
        let last = |address: &SocketAddr| match address.ip() {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => 0,
        };
        Some(found.iter().map(last).collect())
    }

    /// Lets time pass in small steps, so that tasks run in between.
    async fn pass(seconds: u64) {
        for _ in 0..seconds * 10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn literals_need_no_resolver() {
        let (directory, asked) = scripted(vec![]);
        let name = directory.name("[::1]:80");
        let found = name.addresses(Instant::now()).await.unwrap();
        assert_eq!(found, ["[::1]:80".parse().unwrap()]);
        assert_eq!(asked.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_answer_is_in_use_before_the_old_one_expires_and_nobody_waits() {
        let (directory, asked) = scripted(vec![Ok((1, 10)), Ok((2, 10))]);
        let name = directory.name("a.test:80");
        assert_eq!(ask(&name).await, Some(vec![1]));
        pass(7).await;
        assert_eq!(ask(&name).await, Some(vec![1]));
        pass(2).await;
        let begun = Instant::now();
        assert_eq!(ask(&name).await, Some(vec![2]));
        assert!(begun.elapsed().is_zero());
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_answer_outlives_a_resolver_that_fails_but_not_for_ever() {
        let mut answers = vec![Ok((1, 10))];
        answers.extend((0..1000).map(|_| away()));
        answers.push(Ok((2, 10)));
        let (directory, _) = scripted(answers);
        let name = directory.name("a.test:80");
        assert_eq!(ask(&name).await, Some(vec![1]));
        for _ in 0..35 {
            pass(100).await;
            assert_eq!(ask(&name).await, Some(vec![1]));
        }
        pass(200).await;
        assert_eq!(ask(&name).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_answer_outlives_a_resolver_that_is_silent() {
        let (directory, asked) = scripted(vec![Ok((1, 10))]);
        let name = directory.name("a.test:80");
        assert_eq!(ask(&name).await, Some(vec![1]));
        pass(11).await;
        let begun = Instant::now();
        assert_eq!(ask(&name).await, Some(vec![1]));
        assert!(begun.elapsed() < WAIT, "time is left for connecting");
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        // One has waited; the others do not, now and later.
        for _ in 0..60 {
            let begun = Instant::now();
            assert_eq!(ask(&name).await, Some(vec![1]));
            assert!(begun.elapsed().is_zero());
            pass(1).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_gone_is_not_used_on_but_one_mishap_is_none() {
        let (directory, _) = scripted(vec![
            Ok((1, 10)),
            gone(),
            Ok((2, 10)),
            gone(),
            gone(),
            Ok((3, 10)),
        ]);
        let name = directory.name("a.test:80");
        let mut seen = Vec::new();
        for _ in 0..40 {
            seen.push(ask(&name).await.map_or(0, |last| last[0]));
            pass(1).await;
        }
        seen.dedup();
        assert_eq!(seen[..4], [1, 2, 0, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_remembered_but_not_for_long() {
        let (directory, asked) = scripted(vec![away(), Ok((1, 10))]);
        let name = directory.name("a.test:80");
        assert_eq!(ask(&name).await, None);
        assert_eq!(ask(&name).await, None);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        pass(2).await;
        assert_eq!(ask(&name).await, Some(vec![1]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_resolver_is_asked_once_and_waited_for_until_the_deadline() {
        let (directory, asked) = scripted(vec![]);
        let name = directory.name("a.test:80");
        let begun = Instant::now();
        let asking = join_all((0..100).map(|_| ask(&name))).await;
        assert!(asking.iter().all(Option::is_none));
        assert!(begun.elapsed() <= WAIT + Duration::from_millis(2));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn unused_names_are_left_alone_until_they_are_wanted() {
        let (directory, asked) = scripted((1..200).map(|n| Ok((n, 10))).collect());
        let name = directory.name("a.test:80");
        pass(200).await;
        let before = asked.load(Ordering::SeqCst);
        pass(200).await;
        assert_eq!(asked.load(Ordering::SeqCst), before);
        let next = u8::try_from(before + 1).unwrap();
        assert_eq!(ask(&name).await, Some(vec![next]), "a fresh answer");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_grew_too_old_while_nobody_asked_is_not_used_once_more() {
        let (directory, asked) = scripted((0..30).map(|_| Ok((1, 10))).collect());
        let name = directory.name("a.test:80");
        assert_eq!(ask(&name).await, Some(vec![1]));
        pass(200).await;
        let before = asked.load(Ordering::SeqCst);
        assert!(before < 30, "it sleeps");
        pass(3600).await;
        assert_eq!(asked.load(Ordering::SeqCst), before);
        // An answer that comes is waited for.
        assert_eq!(ask(&name).await, Some(vec![1]));
        let (directory, _) = scripted(vec![Ok((1, 10))]);
        let name = directory.name("a.test:80");
        assert_eq!(ask(&name).await, Some(vec![1]));
        pass(3800).await;
        let begun = Instant::now();
        assert_eq!(ask(&name).await, None, "the resolver is silent");
        assert!(begun.elapsed() <= WAIT + Duration::from_millis(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_name_is_forgotten() {
        let (directory, asked) = scripted((1..200).map(|n| Ok((n, 1))).collect());
        let name = directory.name("a.test:80");
        pass(5).await;
        drop(name);
        pass(1).await;
        let before = asked.load(Ordering::SeqCst);
        pass(60).await;
        assert_eq!(asked.load(Ordering::SeqCst), before);
    }

    #[tokio::test(start_paused = true)]
    async fn lookups_are_limited_in_number() {
        let (directory, asked) = scripted(vec![]);
        let names: Vec<_> = (0..2 * LOOKUPS_MAX)
            .map(|n| directory.name(&format!("name{n}.test:80")))
            .collect();
        let asking = names.iter().map(ask);
        assert!(join_all(asking).await.iter().all(Option::is_none));
        assert_eq!(asked.load(Ordering::SeqCst), LOOKUPS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_spread_over_all_addresses() {
        let three: Ask = Arc::new(|_| {
            Box::pin(async {
                Ok(Found {
                    addresses: (1..=3).map(|n| IpAddr::from([192, 0, 2, n])).collect(),
                    ttl: Duration::from_secs(60),
                })
            })
        });
        let name = Directory::new(three, Handle::current()).name("a.test:80");
        let mut firsts = Vec::new();
        for _ in 0..4 {
            firsts.push(ask(&name).await.unwrap()[0]);
        }
        assert_eq!(firsts, [1, 2, 3, 1]);
    }
}
