//! Passwords: argon2id on a bounded number of blocking threads.
//!
//! A hash costs 19 MiB and some tens of milliseconds of a core, so how many run
//! and how many wait is bounded: a flood of log-ins costs time, never memory.

use std::{fmt, sync::Arc, time::Duration};

use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version};
use tokio::{sync::Semaphore, time::timeout};

/// Shortest password, in characters.
const CHARS_MIN: usize = 8;

/// Longest password, in characters.
const CHARS_MAX: usize = 128;

/// OWASP's first choice for argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Callers that may wait for a thread; beyond it they are told to come back.
const WAITING_MAX: usize = 256;

/// How long a caller waits for a thread.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// A password of acceptable length. Its debug form does not show it.
#[derive(Clone, Eq, PartialEq)]
pub struct Password(String);

impl Password {
    /// Checks the length: 8 to 128 characters.
    pub fn parse(text: String) -> Result<Self, PasswordLengthError> {
        if (CHARS_MIN..=CHARS_MAX).contains(&text.chars().count()) {
            Ok(Self(text))
        } else {
            Err(PasswordLengthError)
        }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// A password that is too short or too long.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a password has 8 to 128 characters")]
pub struct PasswordLengthError;

/// Why a password was not hashed or checked.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Too many at a time; nothing was computed.
    #[error("too many passwords are being checked")]
    Busy,
    /// A stored hash cannot be read, or the library failed.
    #[error("cannot hash a password: {0}")]
    Hash(argon2::password_hash::Error),
    /// The parameters are refused, or the thread panicked.
    #[error("cannot hash a password")]
    Internal,
}

/// Hashes and checks passwords, so many at a time.
#[derive(Clone, Debug)]
pub struct Passwords {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// The hash of a password nobody knows: what a log-in of an unknown user is
    /// checked against, so that it takes as long as that of a known one.
    dummy: Arc<str>,
}

impl Passwords {
    /// At most `threads` at a time.
    ///
    /// # Errors
    /// The library refuses its parameters or has no randomness.
    pub async fn new(threads: usize) -> Result<Self, PasswordError> {
        let mut passwords = Self {
            running: Arc::new(Semaphore::new(threads.max(1))),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            dummy: Arc::from(""),
        };
        let nobody_knows = Password(crate::token::random_id(43));
        passwords.dummy = passwords.hash(nobody_knows).await?.into();
        Ok(passwords)
    }

    /// The hash of a new password, in PHC form with its own salt.
    pub async fn hash(&self, password: Password) -> Result<String, PasswordError> {
        self.on_thread(move || {
            argon2()?
                .hash_password(password.0.as_bytes())
                .map(|hash| hash.to_string())
                .map_err(PasswordError::Hash)
        })
        .await
    }

    /// Whether the password fits the hash; without a hash (an unknown user) it
    /// takes as long and is never true.
    pub async fn verify(
        &self,
        password: Password,
        hash: Option<String>,
    ) -> Result<bool, PasswordError> {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.dummy.as_ref().to_owned());
        let fits = self
            .on_thread(move || {
                match argon2()?.verify_password(password.0.as_bytes(), hash.as_str()) {
                    Ok(()) => Ok(true),
                    Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
                    Err(error) => Err(PasswordError::Hash(error)),
                }
            })
            .await?;
        Ok(fits && known)
    }

    /// Runs `work` on a blocking thread when its turn comes.
    ///
    /// When the caller goes away the work still runs to its end and keeps its
    /// place until then: what bounds memory is what runs, not who waits.
    async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let place = self
            .waiting
            .try_acquire()
            .map_err(|_| PasswordError::Busy)?;
        let permit = timeout(WAIT_TIMEOUT, Arc::clone(&self.running).acquire_owned())
            .await
            .map_err(|_| PasswordError::Busy)?
            .map_err(|_| PasswordError::Internal)?;
        drop(place);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await
        .map_err(|_| PasswordError::Internal)?
    }
}

fn argon2() -> Result<Argon2<'static>, PasswordError> {
    let params =
        Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|_| PasswordError::Internal)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Password::parse(text.to_owned()).unwrap()
    }

    #[test]
    fn lengths_are_counted_in_characters() {
        for (text, good) in [
            ("é".repeat(7), false),
            ("é".repeat(8), true),
            ("é".repeat(128), true),
            ("é".repeat(129), false),
            (String::new(), false),
        ] {
            assert_eq!(Password::parse(text.clone()).is_ok(), good, "{text}");
        }
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_known_user_fits() {
        let passwords = Passwords::new(2).await.unwrap();
        let hash = passwords.hash(password("correct horse")).await.unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        let again = passwords.hash(password("correct horse")).await.unwrap();
        assert_ne!(hash, again, "every hash has its own salt");
        let verify = async |text: &str, hash: Option<&str>| {
            passwords
                .verify(password(text), hash.map(str::to_owned))
                .await
        };
        assert!(verify("correct horse", Some(&hash)).await.unwrap());
        assert!(!verify("battery staple", Some(&hash)).await.unwrap());
        assert!(!verify("correct horse", None).await.unwrap());
        assert!(verify("correct horse", Some("garbage")).await.is_err());
    }

    #[tokio::test]
    async fn beyond_the_queue_callers_are_sent_away() {
        let passwords = Passwords::new(1).await.unwrap();
        let _all = passwords
            .waiting
            .acquire_many(WAITING_MAX as u32)
            .await
            .unwrap();
        let refused = passwords.hash(password("correct horse")).await;
        assert!(matches!(refused, Err(PasswordError::Busy)), "{refused:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_does_not_wait_for_ever() {
        let passwords = Passwords::new(1).await.unwrap();
        let _running = passwords.running.acquire().await.unwrap();
        let refused = passwords.hash(password("correct horse")).await;
        assert!(matches!(refused, Err(PasswordError::Busy)), "{refused:?}");
        assert_eq!(passwords.waiting.available_permits(), WAITING_MAX);
    }
}
