//! Who sent a request: asked of auth, never read from its database.
//!
//! First over NATS; without an answer from there, an answer of the last minute;
//! then auth's own `GET /api/session` over HTTP. No answer at all is no pass.
//! Tokens are kept as hashes only.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use edd_events::{
    bus::{AnyBus, Bus as _},
    request::validate_token,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::http::{PlainUrl, get};

/// How long an answer may be used while NATS does not answer.
pub const CACHE_AGE: Duration = Duration::from_secs(60);
/// Answers kept, the oldest leaves first.
const CACHE_LEN_MAX: usize = 10_000;
/// How long auth may take over HTTP, connecting included.
const HTTP_TIMEOUT: Duration = Duration::from_secs(3);

/// A user who proved to be one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User {
    /// At least 1.
    pub id: i64,
    /// The name.
    pub username: String,
}

/// Nobody could say whether a token is good.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("auth does not answer")]
pub struct NoAnswer;

/// Asks auth.
#[derive(Debug)]
pub struct Auth {
    bus: Option<AnyBus>,
    url: Option<PlainUrl>,
    /// Held for moments only.
    cache: Mutex<Cache>,
}

impl Auth {
    /// Asks over `bus`, and over HTTP at `url` when that does not answer.
    pub fn new(bus: Option<AnyBus>, url: Option<PlainUrl>) -> Self {
        Self {
            bus,
            url,
            cache: Mutex::default(),
        }
    }

    /// The user of a token, `None` for a token that is not good.
    ///
    /// # Errors
    /// When neither NATS (within 2 s) nor a fresh answer nor HTTP (within 3 s)
    /// says so.
    pub async fn user(&self, token: &str) -> Result<Option<User>, NoAnswer> {
        let hash = Hash::of(token);
        if let Some(bus) = self.bus.as_ref().filter(|bus| bus.is_connected()) {
            match validate_token(bus, token).await {
                Ok(answer) => {
                    let user = answer.map(|(id, username)| User { id, username });
                    return Ok(self.remember(hash, user));
                }
                Err(error) => tracing::debug!(%error, "auth does not answer over NATS"),
            }
        }
        if let Some(user) = self.lock().fresh(&hash) {
            return Ok(Some(user));
        }
        let Some(url) = &self.url else {
            return Err(NoAnswer);
        };
        match timeout(HTTP_TIMEOUT, ask(url, token)).await {
            Ok(Ok(user)) => Ok(self.remember(hash, user)),
            Ok(Err(error)) => {
                tracing::warn!(%url, %error, "auth does not answer over HTTP");
                Err(NoAnswer)
            }
            Err(_elapsed) => {
                tracing::warn!(%url, "auth does not answer over HTTP in time");
                Err(NoAnswer)
            }
        }
    }

    fn remember(&self, hash: Hash, user: Option<User>) -> Option<User> {
        let mut cache = self.lock();
        match &user {
            Some(user) => cache.insert(hash, user.clone()),
            None => cache.remove(&hash),
        }
        user
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// SHA-256 of a token.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Hash([u8; 32]);

impl Hash {
    fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }
}

/// Good answers and when they came; bad ones are asked for again.
#[derive(Debug, Default)]
struct Cache {
    users: HashMap<Hash, (User, Instant)>,
    /// In the order of their first insertion.
    order: VecDeque<Hash>,
}

impl Cache {
    fn fresh(&mut self, hash: &Hash) -> Option<User> {
        let (user, answered) = self.users.get(hash)?;
        (answered.elapsed() < CACHE_AGE).then(|| user.clone())
    }

    fn insert(&mut self, hash: Hash, user: User) {
        if self.users.insert(hash, (user, Instant::now())).is_none() {
            self.order.push_back(hash);
        }
        while self.order.len() > CACHE_LEN_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.users.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, hash: &Hash) {
        if self.users.remove(hash).is_some() {
            self.order.retain(|other| other != hash);
        }
    }
}

#[derive(Deserialize)]
struct Session {
    user_id: i64,
    username: String,
}

/// One request, on the way around a failure, not the usual one.
async fn ask(url: &PlainUrl, token: &str) -> anyhow::Result<Option<User>> {
    let addresses = url.addresses().await?;
    let (status, body) = get(url, &addresses, "/api/session", Some(token)).await?;
    match status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => return Ok(None),
        status => anyhow::bail!("unexpected answer {status}"),
    }
    let session: Session = serde_json::from_slice(&body)?;
    anyhow::ensure!(
        session.user_id >= 1,
        "valid for user id {}",
        session.user_id
    );
    Ok(Some(User {
        id: session.user_id,
        username: session.username,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: i64) -> User {
        User {
            id,
            username: format!("user{id}"),
        }
    }

    #[test]
    fn the_cache_is_bounded_and_forgets_the_oldest() {
        let mut cache = Cache::default();
        for id in 0..=CACHE_LEN_MAX as i64 {
            cache.insert(Hash::of(&id.to_string()), user(id));
        }
        assert_eq!(cache.users.len(), CACHE_LEN_MAX);
        assert_eq!(cache.fresh(&Hash::of("0")), None);
        assert_eq!(cache.fresh(&Hash::of("1")), Some(user(1)));
        cache.insert(Hash::of("1"), user(1));
        assert_eq!(
            (cache.users.len(), cache.order.len()),
            (CACHE_LEN_MAX, CACHE_LEN_MAX)
        );
        cache.remove(&Hash::of("1"));
        assert_eq!(cache.fresh(&Hash::of("1")), None);
        assert_eq!(
            (cache.users.len(), cache.order.len()),
            (CACHE_LEN_MAX - 1, CACHE_LEN_MAX - 1)
        );
    }

    #[test]
    fn old_answers_are_not_used() {
        let mut cache = Cache::default();
        let hash = Hash::of("t");
        let Some(long_ago) = Instant::now().checked_sub(CACHE_AGE) else {
            return;
        };
        cache.insert(hash, user(1));
        cache.users.insert(hash, (user(1), long_ago));
        assert_eq!(cache.fresh(&hash), None);
    }

    #[tokio::test]
    async fn without_anybody_to_ask_nobody_passes() {
        assert_eq!(Auth::new(None, None).user("token").await, Err(NoAnswer));
        // A port that nobody listens on.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let url = PlainUrl::parse(&format!("http://127.0.0.1:{port}")).unwrap();
        assert_eq!(
            Auth::new(None, Some(url)).user("token").await,
            Err(NoAnswer)
        );
    }
}
