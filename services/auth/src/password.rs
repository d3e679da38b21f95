//! Passwords: argon2id on a bounded number of blocking threads.
//!
//! A hash costs 19 MiB and some tens of milliseconds of a core, so how many run
//! and how many wait is bounded: a flood of log-ins costs time, never memory. The
//! 19 MiB are kept and used again, since an allocator would keep a copy of them
//! for every thread that ever hashed.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::phc::{Output, ParamsString, PasswordHash, Salt},
};
use rand::Rng as _;
use tokio::{sync::Semaphore, time::timeout};

/// Shortest password, in characters.
const CHARS_MIN: usize = 8;

/// Longest password, in characters.
const CHARS_MAX: usize = 128;

/// OWASP's first choice for argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Bytes of a salt and of a hash.
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

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
    Hash(String),
    /// The thread panicked.
    #[error("cannot hash a password")]
    Internal,
}

/// Hashes and checks passwords, so many at a time.
#[derive(Clone, Debug)]
pub struct Passwords {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Memory of those that ran before; never more than may run at a time. Locked
    /// for a push or a pop only.
    memory: Arc<Mutex<Vec<Vec<Block>>>>,
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
            memory: Arc::default(),
            dummy: Arc::from(""),
        };
        let nobody_knows = Password(crate::token::random_id(43));
        passwords.dummy = passwords.hash(nobody_knows).await?.into();
        Ok(passwords)
    }

    /// The hash of a new password, in PHC form with its own salt.
    pub async fn hash(&self, password: Password) -> Result<String, PasswordError> {
        self.on_thread(move |memory| hash(&password, memory)).await
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
            .on_thread(move |memory| verify(&password, &hash, memory))
            .await?;
        Ok(fits && known)
    }

    /// Runs `work` on a blocking thread when its turn comes.
    ///
    /// When the caller goes away the work still runs to its end and keeps its
    /// place until then: what bounds memory is what runs, not who waits.
    async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Vec<Block>) -> Result<T, PasswordError> + Send + 'static,
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
        let kept = Arc::clone(&self.memory);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut memory = lock(&kept).pop().unwrap_or_default();
            let done = work(&mut memory);
            lock(&kept).push(memory);
            done
        })
        .await
        .map_err(|_| PasswordError::Internal)?
    }
}

fn lock(memory: &Mutex<Vec<Vec<Block>>>) -> std::sync::MutexGuard<'_, Vec<Vec<Block>>> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Today's parameters with a new salt.
fn hash(password: &Password, memory: &mut Vec<Block>) -> Result<String, PasswordError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, Some(HASH_BYTES)).map_err(failed)?;
    let mut salt = [0; SALT_BYTES];
    rand::rng().fill_bytes(&mut salt);
    let encoded = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params).map_err(failed)?,
        salt: Some(Salt::new(&salt).map_err(failed)?),
        hash: Some(compute(password, &salt, params, Version::V0x13, memory)?),
    };
    Ok(encoded.to_string())
}

/// With the salt and the parameters of a stored hash, also those of an earlier
/// version of this service.
fn verify(
    password: &Password,
    stored: &str,
    memory: &mut Vec<Block>,
) -> Result<bool, PasswordError> {
    let stored = PasswordHash::new(stored).map_err(failed)?;
    let params = Params::try_from(&stored).map_err(failed)?;
    let version = Version::try_from(stored.version.unwrap_or_default()).map_err(failed)?;
    let ours = stored.algorithm == Algorithm::Argon2id.ident();
    let (true, Some(salt), Some(expected)) = (ours, stored.salt, stored.hash) else {
        return Err(PasswordError::Hash("not a whole argon2id hash".to_owned()));
    };
    // The comparison of outputs takes the same time wherever they differ.
    Ok(compute(password, &salt, params, version, memory)? == expected)
}

fn compute(
    password: &Password,
    salt: &[u8],
    params: Params,
    version: Version,
    memory: &mut Vec<Block>,
) -> Result<Output, PasswordError> {
    let mut output = vec![0; params.output_len().unwrap_or(HASH_BYTES)];
    memory.resize(params.block_count(), Block::default());
    Argon2::new(Algorithm::Argon2id, version, params)
        .hash_password_into_with_memory(password.0.as_bytes(), salt, &mut output, memory)
        .map_err(failed)?;
    Output::new(&output).map_err(failed)
}

fn failed(error: impl fmt::Display) -> PasswordError {
    PasswordError::Hash(error.to_string())
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
        for garbage in ["garbage", "", "$argon2id$v=19$m=19456,t=2,p=1", &hash[..40]] {
            assert!(
                verify("correct horse", Some(garbage)).await.is_err(),
                "{garbage}"
            );
        }
        let weaker = hash.replace("$argon2id$", "$argon2d$");
        assert!(verify("correct horse", Some(&weaker)).await.is_err());
    }

    #[tokio::test]
    async fn hashes_of_other_implementations_and_parameters_are_understood() {
        // A test vector of the reference implementation.
        let reference = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ\
                         $CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let passwords = Passwords::new(1).await.unwrap();
        let known = Some(reference.to_owned());
        assert!(
            passwords
                .verify(password("password"), known.clone())
                .await
                .unwrap()
        );
        assert!(!passwords.verify(password("passwore"), known).await.unwrap());
    }

    #[tokio::test]
    async fn memory_is_kept_for_as_many_as_may_run() {
        let passwords = Passwords::new(2).await.unwrap();
        let all: Vec<_> = (0..8)
            .map(|_| {
                let passwords = passwords.clone();
                tokio::spawn(async move { passwords.hash(password("correct horse")).await })
            })
            .collect();
        for one in all {
            one.await.unwrap().unwrap();
        }
        let kept = lock(&passwords.memory).len();
        assert!((1..=2).contains(&kept), "{kept}");
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
