//! Names of static targets to addresses, remembered for a moment by each thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

/// The remembered names of one thread. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(Rc<RefCell<HashMap<Arc<str>, Known>>>);

#[derive(Debug, Default)]
struct Known {
    addresses: Rc<[SocketAddr]>,
    at: Option<Instant>,
    warned: Option<Instant>,
}

impl Names {
    /// All addresses of `target` (`host:port`); never an empty list.
    ///
    /// If the resolver fails, the addresses known before are used; without any
    /// it is an error, and a warning at most every 30 s. The caller sets the deadline.
    pub(crate) async fn resolve(&self, target: &Arc<str>) -> io::Result<Rc<[SocketAddr]>> {
        if let Ok(literal) = target.parse::<SocketAddr>() {
            return Ok(Rc::new([literal]));
        }
        if let Some(known) = self.0.borrow().get(target)
            && known.at.is_some_and(|at| at.elapsed() < FRESH)
        {
            return Ok(Rc::clone(&known.addresses));
        }
        let found = match tokio::net::lookup_host(&**target).await {
            Ok(found) => Ok(found.take(ADDRESSES_MAX).collect::<Rc<[_]>>()),
            Err(error) => Err(error),
        };
        self.remember(target, found)
    }

    /// Says that nothing answered for `target`: warned about, at most every 30 s.
    fn remember(
        &self,
        target: &Arc<str>,
        found: io::Result<Rc<[SocketAddr]>>,
    ) -> io::Result<Rc<[SocketAddr]>> {
        let mut names = self.0.borrow_mut();
        if names.len() >= NAMES_MAX && !names.contains_key(target) {
            names.clear();
        }
        let known = names.entry(Arc::clone(target)).or_default();
        let error = match found {
            Ok(addresses) if !addresses.is_empty() => {
                known.addresses = Rc::clone(&addresses);
                known.at = Some(Instant::now());
                return Ok(addresses);
            }
            Ok(_) => io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"),
            Err(error) => error,
        };
        if known.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            known.warned = Some(Instant::now());
            warn!(%target, %error, "upstream does not resolve");
        }
        if known.addresses.is_empty() {
            return Err(error);
        }
        // Stale is better than nothing; ask again soon, not with every request.
        known.at = Some(Instant::now());
        Ok(Rc::clone(&known.addresses))
    }
}

/// How long an answer of the resolver is used.
const FRESH: Duration = Duration::from_secs(5);

const WARN_EVERY: Duration = Duration::from_secs(30);

/// Addresses tried for one name.
const ADDRESSES_MAX: usize = 8;

/// Names remembered; targets come from routes.yaml, whose past versions leave theirs behind.
const NAMES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Arc<str> {
        text.into()
    }

    #[tokio::test]
    async fn literals_need_no_resolver() {
        let resolved = Names::default().resolve(&names("[::1]:80")).await.unwrap();
        assert_eq!(&*resolved, ["[::1]:80".parse().unwrap()]);
    }

    #[tokio::test]
    async fn the_last_good_addresses_outlive_the_resolver() {
        let known = Names::default();
        let target = names("somewhere.invalid:80");
        let away = || Err(io::Error::other("away"));
        assert!(known.remember(&target, away()).is_err());
        let address = "192.0.2.1:80".parse().unwrap();
        known.remember(&target, Ok(Rc::new([address]))).unwrap();
        assert_eq!(&*known.remember(&target, away()).unwrap(), [address]);
        assert_eq!(&*known.resolve(&target).await.unwrap(), [address]);
    }
}
